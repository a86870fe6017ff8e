//! What a room's events mean to the bridge: which are delivered, whose devices matter, where our own
//! membership begins. Nothing here does I/O.

use ruma::{OwnedUserId, UserId, serde::Raw};
use serde::Deserialize;
use serde_json::Value;

use crate::{answers::malformed, inbox::Received};

/// The event types that the bridge asks the homeserver for, in timelines.
pub const TIMELINE_TYPES: [&str; 6] = [
    "m.room.encrypted",
    "m.room.message",
    "m.sticker",
    "m.room.redaction",
    "m.room.member",
    "m.room.encryption",
];

/// By the specification. PostgreSQL's text cannot hold NUL, an index row has a limit, and the id must
/// fit into an HTTP header: whoever sends other ids sends garbage.
const LONGEST_ID: usize = 255;

#[derive(Deserialize)]
struct Outline {
    event_id: String,
    sender: OwnedUserId,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    state_key: Value,
    #[serde(default)]
    redacts: Value,
    #[serde(default)]
    content: Value,
    #[serde(default)]
    unsigned: Value,
}

/// What one event means to the bridge.
#[derive(Debug, PartialEq, Eq)]
pub enum Meaning {
    /// To be delivered; `redacts` names an event that is taken back by it.
    Message { received: Received, redacts: Option<String> },
    /// We joined the room.
    OwnJoin,
    /// Somebody joined, or was invited: their devices matter.
    Member(OwnedUserId),
    /// The room became encrypted.
    Encryption,
    /// Nothing: an own echo, a redacted event, garbage.
    Nothing,
}

/// An event with what is needed of it whatever its meaning.
#[derive(Debug, PartialEq, Eq)]
pub struct Classified {
    pub event_id: String,
    pub sender: OwnedUserId,
    pub encrypted: bool,
    pub meaning: Meaning,
}

/// Look at one event; `None` if it is too malformed to have an id.
pub fn classify<T>(event: &Raw<T>, me: &UserId) -> Option<Classified> {
    let outline = event.deserialize_as_unchecked().ok();
    let Some(outline) = outline.filter(|outline: &Outline| storable(&outline.event_id)) else {
        malformed("an event");
        return None;
    };
    let meaning = match outline.state_key.as_str() {
        Some(state_key) => state_meaning(&outline, state_key, me),
        None => message_meaning(&outline, event.json().get(), me),
    };
    Some(Classified {
        encrypted: outline.kind == "m.room.encrypted" && outline.state_key.is_null(),
        event_id: outline.event_id,
        sender: outline.sender,
        meaning,
    })
}

fn state_meaning(outline: &Outline, state_key: &str, me: &UserId) -> Meaning {
    match (outline.kind.as_str(), outline.content["membership"].as_str()) {
        ("m.room.encryption", _) => Meaning::Encryption,
        ("m.room.member", Some("join")) if state_key == me => {
            // A change of our name or picture is a join, too, but not one into the room.
            match outline.unsigned["prev_content"]["membership"].as_str() {
                Some("join") => Meaning::Nothing,
                _ => Meaning::OwnJoin,
            }
        }
        ("m.room.member", Some("join" | "invite")) => {
            UserId::parse(state_key).map_or(Meaning::Nothing, Meaning::Member)
        }
        _ => Meaning::Nothing,
    }
}

fn message_meaning(outline: &Outline, json: &str, me: &UserId) -> Meaning {
    let wanted = matches!(
        outline.kind.as_str(),
        "m.room.encrypted" | "m.room.message" | "m.sticker" | "m.room.redaction"
    );
    // A redaction leaves nothing of a message's content, and some servers do not say whose it was.
    let emptied = outline.kind != "m.room.redaction"
        && outline.content.as_object().is_none_or(serde_json::Map::is_empty);
    let redacted = emptied || !outline.unsigned["redacted_because"].is_null();
    if !wanted || redacted || outline.sender == me {
        return Meaning::Nothing;
    }
    let session_id =
        outline.content["session_id"].as_str().filter(|_| outline.kind == "m.room.encrypted");
    if session_id.is_some_and(|id| !storable(id)) {
        return Meaning::Nothing;
    }
    // Before room version 11 at the top, since then in the content.
    let redacts = outline.redacts.as_str().or(outline.content["redacts"].as_str());
    let redacts = redacts.filter(|id| outline.kind == "m.room.redaction" && storable(id));
    Meaning::Message {
        received: Received {
            event_id: outline.event_id.clone(),
            session_id: session_id.map(ToOwned::to_owned),
            json: json.to_owned(),
        },
        redacts: redacts.map(ToOwned::to_owned),
    }
}

/// An event's id, if it has one.
pub fn event_id<T>(event: &Raw<T>) -> Option<String> {
    event.get_field("event_id").ok().flatten()
}

pub fn storable(id: &str) -> bool {
    !id.is_empty() && id.len() <= LONGEST_ID && !id.contains(char::is_control)
}

/// A timeline, sorted out.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    pub messages: Vec<Received>,
    pub redacted: Vec<String>,
    /// Whose devices matter: senders, and who joined or was invited.
    pub people: Vec<OwnedUserId>,
    pub encrypted: bool,
    /// Our own join is in it; everything before was left out.
    pub joined_here: bool,
    pub last_event_id: Option<String>,
}

