//! What a room's events mean to the bridge: which are delivered, whose devices matter, where our own
//! membership begins. Nothing here does I/O.

use ruma::{OwnedUserId, UserId, serde::Raw};

use crate::{
    answers::{Fields, Piece},
    inbox::Received,
};

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

/// An event's fields, each read when it is needed: what is odd elsewhere costs nothing.
struct Outline<'a> {
    event_id: String,
    sender: OwnedUserId,
    kind: String,
    state_key: Option<String>,
    fields: Fields<'a>,
}

impl<'a> Outline<'a> {
    fn read(json: &'a str) -> Option<Self> {
        let fields = Piece::parse(json)?.fields()?;
        let text = |name: &str| fields.get(name)?.read::<String>();
        Some(Self {
            event_id: text("event_id").filter(|id| storable(id))?,
            sender: UserId::parse(text("sender")?).ok()?,
            kind: text("type").unwrap_or_default(),
            state_key: text("state_key"),
            fields,
        })
    }

    /// The text at this place, if there is one.
    fn text(&self, place: &[&str]) -> Option<String> {
        let (name, objects) = place.split_last()?;
        self.object(objects).get(name)?.read()
    }

    /// The fields of the object at this place, none if there is no object.
    fn object(&self, place: &[&str]) -> Fields<'a> {
        let inner = |fields: Fields<'a>, name: &&str| {
            fields.get(name).and_then(Piece::fields).unwrap_or_default()
        };
        place.iter().fold(self.fields.clone(), inner)
    }
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

/// Look at one event; `None` if it is too malformed to have an id and a sender.
pub fn classify<T>(event: &Raw<T>, me: &UserId) -> Option<Classified> {
    let json = event.json().get();
    let outline = Outline::read(json)?;
    let meaning = match &outline.state_key {
        Some(state_key) => state_meaning(&outline, state_key, me),
        None => message_meaning(&outline, json, me),
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
            // A change of our name or picture is a join, too, but not one into the room.
            match outline.text(&["unsigned", "prev_content", "membership"]).as_deref() {
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

fn message_meaning(outline: &Outline<'_>, json: &str, me: &UserId) -> Meaning {
    let kind = outline.kind.as_str();
    let wanted =
        matches!(kind, "m.room.encrypted" | "m.room.message" | "m.sticker" | "m.room.redaction");
    // A redaction leaves nothing of a message's content, and some servers do not say whose it was.
    let emptied = kind != "m.room.redaction" && outline.object(&["content"]).is_empty();
    let redacted = emptied || outline.object(&["unsigned"]).get("redacted_because").is_some();
    if !wanted || redacted || outline.sender == me {
        return Meaning::Nothing;
    }
    let session_id =
        outline.text(&["content", "session_id"]).filter(|_| kind == "m.room.encrypted");
    if session_id.as_deref().is_some_and(|id| !storable(id)) {
        return Meaning::Nothing;
    }
    // Before room version 11 at the top, since then in the content.
    let redacts = outline.text(&["redacts"]).or_else(|| outline.text(&["content", "redacts"]));
    let redacts = redacts.filter(|id| kind == "m.room.redaction" && storable(id));
    let received =
        Received { event_id: outline.event_id.clone(), session_id, json: json.to_owned() };
    Meaning::Message { received, redacts }
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
    /// How many events had no id or no sender that can be read.
    pub unreadable: usize,
}

/// Sort out a timeline, oldest event first. With `from_own_join`, what was before it is left out.
pub fn read<T>(events: &[Raw<T>], me: &UserId, from_own_join: bool) -> Timeline {
    let mut timeline = Timeline::default();
    for event in events {
        let Some(event) = classify(event, me) else {
            timeline.unreadable += 1;
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
    pub unreadable: usize,
}

/// Sort out a page of a gap that ends at an event seen before, or at our own join.
pub fn read_page<T>(
    events: &[Raw<T>],
    me: &UserId,
    stop_event_id: Option<&str>,
    to_own_join: bool,
) -> Page {
    let mut page = Page::default();
    for event in events {
        let Some(event) = classify(event, me) else {
            page.unreadable += 1;
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
            Meaning::Member(user) => page.people.push(user),
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
        let timeline = read(&events, me, false);
        assert_eq!((ids(&timeline.messages), timeline.unreadable), (vec!["$6"], 3));
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
