//! What is to become of a stored event: decrypted, checked, and made into a message.

use matrix_sdk_common::deserialized_responses::{DecryptedRoomEvent, UnableToDecryptReason};
use matrix_sdk_crypto::RoomEventDecryptionResult;
use ruma::RoomId;
use tracing::warn;

use crate::{
    crypto::Decrypted,
    devices::Known,
    errors::BridgeError,
    inbox::Queued,
    message::{Encrypted, Message, Stored, verification},
    run::Run,
};

pub enum Verdict {
    Deliver(Box<Message>),
    /// Its key has not come.
    NoKey,
    /// The homeserver has not told of its sender's devices yet.
    SenderUnknown,
    /// No message for people.
    Skip,
    /// Parked. `kind` is a label of the metrics.
    Fail {
        kind: &'static str,
        reason: String,
    },
}

fn fail(kind: &'static str, reason: impl Into<String>) -> Verdict {
    Verdict::Fail { kind, reason: reason.into() }
}

pub async fn judge(run: &Run, room: &str, queued: &Queued) -> Result<Verdict, BridgeError> {
    let (room_id, stored) = match (RoomId::parse(room), Stored::parse(&queued.json)) {
        (Ok(room_id), Ok(stored)) => (room_id, stored),
        _ => return Ok(fail("malformed", "malformed event")),
    };
    match stored {
        Stored::Plain(event) => Ok(Verdict::Deliver(Box::new(Message::plain(room, event)))),
        Stored::Encrypted(encrypted) => decrypt(run, &room_id, &queued.event_id, &encrypted).await,
    }
}

async fn decrypt(
    run: &Run,
    room_id: &RoomId,
    event_id: &str,
    encrypted: &Encrypted,
) -> Result<Verdict, BridgeError> {
    let known = run.devices.of_sender(&encrypted.sender, event_id);
    if known == Known::NotYet {
        return Ok(Verdict::SenderUnknown);
    }
    let decrypted = match run.crypto.decrypt(&encrypted.event, room_id).await? {
        Decrypted::Unreadable(reason) => {
            return Ok(fail("corrupt_key", format!("its key cannot be read: {reason}")));
        }
        Decrypted::Result(result) => match *result {
            RoomEventDecryptionResult::Decrypted(decrypted) => decrypted,
            RoomEventDecryptionResult::UnableToDecrypt(info) => {
                return Ok(undecrypted(info.reason));
            }
        },
    };
    let verdict = message(room_id, &decrypted, known);
    // One that fails anyway does not use an index up.
    if let (Some(at), Verdict::Deliver(_) | Verdict::Skip) = (&encrypted.at, &verdict) {
        let first = run.inbox.first_at(at, room_id.as_str(), event_id).await?;
        if first != event_id {
            let reason = format!("a replay: event {first} is the same message");
            return Ok(fail("replay", reason));
        }
    }
    Ok(verdict)
}

fn message(room_id: &RoomId, decrypted: &DecryptedRoomEvent, known: Known) -> Verdict {
    let info = &decrypted.encryption_info;
    let Some(verification) = verification(&info.verification_state) else {
        let reason = "the claimed sender is not the owner of the key it was encrypted with";
        return fail("mismatched_sender", reason);
    };
    let verification = with_devices(verification, known);
    let device = info.sender_device.as_ref().map(ToString::to_string);
    match Message::decrypted(room_id.as_str(), &decrypted.event, verification, device) {
        Ok(Some(message)) => Verdict::Deliver(Box::new(message)),
        Ok(None) => Verdict::Skip,
        Err(_) => fail("malformed", "malformed after decryption"),
    }
}

/// Of a sender whose devices nobody tells of, a missing one may exist.
fn with_devices(verification: &'static str, known: Known) -> &'static str {
    match (verification, known) {
        ("unknown_device", Known::Unavailable) => "devices_unavailable",
        _ => verification,
    }
}

fn undecrypted(reason: UnableToDecryptReason) -> Verdict {
    let kind = match &reason {
        UnableToDecryptReason::MissingMegolmSession { withheld_code } => {
            if let Some(code) = withheld_code {
                warn!(code = code.as_str(), "a sender withholds the key of a message");
            }
            return Verdict::NoKey;
        }
        UnableToDecryptReason::UnknownMegolmMessageIndex => return Verdict::NoKey,
        UnableToDecryptReason::MalformedEncryptedEvent => "malformed",
        UnableToDecryptReason::MegolmDecryptionFailure => "wrong_key",
        UnableToDecryptReason::PayloadDeserializationFailure => "malformed",
        UnableToDecryptReason::MismatchedIdentityKeys => "mismatched_sender",
        _ => "other",
    };
    fail(kind, format!("it cannot be decrypted: {reason:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_unknown_only_if_somebody_has_answered() {
        assert_eq!(with_devices("unknown_device", Known::Yes), "unknown_device");
        assert_eq!(with_devices("unknown_device", Known::Unavailable), "devices_unavailable");
        // The key itself may prove the device.
        assert_eq!(with_devices("unsigned_device", Known::Unavailable), "unsigned_device");
    }
}
