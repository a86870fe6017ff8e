//! Converts a sync response to the changes that the inbox records. Does no I/O.

use std::collections::{HashMap, HashSet};

use ruma::{OwnedUserId, UserId};

use crate::{
    inbox::{KnownRoom, NewGap, RoomChange},
    responses::{Room, Sync},
    timeline,
};

/// The position a sync starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Position {
    /// No position: the account's first sync.
    First,
    At(String),
    /// No position, because the homeserver rejected the stored one; the rooms are known.
    Lost,
}

impl Position {
    pub fn since(&self) -> Option<&str> {
        match self {
            Self::At(since) => Some(since),
            Self::First | Self::Lost => None,
        }
    }
}

/// The ids of all joined and left rooms of a sync.
pub fn room_ids(sync: &Sync) -> Vec<String> {
    sync.joined.iter().chain(&sync.left).map(|(id, _)| id.clone()).collect()
}

/// The events of the rooms' timelines, each with its room.
pub fn event_ids(sync: &Sync) -> Vec<(&str, String)> {
    let rooms = sync.joined.iter().chain(&sync.left);
    let events =
        rooms.flat_map(|(id, room)| room.timeline.iter().map(|event| (id.as_str(), event)));
    events.filter_map(|(room, event)| Some((room, timeline::event_id(event)?))).collect()
}

/// The changes of each room, and the users of encrypted rooms whose devices must be tracked.
pub fn of_rooms(
    sync: &Sync,
    position: &Position,
    known: &HashMap<String, KnownRoom>,
    me: &UserId,
) -> (Vec<RoomChange>, Vec<OwnedUserId>) {
    let (mut changes, mut people) = (Vec::new(), Vec::new());
    let joined: HashSet<&str> = sync.joined.iter().map(|(id, _)| id.as_str()).collect();
    // A malformed response may list a room as both joined and left.
    let left = sync.left.iter().filter(|(id, _)| !joined.contains(id.as_str()));
    let rooms = sync.joined.iter().map(|room| (room, false)).chain(left.map(|room| (room, true)));
    for ((room_id, room), left) in rooms {
        let known = known.get(room_id).cloned().unwrap_or_default();
        // Left rooms that the bot never joined: declined or withdrawn invitations.
        if left && !known.joined && !timeline::read(&room.timeline, me, true).joined_here {
            continue;
        }
        let (change, invited) = of_room(room, position, &known, me);
        if change.encrypted || known.encrypted {
            people.extend(change.people.iter().cloned().chain(invited));
        }
        changes.push(RoomChange { room_id: room_id.clone(), left, ..change });
    }
    people.sort();
    people.dedup();
    (changes, people)
}

/// The rooms that the bot was in and has left.
pub fn left(rooms: &[RoomChange]) -> HashSet<String> {
    rooms.iter().filter(|room| room.left).map(|room| room.room_id.clone()).collect()
}

/// The changes of a room, and who was invited to it.
fn of_room(
    room: &Room,
    position: &Position,
    known: &KnownRoom,
    me: &UserId,
) -> (RoomChange, Vec<OwnedUserId>) {
    let seen = known.last_event_id.as_deref().filter(|_| known.joined);
    let mut events = room.timeline.as_slice();
    let mut limited = room.limited;
    let lost = *position == Position::Lost;
    let is_seen = |id: String| seen == Some(&id) || known.seen.contains(&id);
    if lost
        && known.joined
        && let Some(at) =
            events.iter().rposition(|event| timeline::event_id(event).is_some_and(is_seen))
    {
        // The timeline reaches back to a known event, so there is no gap.
        events = &events[at + 1..];
        limited = false;
    }
    let read = timeline::read(events, me, !known.joined || lost);
    let state = timeline::read(&room.state, me, false);
    // The first sync only determines the position: the device keys are uploaded after it, so no
    // earlier message can be encrypted for this device.
    let first = *position == Position::First;
    let gap = (limited && !first && !read.joined_here).then(|| NewGap {
        // Without a token, paging starts at the newest event.
        from_token: room.prev_batch.clone().unwrap_or_default(),
        to_token: position.since().filter(|_| known.joined).map(ToOwned::to_owned),
        stop_event_id: seen.map(ToOwned::to_owned),
    });
    let change = RoomChange {
        encrypted: read.encrypted || state.encrypted,
        members_missed: room.limited || !known.joined || lost,
        gap,
        events: if first { Vec::new() } else { read.messages },
        malformed: read.malformed,
        redacted: read.redacted,
        last_event_id: read.last_event_id,
        people: [read.people, state.people].concat(),
        ..RoomChange::default()
    };
    (change, [read.invited, state.invited].concat())
}

#[cfg(test)]
mod tests {
    use ruma::user_id;
    use serde_json::{Value, json};

    use super::*;
    use crate::responses::{ParseResponse, RawJson};

    fn sync(rooms: Value) -> Sync {
        let body = json!({"next_batch": "s2", "rooms": rooms}).to_string();
        let body = RawJson::parse(&body).unwrap();
        Sync::read(body, &body.fields().unwrap()).unwrap()
    }

