//! Decides how to handle a stored event: decrypts it, checks it, and converts it to a message.

use std::sync::Arc;

use matrix_sdk_common::deserialized_responses::{
    DecryptedRoomEvent, EncryptionInfo, UnableToDecryptReason,
};
use matrix_sdk_crypto::RoomEventDecryptionResult;
use ruma::{OwnedUserId, RoomId, UserId};
use tokio::time::Instant;
use tracing::warn;

use crate::{
    crypto::Decrypted,
    devices::DeviceStatus,
    errors::BridgeError,
    inbox::Queued,
    message::{Encrypted, Message, Stored, is_owner, verification},
    run::Run,
    withheld,
};

pub enum Verdict {
    Deliver(Box<Message>),
    /// The key is missing.
    NoKey,
    /// The sender's devices are not known yet.
    SenderUnknown,
    /// Not a message, but a verification step.
    Skip,
    /// Dead-letter it. `kind` is the metric's `reason` label.
    Fail {
        kind: &'static str,
        reason: String,
    },
}

fn fail(kind: &'static str, reason: impl Into<String>) -> Verdict {
    Verdict::Fail { kind, reason: reason.into() }
}

pub async fn evaluate(run: &Run, room: &str, queued: &Queued) -> Result<Verdict, BridgeError> {
    let (room_id, stored) = match (RoomId::parse(room), Stored::parse(&queued.json)) {
        (Ok(room_id), Ok(stored)) => (room_id, stored),
        _ => return Ok(fail("malformed", "malformed event")),
    };
    match stored {
        Stored::Plain(event) if event.is_verification_step() => Ok(Verdict::Skip),
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
    let bridges = run.config.trusted_bridges.bots_of(&encrypted.sender);
    let senders = [&[&*encrypted.sender], &*bridges].concat();
    let status = run.devices.sender_status(&senders, event_id);
    if status == DeviceStatus::Pending {
        return Ok(Verdict::SenderUnknown);
    }
    let began = Instant::now();
    let decrypted = run.crypto.decrypt(&encrypted.event, room_id).await?;
    run.metrics.decryption.record(began.elapsed());
    let decrypted = match decrypted {
        Decrypted::Corrupt(reason) => {
            return Ok(fail("corrupt_key", format!("the key is corrupt: {reason}")));
        }
        Decrypted::Result(result) => match *result {
            RoomEventDecryptionResult::Decrypted(decrypted) => decrypted,
            RoomEventDecryptionResult::UnableToDecrypt(info) => {
                if let UnableToDecryptReason::MissingMegolmSession { withheld_code: Some(code) } =
                    &info.reason
                {
                    let reason = withheld::explain(withheld::known(code));
                    warn!(event_id, room = %room_id, "a message cannot be decrypted: {reason}");
                    run.inbox.note_withheld(room_id.as_str(), event_id, &reason).await?;
                }
                let verdict = undecrypted(info.reason);
                if matches!(verdict, Verdict::NoKey) {
                    // The machine may ask the user's other devices for the key.
                    run.wake.outgoing.notify_one();
                }
                return Ok(verdict);
            }
        },
    };
    let key = key(run, room_id, &decrypted, &bridges).await?;
    let verdict = message(room_id, &decrypted, &key, status);
    // A message that fails must not claim its index: the genuine one may follow.
    if let (Some(at), Verdict::Deliver(_) | Verdict::Skip) = (&encrypted.at, &verdict) {
        let first = run.inbox.record_message_index(at, room_id.as_str(), event_id).await?;
        if first != event_id {
            let reason = format!("replay of event {first}");
            return Ok(fail("replay", reason));
        }
    }
    Ok(verdict)
}

/// The key that encrypted a message.
struct Key {
    info: Arc<EncryptionInfo>,
    /// A trusted bridge that owns it, if the sender does not.
    bridge: Option<OwnedUserId>,
}

async fn key(
    run: &Run,
    room_id: &RoomId,
    decrypted: &DecryptedRoomEvent,
    bridges: &[&UserId],
) -> Result<Key, BridgeError> {
    let info = &decrypted.encryption_info;
    if let Some(session_id) = info.session_id()
        && !is_owner(&info.verification_state)
    {
        for bridge in bridges {
            if let Some(info) = run.crypto.owned_key(room_id, session_id, bridge).await? {
                return Ok(Key { info, bridge: Some((*bridge).to_owned()) });
            }
        }
    }
    Ok(Key { info: info.clone(), bridge: None })
}

fn message(
    room_id: &RoomId,
    decrypted: &DecryptedRoomEvent,
    key: &Key,
    status: DeviceStatus,
) -> Verdict {
    let Some(verification) = verification(&key.info.verification_state) else {
        let reason = "the claimed sender is not the owner of the key that encrypted it: it is forged, or \
                      a ghost of a bridge that is not in BRIDGE_TRUSTED_BRIDGES";
        return fail("mismatched_sender", reason);
    };
    let verification = with_devices(verification, status);
    let device = key.info.sender_device.as_ref().map(ToString::to_string);
    match Message::decrypted(room_id.as_str(), &decrypted.event, verification, device) {
        Ok(Some(mut message)) => {
            message.sent_by_device_of = key.bridge.as_ref().map(ToString::to_string);
            Verdict::Deliver(Box::new(message))
        }
        Ok(None) => Verdict::Skip,
        Err(reason) => fail("malformed", reason),
    }
}

/// If the sender's devices are unavailable, an unknown device may exist.
fn with_devices(verification: &'static str, status: DeviceStatus) -> &'static str {
    match (verification, status) {
        ("unknown_device", DeviceStatus::Unavailable) => "devices_unavailable",
        _ => verification,
    }
}

fn undecrypted(reason: UnableToDecryptReason) -> Verdict {
    let kind = match &reason {
        UnableToDecryptReason::MissingMegolmSession { .. }
        | UnableToDecryptReason::UnknownMegolmMessageIndex => return Verdict::NoKey,
        UnableToDecryptReason::MalformedEncryptedEvent => "malformed",
        UnableToDecryptReason::MegolmDecryptionFailure => "wrong_key",
        UnableToDecryptReason::PayloadDeserializationFailure => "malformed",
        UnableToDecryptReason::MismatchedIdentityKeys => "mismatched_sender",
        _ => "other",
    };
    fail(kind, format!("decryption failed: {reason:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_unknown_only_after_a_successful_query() {
        assert_eq!(with_devices("unknown_device", DeviceStatus::Known), "unknown_device");
        assert_eq!(
            with_devices("unknown_device", DeviceStatus::Unavailable),
            "devices_unavailable"
        );
        // The room key's own message may contain the device keys.
        assert_eq!(with_devices("unsigned_device", DeviceStatus::Unavailable), "unsigned_device");
    }
}
