//! How a message relates to another one: edits, replies, threads, reactions, redactions.

use serde::Serialize;
use serde_json::Value;

/// The relation of a message. The README has a sample of each kind: change both.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Relation {
    /// `edit`, `reply`, `thread`, `reaction` or `redaction`.
    pub kind: &'static str,
    /// The other event; of a thread, its root.
    pub event_id: String,
    /// The new text of an edit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// The emoji or text of a reaction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The event of the thread that a message replies to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_reply_to: Option<String>,
}

impl Relation {
    /// The relation that a content describes, if it is one of those.
    pub fn of(kind: &str, content: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
        if kind == "m.room.redaction" {
            let event_id = text(&content["redacts"])?;
            return Some(Self { kind: "redaction", event_id, ..Self::default() });
        }
        let relation = &content["m.relates_to"];
        let reply = text(&relation["m.in_reply_to"]["event_id"]);
        let Some(relation_type) = relation["rel_type"].as_str() else {
            return Some(Self { kind: "reply", event_id: reply?, ..Self::default() });
        };
        let event_id = text(&relation["event_id"])?;
        Some(match relation_type {
            "m.replace" => {
                let body = text(&content["m.new_content"]["body"]);
                Self { kind: "edit", event_id, body, ..Self::default() }
            }
            "m.thread" => {
                // Clients without threads show the last message as replied to.
                let fallback = relation["is_falling_back"] == true;
                let in_reply_to = reply.filter(|_| !fallback);
                Self { kind: "thread", event_id, in_reply_to, ..Self::default() }
            }
            "m.annotation" => {
                let key = text(&relation["key"]);
                Self { kind: "reaction", event_id, key, ..Self::default() }
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn relation(content: Value) -> Value {
        serde_json::to_value(Relation::of("m.room.message", &content)).unwrap()
    }

    #[test]
    fn each_kind_is_recognised() {
        let edit = json!({"body": "* new", "m.new_content": {"body": "new"},
            "m.relates_to": {"rel_type": "m.replace", "event_id": "$1"}});
        assert_eq!(relation(edit), json!({"kind": "edit", "event_id": "$1", "body": "new"}));
        let reply = json!({"m.relates_to": {"m.in_reply_to": {"event_id": "$1"}}});
        assert_eq!(relation(reply), json!({"kind": "reply", "event_id": "$1"}));
        let thread = |fallback: bool| {
            json!({"m.relates_to": {"rel_type": "m.thread", "event_id": "$1",
                "is_falling_back": fallback, "m.in_reply_to": {"event_id": "$2"}}})
        };
        assert_eq!(relation(thread(true)), json!({"kind": "thread", "event_id": "$1"}));
        let with_reply = json!({"kind": "thread", "event_id": "$1", "in_reply_to": "$2"});
        assert_eq!(relation(thread(false)), with_reply);
        let reaction = json!({"m.relates_to":
            {"rel_type": "m.annotation", "event_id": "$1", "key": "👍"}});
        assert_eq!(relation(reaction), json!({"kind": "reaction", "event_id": "$1", "key": "👍"}));
        let redaction = Relation::of("m.room.redaction", &json!({"redacts": "$1"})).unwrap();
        assert_eq!((redaction.kind, redaction.event_id.as_str()), ("redaction", "$1"));
    }

    #[test]
    fn malformed_and_other_relations_are_none() {
        for content in [
            json!({}),
            json!({"m.relates_to": 7}),
            json!({"m.relates_to": {"rel_type": "m.replace"}}),
            json!({"m.relates_to": {"rel_type": "m.replace", "event_id": 7}}),
            json!({"m.relates_to": {"rel_type": "m.reference", "event_id": "$1"}}),
            json!(null),
        ] {
            assert_eq!(relation(content), json!(null));
        }
        assert_eq!(Relation::of("m.room.redaction", &json!({})), None);
    }
}
