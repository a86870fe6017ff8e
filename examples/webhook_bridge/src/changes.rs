//! From a sync's answer to what the inbox records. Nothing here does I/O.

use std::collections::HashMap;

use ruma::{
    OwnedUserId, UserId,
    api::client::sync::sync_events::v3::{Response, State, Timeline},
};

use crate::{
    inbox::{KnownRoom, NewGap, RoomChange},
    timeline,
};

/// The rooms a sync speaks of.
pub fn room_ids(sync: &Response) -> Vec<String> {
    sync.rooms.join.keys().chain(sync.rooms.leave.keys()).map(ToString::to_string).collect()
}

/// What changed in the rooms, and the people in encrypted ones whose devices matter. `since` is the
/// position the sync began from.
pub fn of_rooms(
    sync: &Response,
    since: Option<&str>,
    known: &HashMap<String, KnownRoom>,
    me: &UserId,
) -> (Vec<RoomChange>, Vec<OwnedUserId>) {
    let (mut changes, mut people) = (Vec::new(), Vec::new());
    let joined = sync.rooms.join.iter().map(|(id, room)| (id, &room.timeline, &room.state, false));
    let left = sync.rooms.leave.iter().map(|(id, room)| (id, &room.timeline, &room.state, true));
    // Each room once, whatever the homeserver says.
    let left = left.filter(|(id, ..)| !sync.rooms.join.contains_key(*id));
    for (room_id, timeline, state, left) in joined.chain(left) {
        let known = known.get(room_id.as_str()).cloned().unwrap_or_default();
        // What happened in a room that we never were in does not concern us.
        if left && !known.joined {
            continue;
        }
        let (change, members) = of_room(timeline, state, since, &known, me);
        if change.encrypted || known.encrypted {
            people.extend(members);
        }
        changes.push(RoomChange { room_id: room_id.to_string(), left, ..change });
    }
    people.sort();
    people.dedup();
    (changes, people)
}

fn of_room(
    timeline: &Timeline,
    state: &State,
    since: Option<&str>,
    known: &KnownRoom,
    me: &UserId,
) -> (RoomChange, Vec<OwnedUserId>) {
    let read = timeline::read(&timeline.events, me, !known.joined);
    let state = match state {
        State::Before(state) | State::After(state) => timeline::read(&state.events, me, false),
        _ => timeline::Timeline::default(),
    };
    // The first sync of all only finds out where we stand: our keys are uploaded after it, so
    // nothing that came before can have been encrypted for us.
    let first = since.is_none();
    let gap = (timeline.limited && !first && !read.joined_here)
        .then(|| {
            Some(NewGap {
                from_token: timeline.prev_batch.clone()?,
                to_token: since.filter(|_| known.joined).map(ToOwned::to_owned),
                stop_event_id: known.last_event_id.clone().filter(|_| known.joined),
            })
        })
        .flatten();
    let change = RoomChange {
        encrypted: read.encrypted || state.encrypted,
        members_missed: timeline.limited || !known.joined,
        gap,
        events: if first { Vec::new() } else { read.messages },
        redacted: read.redacted,
        last_event_id: read.last_event_id,
        ..RoomChange::default()
    };
    (change, [read.people, state.people].concat())
}

#[cfg(test)]
mod tests {
    use ruma::{api::IncomingResponse, user_id};
    use serde_json::{Value, json};

    use super::*;

    fn sync(rooms: Value) -> Response {
        let body = json!({"next_batch": "s2", "rooms": rooms}).to_string();
        Response::try_from_http_response(http::Response::new(body.into_bytes())).unwrap()
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
        let room = KnownRoom { joined: true, encrypted: true, last_event_id };
        HashMap::from([("!r:x".to_owned(), room)])
    }

    fn one(rooms: Value, since: Option<&str>, known: &HashMap<String, KnownRoom>) -> RoomChange {
        let (mut changes, _) = of_rooms(&sync(rooms), since, known, user_id!("@bot:x"));
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
    fn the_last_words_in_a_room_we_left_count_but_not_in_one_we_never_joined() {
        let rooms = json!({"leave": {"!r:x": room(false, json!([message("$1")]))}});
        let change = one(rooms.clone(), Some("s1"), &known());
        assert!(change.left);
        assert_eq!(change.events.len(), 1);
        let (changes, _) = of_rooms(&sync(rooms), Some("s1"), &HashMap::new(), user_id!("@bot:x"));
        assert!(changes.is_empty());
    }

    #[test]
    fn people_are_followed_in_encrypted_rooms_only() {
        let plain = json!({"event_id": "$1", "sender": "@alice:x", "type": "m.room.message",
                           "origin_server_ts": 1, "content": {"body": "hi"}});
        let rooms = json!({"join": {"!plain:x": room(false, json!([plain])),
                                    "!r:x": room(false, json!([message("$2"), message("$3")]))}});
        let (_, people) = of_rooms(&sync(rooms), Some("s1"), &known(), user_id!("@bot:x"));
        assert_eq!(people, ["@alice:x"]);
    }
}