    fn at(since: Option<&str>) -> Position {
        since.map_or(Position::First, |since| Position::At(since.to_owned()))
    }

    fn room(limited: bool, events: Value) -> Value {
        json!({"timeline": {"limited": limited, "prev_batch": "p1", "events": events}})
    }

    fn message(id: &str) -> Value {
        json!({"event_id": id, "sender": "@alice:x", "type": "m.room.encrypted",
               "origin_server_ts": 1, "content": {"session_id": "S"}})
    }

    fn join() -> Value {
        json!({"event_id": "$join", "sender": "@bot:x", "type": "m.room.member",
               "origin_server_ts": 1, "state_key": "@bot:x", "content": {"membership": "join"}})
    }

    fn known() -> HashMap<String, KnownRoom> {
        let last_event_id = Some("$0".to_owned());
        let room =
            KnownRoom { joined: true, encrypted: true, last_event_id, ..KnownRoom::default() };
        HashMap::from([("!r:x".to_owned(), room)])
    }

    fn one(rooms: Value, since: Option<&str>, known: &HashMap<String, KnownRoom>) -> RoomChange {
        let (mut changes, _) = of_rooms(&sync(rooms), &at(since), known, user_id!("@bot:x"));
        assert_eq!(changes.len(), 1);
        changes.remove(0)
    }

    #[test]
    fn the_first_sync_delivers_nothing() {
        let rooms = json!({"join": {"!r:x": room(true, json!([message("$1")]))}});
        let change = one(rooms, None, &HashMap::new());
        assert_eq!((change.events.len(), change.gap), (0, None));
        assert_eq!(change.last_event_id.as_deref(), Some("$1"));
        assert!(change.encrypted);
    }

    #[test]
    fn a_gap_in_a_known_room_reaches_back_to_what_was_seen() {
        let rooms = json!({"join": {"!r:x": room(true, json!([message("$9")]))}});
        let change = one(rooms, Some("s1"), &known());
        let gap = NewGap {
            from_token: "p1".to_owned(),
            to_token: Some("s1".to_owned()),
            stop_event_id: Some("$0".to_owned()),
        };
        assert_eq!(change.gap, Some(gap));
        assert!(change.members_missed);
        assert_eq!(change.events.len(), 1);
    }

    #[test]
    fn a_gap_in_a_new_room_reaches_back_to_our_join() {
        let rooms = json!({"join": {"!r:x": room(true, json!([message("$9")]))}});
        let gap = one(rooms, Some("s1"), &HashMap::new()).gap.unwrap();
        assert_eq!((gap.to_token, gap.stop_event_id), (None, None));
        let rooms =
            json!({"join": {"!r:x": room(true, json!([message("$1"), join(), message("$2")]))}});
        let change = one(rooms, Some("s1"), &HashMap::new());
        assert_eq!((change.gap, change.events.len()), (None, 1));
    }

    #[test]
    fn final_messages_of_a_left_room_count_unless_it_was_never_joined() {
        let rooms = json!({"leave": {"!r:x": room(false, json!([message("$1")]))}});
        let change = one(rooms.clone(), Some("s1"), &known());
        assert!(change.left);
        assert_eq!(change.events.len(), 1);
        let (changes, _) =
            of_rooms(&sync(rooms), &at(Some("s1")), &HashMap::new(), user_id!("@bot:x"));
        assert!(changes.is_empty());
    }

    #[test]
    fn users_are_tracked_in_encrypted_rooms_only() {
        let plain = json!({"event_id": "$1", "sender": "@alice:x", "type": "m.room.message",
                           "origin_server_ts": 1, "content": {"body": "hi"}});
        let rooms = json!({"join": {"!plain:x": room(false, json!([plain])),
                                    "!r:x": room(false, json!([message("$2"), message("$3")]))}});
        let (_, people) = of_rooms(&sync(rooms), &at(Some("s1")), &known(), user_id!("@bot:x"));
        assert_eq!(people, ["@alice:x"]);
    }

    #[test]
    fn a_gap_without_a_token_begins_at_the_newest_event() {
        let mut malformed = room(true, json!([message("$9")]));
        malformed["timeline"]["prev_batch"] = Value::Null;
        let gap = one(json!({"join": {"!r:x": malformed}}), Some("s1"), &known()).gap.unwrap();
        assert_eq!(gap.from_token, "");
    }

    #[test]
    fn without_the_position_a_known_room_is_filled_back_to_its_last_event() {
        let lost = |events: Value| {
            let rooms = json!({"join": {"!r:x": room(true, events)}});
            let me = user_id!("@bot:x");
            of_rooms(&sync(rooms), &Position::Lost, &known(), me).0.remove(0)
        };
        let change = lost(json!([message("$8"), message("$9")]));
        let gap = change.gap.unwrap();
        assert_eq!((gap.to_token, gap.stop_event_id.as_deref()), (None, Some("$0")));
        assert_eq!(change.events.len(), 2);
        assert!(change.members_missed);
        // The last known event is in the response: nothing is missing.
        let change = lost(json!([message("$-1"), message("$0"), message("$1")]));
        assert_eq!((change.gap, change.events.len()), (None, 1));
    }
}
