//! The messages that are sent to the webhook.

use matrix_sdk_common::deserialized_responses::{
    DeviceLinkProblem, VerificationLevel, VerificationState,
};
use matrix_sdk_crypto::{
    types::events::room::encrypted::EncryptedEvent, vodozemac::megolm::MegolmMessage,
};
use ruma::{OwnedUserId, events::AnyTimelineEvent, serde::Raw};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json, value::RawValue};

use crate::{
    attachment::{self, Attachment, Source},
    inbox::MessageIndex,
    relation::Relation,
};

/// The JSON body of a delivery. The README describes each field: change both.
#[derive(Debug, Serialize)]
pub struct Message {
    pub event_id: String,
    pub room_id: String,
    /// The room's label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    pub sender: String,
    /// Milliseconds since 1970, as set by the sender's homeserver.
    pub timestamp: i64,
    #[serde(rename = "type")]
    pub kind: String,
    /// The content's `body`; empty if it has none.
    pub body: String,
    pub content: Value,
    pub encrypted: bool,
    pub verification: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender_device: Option<String>,
    /// The bridge's bot that owns the device, if it encrypted for a ghost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent_by_device_of: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relation: Option<Relation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attachment: Option<Attachment>,
}

/// A parsed event of the inbox.
pub enum Stored {
    Encrypted(Encrypted),
    Plain(Outline),
}

/// An encrypted event.
pub struct Encrypted {
    pub sender: OwnedUserId,
    pub event: Raw<EncryptedEvent>,
    /// Its Megolm message index; `None` if the ciphertext is malformed.
    pub at: Option<MessageIndex>,
}

/// The fields of an event that a message is built from.
#[derive(Debug, Deserialize)]
pub struct Outline {
    event_id: String,
    sender: String,
    #[serde(default, deserialize_with = "value_or_null")]
    origin_server_ts: Value,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    content: Value,
    #[serde(default, deserialize_with = "value_or_null")]
    redacts: Value,
}

/// A malformed optional field must not prevent the delivery: it becomes `null`.
fn value_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    let raw = Box::<RawValue>::deserialize(deserializer)?;
    Ok(serde_json::from_str(raw.get()).unwrap_or_default())
}

impl Stored {
    pub fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        let outline: Outline = serde_json::from_slice(json)?;
        if outline.kind != "m.room.encrypted" {
            return Ok(Self::Plain(outline));
        }
        // Rebuilt from the needed fields: other malformed fields must not prevent the decryption.
        let sent = u64::try_from(outline.timestamp()).unwrap_or_default().min(MAX_TIMESTAMP);
        let event = json!({
            "type": outline.kind,
            "event_id": outline.event_id,
            "sender": outline.sender,
            "origin_server_ts": sent,
            "content": outline.content,
        });
        Ok(Self::Encrypted(Encrypted {
            sender: serde_json::from_value(outline.sender.into())?,
            event: Raw::from_json(serde_json::value::to_raw_value(&event)?),
            at: message_index(&outline.content),
        }))
    }
}

/// The largest timestamp that ruma accepts.
const MAX_TIMESTAMP: u64 = (1 << 53) - 1;

fn message_index(content: &Value) -> Option<MessageIndex> {
    let message = MegolmMessage::from_base64(content["ciphertext"].as_str()?).ok()?;
    let session_id = content["session_id"].as_str()?.to_owned();
    Some(MessageIndex { session_id, index: message.message_index() })
}

impl Outline {
    /// Whether it is a step of an interactive verification, and no message.
    pub fn is_verification_step(&self) -> bool {
        self.content["msgtype"] == "m.key.verification.request"
            || self.kind.starts_with("m.key.verification.")
    }

    /// Some homeservers convert numbers to floats or strings.
    fn timestamp(&self) -> i64 {
        let value = &self.origin_server_ts;
        let text = value.as_str().unwrap_or_default().trim();
        let float = value.as_f64().or_else(|| text.parse().ok());
        value
            .as_i64()
            .or_else(|| text.parse().ok())
            .or(float.map(|float| float as i64))
            .unwrap_or(0)
    }
}

impl Message {
    /// A message that was never encrypted.
    pub fn plain(room_id: &str, outline: Outline) -> Self {
        Self::new(room_id, outline, false, "unencrypted")
    }

    /// A decrypted message; `None` if it is a step of an interactive verification. The reason, if it cannot
    /// be a message.
    pub fn decrypted(
        room_id: &str,
        event: &Raw<AnyTimelineEvent>,
        verification: &'static str,
        sender_device: Option<String>,
    ) -> Result<Option<Self>, &'static str> {
        let outline: Outline =
            event.deserialize_as_unchecked().map_err(|_| "malformed after decryption")?;
        if !may_be_encrypted(&outline.kind) {
            return Err("its type is never encrypted: a redaction's, or that of state");
        }
        if outline.is_verification_step() {
            return Ok(None);
        }
        let message = Self::new(room_id, outline, true, verification);
        Ok(Some(Self { sender_device, ..message }))
    }

    /// Describe the attachment, if there is one, and remove its keys unless `keep_keys`. Returns where it
    /// is.
    pub fn describe_attachment(&mut self, keep_keys: bool) -> Option<Source> {
        let (attachment, source) = attachment::take(&self.kind, &mut self.content, keep_keys)?;
        self.attachment = Some(attachment);
        Some(source)
    }

    fn new(room_id: &str, outline: Outline, encrypted: bool, verification: &'static str) -> Self {
        let timestamp = outline.timestamp();
        let mut content = outline.content;
        // Room version 11 moved `redacts` into the content; do so for older rooms, too.
        if outline.redacts.is_string()
            && let Some(content) = content.as_object_mut()
        {
            content.entry("redacts").or_insert(outline.redacts);
        }
        Self {
            relation: Relation::of(&outline.kind, &content),
            attachment: None,
            event_id: outline.event_id,
            room_id: room_id.to_owned(),
            label: None,
            sender: outline.sender,
            timestamp,
            kind: outline.kind,
            body: content["body"].as_str().unwrap_or_default().to_owned(),
            content,
            encrypted,
            verification,
            sender_device: None,
            sent_by_device_of: None,
        }
    }
}

