//! Reads what a sync says of the bot's place in its rooms: upgrades of rooms, and its own removal.

use std::collections::HashSet;

use ruma::{RoomId, UserId};
use tracing::{info, warn};

use crate::{
    responses::{Event, Fields, RawJson, Room, Sync},
    run::Run,
    timeline::storable,
    untrusted::shortened,
};

/// The replacement of an upgraded room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upgrade {
    pub room_id: String,
    pub replacement: String,
    /// Who upgraded the room: the replacement is joined through that user's server.
    pub by: String,
}

/// Another user removed the bot from a room.
#[derive(Debug, PartialEq, Eq)]
struct Removal {
    by: String,
    banned: bool,
    reason: String,
}

/// The replacements that the joined rooms of a sync name.
pub fn upgrades(sync: &Sync) -> Vec<Upgrade> {
    sync.joined.iter().filter_map(|(room_id, room)| upgrade(room_id, room)).collect()
}

fn upgrade(room_id: &str, room: &Room) -> Option<Upgrade> {
    let tombstone = |event: &Event| {
        let state = State::read(event, "m.room.tombstone")?;
        let replacement = state.text("replacement_room")?;
        let valid = storable(&replacement) && RoomId::parse(&replacement).is_ok();
        (state.state_key.is_empty() && valid && replacement != room_id).then(|| Upgrade {
            room_id: room_id.to_owned(),
            replacement,
            by: state.sender,
        })
    };
    room.state.iter().chain(&room.timeline).filter_map(tombstone).next_back()
}

/// Log and count the rooms that the bot was removed from, of those that it was in and has `left`.
pub fn report_removals(run: &Run, sync: &Sync, left: &HashSet<String>) {
    for (room_id, room) in sync.left.iter().filter(|(room_id, _)| left.contains(room_id)) {
        let Some(Removal { by, banned, reason }) = removal(room, &run.config.user_id) else {
            info!(room = room_id, "the bot has left a room");
            continue;
        };
        let (what, kind) = if banned { ("banned from", "ban") } else { ("kicked from", "kick") };
        warn!(
            room = room_id,
            by, reason, "the bot was {what} a room: what it received before is still delivered"
        );
        run.metrics.removed(kind);
    }
}

fn removal(room: &Room, me: &UserId) -> Option<Removal> {
    let members = room.state.iter().chain(&room.timeline);
    let mut members = members.filter_map(|event| State::read(event, "m.room.member"));
    let last = members.rfind(|member| member.state_key == me.as_str())?;
    let banned = match last.text("membership")?.as_str() {
        "ban" => true,
        "leave" if last.sender != me.as_str() => false,
        _ => return None,
    };
    let reason = shortened(&last.text("reason").unwrap_or_default());
    Some(Removal { by: last.sender, banned, reason })
}

/// A state event of one type.
struct State<'a> {
    sender: String,
    state_key: String,
    content: Fields<'a>,
}

impl<'a> State<'a> {
    fn read(event: &'a Event, kind: &str) -> Option<Self> {
        let fields = RawJson::parse(event.json().get())?.fields()?;
        let text = |name: &str| fields.get(name)?.read::<String>();
        let wanted = text("type")? == kind;
        let sender = UserId::parse(text("sender")?).ok()?.to_string();
        let content = fields.get("content").and_then(RawJson::fields)?;
        wanted.then_some(Self { sender, state_key: text("state_key")?, content })
    }

    fn text(&self, name: &str) -> Option<String> {
        self.content.get(name)?.read()
    }
}

#[cfg(test)]
mod tests {
    use ruma::user_id;
    use serde_json::{Value, json, value::to_raw_value};

    use super::*;

    fn event(kind: &str, sender: &str, state_key: &str, content: Value) -> Event {
        let event = json!({"type": kind, "sender": sender, "state_key": state_key,
            "content": content});
        Event::from_json(to_raw_value(&event).unwrap())
    }

    #[test]
    fn the_last_valid_tombstone_counts() {
        let tombstone = |state_key: &str, to: &str| {
            event("m.room.tombstone", "@a:x", state_key, json!({"replacement_room": to}))
        };
        let room = |timeline| Room { timeline, ..Room::default() };
        let named =
            room(vec![tombstone("", "!n:x"), tombstone("", "malformed"), tombstone("k", "!k:x")]);
        let id = |id: &str| id.to_owned();
        let expected = Upgrade { room_id: id("!r:x"), replacement: id("!n:x"), by: id("@a:x") };
        assert_eq!(upgrade("!r:x", &named), Some(expected));
        assert_eq!(upgrade("!r:x", &room(vec![tombstone("", "!r:x")])), None);
    }

    #[test]
    fn kicks_and_bans_are_told_from_leaving() {
        let me = user_id!("@bot:x");
        let last = |sender: &str, content: Value| {
            let join = event("m.room.member", "@bot:x", "@bot:x", json!({"membership": "join"}));
            let timeline = vec![join, event("m.room.member", sender, "@bot:x", content)];
            removal(&Room { timeline, ..Room::default() }, me)
        };
        let kick = last("@a:x", json!({"membership": "leave", "reason": "no\u{1b}"})).unwrap();
        assert_eq!((kick.banned, kick.by.as_str(), kick.reason.as_str()), (false, "@a:x", "no"));
        assert!(last("@a:x", json!({"membership": "ban"})).unwrap().banned);
        assert_eq!(last("@bot:x", json!({"membership": "leave"})), None);
    }
}