/// Sort out a timeline, oldest event first. With `from_own_join`, what was before it is left out.
pub fn read<T>(events: &[Raw<T>], me: &UserId, from_own_join: bool) -> Timeline {
    let mut timeline = Timeline::default();
    for event in events.iter().filter_map(|event| classify(event, me)) {
        timeline.last_event_id = Some(event.event_id);
        timeline.encrypted |= event.encrypted;
        match event.meaning {
            Meaning::Message { received, redacts } => {
                timeline.messages.push(received);
                timeline.redacted.extend(redacts);
                timeline.people.push(event.sender);
            }
            Meaning::OwnJoin if from_own_join => {
                timeline.messages.clear();
                timeline.joined_here = true;
            }
            Meaning::Member(user) => timeline.people.push(user),
            Meaning::Encryption => timeline.encrypted = true,
            Meaning::OwnJoin | Meaning::Nothing => {}
        }
    }
    timeline
}

/// One page of a gap, newest event first, up to where the gap ends.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub messages: Vec<Received>,
    pub redacted: Vec<String>,
    pub people: Vec<OwnedUserId>,
    /// The gap ends in this page.
    pub ended: bool,
}

/// Sort out a page of a gap that ends at an event seen before, or at our own join.
pub fn read_page<T>(
    events: &[Raw<T>],
    me: &UserId,
    stop_event_id: Option<&str>,
    to_own_join: bool,
) -> Page {
    let mut page = Page::default();
    for event in events.iter().filter_map(|event| classify(event, me)) {
        if stop_event_id == Some(event.event_id.as_str()) {
            page.ended = true;
            break;
        }
        match event.meaning {
            Meaning::OwnJoin if to_own_join => {
                page.ended = true;
                break;
            }
            Meaning::Message { received, redacts } => {
                page.messages.push(received);
                page.redacted.extend(redacts);
                page.people.push(event.sender);
            }
            Meaning::Member(user) => page.people.push(user),
            _ => {}
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use ruma::{events::AnySyncTimelineEvent, user_id};
    use serde_json::json;

    use super::*;

    fn raw(value: Value) -> Raw<AnySyncTimelineEvent> {
        Raw::from_json(serde_json::value::to_raw_value(&value).unwrap())
    }

    fn event(id: &str, sender: &str, kind: &str, content: Value) -> Value {
        json!({"event_id": id, "sender": sender, "type": kind, "content": content,
               "origin_server_ts": 1})
    }

    fn message(id: &str) -> Raw<AnySyncTimelineEvent> {
        raw(event(id, "@alice:x", "m.room.encrypted", json!({"session_id": "S"})))
    }

    fn join(id: &str, previous: Option<&str>) -> Raw<AnySyncTimelineEvent> {
        let mut join = event(id, "@bot:x", "m.room.member", json!({"membership": "join"}));
        join["state_key"] = json!("@bot:x");
        if let Some(previous) = previous {
            join["unsigned"] = json!({"prev_content": {"membership": previous}});
        }
        raw(join)
    }

    fn ids(messages: &[Received]) -> Vec<&str> {
        messages.iter().map(|message| message.event_id.as_str()).collect()
    }

    #[test]
    fn what_was_sent_before_we_joined_is_left_out() {
        let me = user_id!("@bot:x");
        let events =
            [message("$1"), join("$2", Some("invite")), message("$3"), join("$4", Some("join"))];
        let timeline = read(&events, me, true);
        assert_eq!(ids(&timeline.messages), ["$3"]);
        assert!(timeline.joined_here && timeline.encrypted);
        assert_eq!(timeline.last_event_id.as_deref(), Some("$4"));
        assert_eq!(ids(&read(&events, me, false).messages), ["$1", "$3"]);
    }

    #[test]
    fn own_echoes_redacted_events_and_garbage_are_left_out() {
        let me = user_id!("@bot:x");
        let mut redacted = event("$2", "@alice:x", "m.room.message", json!({}));
        redacted["unsigned"] = json!({"redacted_because": {"type": "m.room.redaction"}});
        let events = [
            raw(event("$1", "@bot:x", "m.room.message", json!({"body": "echo"}))),
            raw(redacted),
            raw(event("$\0", "@alice:x", "m.room.message", json!({}))),
            raw(event("$3", "@alice:x", "m.room.encrypted", json!({"session_id": "\0"}))),
            raw(event("$4", "@alice:x", "m.reaction", json!({}))),
            raw(event("$5", "nobody", "m.room.message", json!({}))),
            raw(json!({"type": "m.room.message"})),
            message("$6"),
        ];
        assert_eq!(ids(&read(&events, me, false).messages), ["$6"]);
    }

    #[test]
    fn redactions_of_both_forms_name_their_event() {
        let me = user_id!("@bot:x");
        let mut old = event("$1", "@alice:x", "m.room.redaction", json!({}));
        old["redacts"] = json!("$a");
        let new = event("$2", "@alice:x", "m.room.redaction", json!({"redacts": "$b"}));
        let message = event("$3", "@alice:x", "m.room.message", json!({"redacts": "$c"}));
        let timeline = read(&[raw(old), raw(new), raw(message)], me, false);
        assert_eq!(timeline.redacted, ["$a", "$b"]);
        assert_eq!(timeline.messages.len(), 3);
    }

    #[test]
    fn a_page_ends_at_the_last_event_seen_or_at_our_join() {
        let me = user_id!("@bot:x");
        let page = [message("$5"), message("$4"), join("$3", None), message("$2"), message("$1")];
        let seen = read_page(&page, me, Some("$2"), false);
        assert_eq!((ids(&seen.messages), seen.ended), (vec!["$5", "$4"], true));
        let joined = read_page(&page, me, None, true);
        assert_eq!((ids(&joined.messages), joined.ended), (vec!["$5", "$4"], true));
        let all = read_page(&page, me, Some("$0"), false);
        assert_eq!((all.messages.len(), all.people.len(), all.ended), (4, 4, false));
    }
}
