//! What the webhook is sent.

use matrix_sdk_common::deserialized_responses::{
    DeviceLinkProblem, VerificationLevel, VerificationState,
};
use matrix_sdk_crypto::types::events::room::encrypted::EncryptedEvent;
use ruma::{events::AnyTimelineEvent, serde::Raw};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The JSON body of a delivery. The README describes each field: change both.
#[derive(Debug, Serialize)]
pub struct Message {
    pub event_id: String,
    pub room_id: String,
    pub sender: String,
    /// Milliseconds since 1970, as the sender's homeserver says.
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
}

/// A stored event: to be decrypted, or plain.
pub enum Stored {
    Encrypted(Raw<EncryptedEvent>),
    Plain(Outline),
}

/// The parts of an event that a message is made of.
#[derive(Debug, Deserialize)]
pub struct Outline {
    event_id: String,
    sender: String,
    #[serde(default)]
    origin_server_ts: i64,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    content: Value,
    redacts: Option<String>,
}

impl Stored {
    pub fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        let outline: Outline = serde_json::from_slice(json)?;
        if outline.kind == "m.room.encrypted" {
            return Ok(Self::Encrypted(Raw::from_json(serde_json::from_slice(json)?)));
        }
        Ok(Self::Plain(outline))
    }
}

impl Message {
    /// A message that was never encrypted.
    pub fn plain(room_id: &str, outline: Outline) -> Self {
        Self::new(room_id, outline, false, "unencrypted")
    }

    /// A decrypted message; `None` if it is no message for people but a step of a verification.
    pub fn decrypted(
        room_id: &str,
        event: &Raw<AnyTimelineEvent>,
        verification: &'static str,
        sender_device: Option<String>,
    ) -> Result<Option<Self>, serde_json::Error> {
        let outline: Outline = event.deserialize_as_unchecked()?;
        let request = outline.content["msgtype"] == "m.key.verification.request";
        if request || outline.kind.starts_with("m.key.verification.") {
            return Ok(None);
        }
        let message = Self::new(room_id, outline, true, verification);
        Ok(Some(Self { sender_device, ..message }))
    }

    fn new(room_id: &str, outline: Outline, encrypted: bool, verification: &'static str) -> Self {
        let mut content = outline.content;
        // Where room version 11 puts it, whatever the room's version.
        if let (Some(redacts), Some(content)) = (outline.redacts, content.as_object_mut()) {
            content.entry("redacts").or_insert(redacts.into());
        }
        Self {
            event_id: outline.event_id,
            room_id: room_id.to_owned(),
            sender: outline.sender,
            timestamp: outline.origin_server_ts,
            kind: outline.kind,
            body: content["body"].as_str().unwrap_or_default().to_owned(),
            content,
            encrypted,
            verification,
            sender_device: None,
        }
    }
}

/// How far the sender was verified; `None` if the claimed sender is not the owner of the key, so
/// that the message must not be delivered under that name.
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
    use serde_json::json;

    use super::*;

    fn plain(event: Value) -> Value {
        match Stored::parse(event.to_string().as_bytes()).unwrap() {
            Stored::Plain(outline) => {
                serde_json::to_value(Message::plain("!r:x", outline)).unwrap()
            }
            Stored::Encrypted(_) => unreachable!("not encrypted"),
        }
    }

    #[test]
    fn a_message_carries_what_the_readme_promises() {
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
    fn a_redaction_says_what_it_takes_back_in_one_place() {
        let message = plain(json!({"event_id": "$2", "sender": "@a:x", "type": "m.room.redaction",
            "origin_server_ts": 7, "content": {"reason": "typo"}, "redacts": "$1"}));
        assert_eq!(message["content"], json!({"reason": "typo", "redacts": "$1"}));
        assert_eq!(message["body"], "");
    }

    #[test]
    fn a_foreign_key_is_never_delivered_under_the_claimed_name() {
        let level = VerificationLevel::MismatchedSender;
        assert_eq!(verification(&VerificationState::Unverified(level)), None);
        let level = VerificationLevel::None(DeviceLinkProblem::MissingDevice);
        assert_eq!(verification(&VerificationState::Unverified(level)), Some("unknown_device"));
    }
}