/// Whether events of this type may be encrypted. Redactions and state may not: homeservers check their
/// senders' rights, for which they must read the type.
fn may_be_encrypted(kind: &str) -> bool {
    const NEVER: [&str; 3] = ["m.room.", "m.space.", "m.policy."];
    kind == "m.room.message" || !NEVER.iter().any(|prefix| kind.starts_with(prefix))
}

/// Whether the owner of the key is known, and is the user that this state was determined for.
pub fn is_owner(state: &VerificationState) -> bool {
    match state {
        VerificationState::Verified => true,
        VerificationState::Unverified(level) => match level {
            VerificationLevel::UnverifiedIdentity
            | VerificationLevel::VerificationViolation
            | VerificationLevel::UnsignedDevice => true,
            VerificationLevel::None(_) | VerificationLevel::MismatchedSender => false,
        },
    }
}

/// The verification state of the sender; `None` if the claimed sender is not the owner of the key: such
/// a message must not be delivered.
pub fn verification(state: &VerificationState) -> Option<&'static str> {
    Some(match state {
        VerificationState::Verified => "verified",
        VerificationState::Unverified(level) => match level {
            VerificationLevel::UnverifiedIdentity => "unverified_identity",
            VerificationLevel::VerificationViolation => "verification_violation",
            VerificationLevel::UnsignedDevice => "unsigned_device",
            VerificationLevel::None(DeviceLinkProblem::MissingDevice) => "unknown_device",
            VerificationLevel::None(DeviceLinkProblem::InsecureSource) => "insecure_source",
            VerificationLevel::MismatchedSender => return None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(event: Value) -> Value {
        match Stored::parse(event.to_string().as_bytes()).unwrap() {
            Stored::Plain(outline) => {
                serde_json::to_value(Message::plain("!r:x", outline)).unwrap()
            }
            Stored::Encrypted(_) => panic!("not encrypted"),
        }
    }

    #[test]
    fn a_message_has_the_documented_fields() {
        let content =
            json!({"msgtype": "m.text", "body": "hi", "m.relates_to": {"rel_type": "m.replace"}});
        let message = plain(json!({"event_id": "$1", "sender": "@a:x", "type": "m.room.message",
            "origin_server_ts": 7, "content": content}));
        assert_eq!(
            message,
            json!({"event_id": "$1", "room_id": "!r:x", "sender": "@a:x", "timestamp": 7,
                "type": "m.room.message", "body": "hi", "content": content, "encrypted": false,
                "verification": "unencrypted"})
        );
    }

    #[test]
    fn the_redacted_event_id_is_always_in_the_content() {
        let message = plain(json!({"event_id": "$2", "sender": "@a:x", "type": "m.room.redaction",
            "origin_server_ts": 7, "content": {"reason": "typo"}, "redacts": "$1"}));
        assert_eq!(message["content"], json!({"reason": "typo", "redacts": "$1"}));
        assert_eq!(message["body"], "");
    }

    #[test]
    fn a_mismatched_sender_is_never_delivered() {
        let level = VerificationLevel::MismatchedSender;
        assert_eq!(verification(&VerificationState::Unverified(level)), None);
        let level = VerificationLevel::None(DeviceLinkProblem::MissingDevice);
        assert_eq!(verification(&VerificationState::Unverified(level)), Some("unknown_device"));
    }

    #[test]
    fn an_owner_is_known_by_its_device() {
        let owner = |level| is_owner(&VerificationState::Unverified(level));
        assert!(is_owner(&VerificationState::Verified));
        assert!(owner(VerificationLevel::UnsignedDevice));
        assert!(owner(VerificationLevel::UnverifiedIdentity));
        assert!(owner(VerificationLevel::VerificationViolation));
        assert!(!owner(VerificationLevel::MismatchedSender));
        assert!(!owner(VerificationLevel::None(DeviceLinkProblem::MissingDevice)));
        // A key from a backup or a file only claims its owner.
        assert!(!owner(VerificationLevel::None(DeviceLinkProblem::InsecureSource)));
    }

    #[test]
    fn a_timestamp_is_read_in_any_form() {
        for (given, expected) in [
            (json!(7), 7),
            (json!(7.9), 7),
            (json!("7"), 7),
            (json!(" 7.0 "), 7),
            (json!(-1), -1),
            (json!(null), 0),
            (json!([]), 0),
            (json!(1e300), i64::MAX),
        ] {
            let event = json!({"event_id": "$1", "sender": "@a:x", "type": "m.room.encrypted",
                "origin_server_ts": given, "content": {}, "unsigned": 5});
            let Stored::Encrypted(encrypted) = Stored::parse(event.to_string().as_bytes()).unwrap()
            else {
                panic!("it is encrypted")
            };
            let sent: u64 = encrypted.event.get_field("origin_server_ts").unwrap().unwrap();
            assert_eq!(sent, (expected.max(0) as u64).min(MAX_TIMESTAMP), "{given}");
            let mut event = event;
            event["type"] = json!("m.room.message");
            assert_eq!(plain(event)["timestamp"], expected, "{given}");
        }
    }
}
