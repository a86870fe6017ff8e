//! Classifies a room's events: messages to deliver, users whose devices are tracked, the bot's own
//! join. Does no I/O.

use ruma::{OwnedUserId, UserId, serde::Raw};

use crate::{
    inbox::Received,
    responses::{Fields, RawJson},
};

/// The event types that timelines are filtered for.
pub const TIMELINE_TYPES: [&str; 8] = [
    "m.room.encrypted",
    "m.room.message",
    "m.sticker",
    "m.reaction",
    "m.room.redaction",
    "m.room.member",
    "m.room.encryption",
    "m.room.tombstone",
];

/// The specification's limit. Ids are stored in index rows and sent in an HTTP header, so
/// [`storable`] enforces it, and rejects control characters (PostgreSQL's text cannot hold NUL).
const MAX_ID_LENGTH: usize = 255;

/// An event's fields, parsed lazily: a malformed field that is not needed has no effect.
struct Outline<'a> {
    event_id: String,
    sender: OwnedUserId,
    kind: String,
    state_key: Option<String>,
    fields: Fields<'a>,
}

impl<'a> Outline<'a> {
    fn read(json: &'a str) -> Option<Self> {
        let fields = RawJson::parse(json)?.fields()?;
        let text = |name: &str| fields.get(name)?.read::<String>();
        Some(Self {
            event_id: text("event_id").filter(|id| storable(id))?,
            sender: UserId::parse(text("sender")?).ok()?,
            kind: text("type").unwrap_or_default(),
            state_key: text("state_key"),
            fields,
        })
    }

    /// The string at this path, if any.
    fn text(&self, path: &[&str]) -> Option<String> {
        let (name, objects) = path.split_last()?;
        self.object(objects).get(name)?.read()
    }

    /// The fields of the object at this path; none if it is no object.
    fn object(&self, path: &[&str]) -> Fields<'a> {
        let inner = |fields: Fields<'a>, name: &&str| {
            fields.get(name).and_then(RawJson::fields).unwrap_or_default()
        };
        path.iter().fold(self.fields.clone(), inner)
    }
}

/// The kind of an event.
#[derive(Debug, PartialEq, Eq)]
pub enum Meaning {
    /// To be delivered; `redacts` is the id of the event that it redacts.
    Message { received: Received, redacts: Option<String> },
    /// The bot's own redaction of the event with this id: not delivered.
    OwnRedaction(String),
    /// The bot joined the room.
    OwnJoin,
    /// Another user joined or was invited: their devices must be tracked.
    Member { user: OwnedUserId, joined: bool },
    /// The room became encrypted.
    Encryption,
    /// Ignored: the bot's own event, or a redacted one.
    Nothing,
}

/// A classified event.
#[derive(Debug, PartialEq, Eq)]
pub struct Classified {
    pub event_id: String,
    pub sender: OwnedUserId,
    pub encrypted: bool,
    pub meaning: Meaning,
}

/// Classify an event; `None` without a valid id, sender and session id.
pub fn classify<T>(event: &Raw<T>, me: &UserId) -> Option<Classified> {
    let json = event.json().get();
    let outline = Outline::read(json)?;
    let meaning = match &outline.state_key {
        Some(state_key) => state_meaning(&outline, state_key, me),
        None => message_meaning(&outline, json, me)?,
    };
    Some(Classified {
        encrypted: outline.kind == "m.room.encrypted" && outline.fields.get("state_key").is_none(),
        event_id: outline.event_id,
        sender: outline.sender,
        meaning,
    })
}

fn state_meaning(outline: &Outline<'_>, state_key: &str, me: &UserId) -> Meaning {
    let membership = outline.text(&["content", "membership"]);
    match (outline.kind.as_str(), membership.as_deref()) {
        ("m.room.encryption", _) => Meaning::Encryption,
        ("m.room.member", Some("join")) if state_key == me => {
            // A profile change is a join event, too, but the bot was joined before.
            match outline.text(&["unsigned", "prev_content", "membership"]).as_deref() {
                Some("join") => Meaning::Nothing,
                _ => Meaning::OwnJoin,
            }
        }
        ("m.room.member", Some(membership @ ("join" | "invite"))) => {
            let joined = membership == "join";
            let member = |user| Meaning::Member { user, joined };
            UserId::parse(state_key).map_or(Meaning::Nothing, member)
        }
        _ => Meaning::Nothing,
    }
}

/// `None`: its session id cannot be stored.
fn message_meaning(outline: &Outline<'_>, json: &str, me: &UserId) -> Option<Meaning> {
    let kind = outline.kind.as_str();
    let wanted = matches!(
        kind,
        "m.room.encrypted" | "m.room.message" | "m.sticker" | "m.reaction" | "m.room.redaction"
    );
    // Redacted events have no content, and some servers omit `redacted_because`.
    let emptied = kind != "m.room.redaction" && outline.object(&["content"]).is_empty();
    let redacted = emptied || outline.object(&["unsigned"]).get("redacted_because").is_some();
    if !wanted || redacted {
        return Some(Meaning::Nothing);
    }
    // Top-level before room version 11, in the content since then.
    let redacts = outline.text(&["redacts"]).or_else(|| outline.text(&["content", "redacts"]));
    let redacts = redacts.filter(|id| kind == "m.room.redaction" && storable(id));
    if outline.sender == me {
        return Some(redacts.map_or(Meaning::Nothing, Meaning::OwnRedaction));
    }
    let session_id =
        outline.text(&["content", "session_id"]).filter(|_| kind == "m.room.encrypted");
    if session_id.as_deref().is_some_and(|id| !storable(id)) {
        return None;
    }
    let received =
        Received { event_id: outline.event_id.clone(), session_id, json: json.to_owned() };
    Some(Meaning::Message { received, redacts })
}

/// An event's id, if it has one.
pub fn event_id<T>(event: &Raw<T>) -> Option<String> {
    event.get_field("event_id").ok().flatten()
}

pub fn storable(id: &str) -> bool {
    !id.is_empty() && id.len() <= MAX_ID_LENGTH && !id.contains(char::is_control)
}

/// A classified timeline.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    pub messages: Vec<Received>,
    pub redacted: Vec<String>,
    /// Senders and new members.
    pub people: Vec<OwnedUserId>,
    /// Their devices must be tracked, too. Any member who may invite chooses them.
    pub invited: Vec<OwnedUserId>,
    pub encrypted: bool,
    /// It contains the bot's own join; earlier messages were left out.
    pub joined_here: bool,
    pub last_event_id: Option<String>,
    /// Number of events without a valid id, sender or session id.
    pub malformed: usize,
}

/// Classify a timeline, oldest event first. With `from_own_join`, messages before the bot's own join are
/// left out.
pub fn read<T>(events: &[Raw<T>], me: &UserId, from_own_join: bool) -> Timeline {
    let mut timeline = Timeline::default();
    for event in events {
        let Some(event) = classify(event, me) else {
            timeline.malformed += 1;
            continue;
        };
        timeline.last_event_id = Some(event.event_id);
        timeline.encrypted |= event.encrypted;
        match event.meaning {
            Meaning::Message { received, redacts } => {
                timeline.messages.push(received);
                timeline.redacted.extend(redacts);
                timeline.people.push(event.sender);
            }
            Meaning::OwnRedaction(event_id) => timeline.redacted.push(event_id),
            Meaning::OwnJoin if from_own_join => {
                timeline.messages.clear();
                timeline.joined_here = true;
            }
            Meaning::Member { user, joined: true } => timeline.people.push(user),
            Meaning::Member { user, joined: false } => timeline.invited.push(user),
            Meaning::Encryption => timeline.encrypted = true,
            Meaning::OwnJoin | Meaning::Nothing => {}
        }
    }
    timeline
}

/// A classified page of a gap, newest event first, up to the end of the gap.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub messages: Vec<Received>,
    pub redacted: Vec<String>,
    /// Users whose devices must be tracked: senders, and new or invited members.
    pub people: Vec<OwnedUserId>,
    /// The gap ends in this page.
    pub ended: bool,
    pub malformed: usize,
}

/// Classify a page of a gap. The gap ends at the event `stop_event_id`, or with `to_own_join` at the
/// bot's own join.
pub fn read_page<T>(
    events: &[Raw<T>],
    me: &UserId,
    stop_event_id: Option<&str>,
    to_own_join: bool,
) -> Page {
    let mut page = Page::default();
    for event in events {
        let Some(event) = classify(event, me) else {
            page.malformed += 1;
            continue;
        };
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
            Meaning::OwnRedaction(event_id) => page.redacted.push(event_id),
            Meaning::Member { user, .. } => page.people.push(user),
            _ => {}
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use ruma::{events::AnySyncTimelineEvent, user_id};
    use serde_json::{Value, json};

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
    fn messages_before_the_own_join_are_left_out() {
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
    fn own_redacted_and_malformed_events_are_left_out() {
        let me = user_id!("@bot:x");
        let mut redacted = event("$2", "@alice:x", "m.room.message", json!({}));
        redacted["unsigned"] = json!({"redacted_because": {"type": "m.room.redaction"}});
        let events = [
            raw(event("$1", "@bot:x", "m.room.message", json!({"body": "echo"}))),
            raw(redacted),
            raw(event("$\0", "@alice:x", "m.room.message", json!({}))),
            raw(event("$3", "@alice:x", "m.room.encrypted", json!({"session_id": "\0"}))),
            raw(event("$4", "@alice:x", "m.room.topic", json!({"topic": "x"}))),
            raw(event("$5", "nobody", "m.room.message", json!({}))),
            raw(json!({"type": "m.room.message"})),
            message("$6"),
        ];
        let timeline = read(&events, me, false);
        assert_eq!((ids(&timeline.messages), timeline.malformed), (vec!["$6"], 4));
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
    fn an_own_redaction_counts_and_is_no_message() {
        let me = user_id!("@bot:x");
        let own = event("$1", "@bot:x", "m.room.redaction", json!({"redacts": "$a"}));
        let mut redacted = event("$2", "@bot:x", "m.room.redaction", json!({"redacts": "$b"}));
        redacted["unsigned"] = json!({"redacted_because": {}});
        let events = [raw(own), raw(redacted)];
        let timeline = read(&events, me, false);
        assert_eq!((timeline.redacted, timeline.messages.len()), (vec!["$a".to_owned()], 0));
        let page = read_page(&events, me, None, false);
        assert_eq!((page.redacted, page.messages.len()), (vec!["$a".to_owned()], 0));
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
