//! The parts of a `/sync` response that the bridge uses.

use std::collections::BTreeMap;

use ruma::{
    OneTimeKeyAlgorithm, RoomId, UInt, UserId,
    api::client::sync::sync_events::DeviceLists,
    events::{AnySyncTimelineEvent, AnyToDeviceEvent},
    serde::Raw,
};

use super::{Fields, ParseResponse, RawJson, raw_json::log_malformed};
use crate::timeline::storable;

pub type Event = Raw<AnySyncTimelineEvent>;

#[derive(Default)]
pub struct Sync {
    pub next_batch: String,
    pub to_device: Vec<Raw<AnyToDeviceEvent>>,
    pub device_lists: DeviceLists,
    pub one_time_keys: BTreeMap<OneTimeKeyAlgorithm, UInt>,
    pub unused_fallback_keys: Option<Vec<OneTimeKeyAlgorithm>>,
    pub joined: Vec<(String, Room)>,
    pub left: Vec<(String, Room)>,
    pub invited: Vec<String>,
    /// Who invited whom to these rooms.
    pub invitations: Vec<Invitation>,
}

/// A membership event of an invitation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    pub room_id: String,
    pub invited: String,
    pub inviter: String,
}

/// A joined or left room.
#[derive(Default)]
pub struct Room {
    pub limited: bool,
    pub prev_batch: Option<String>,
    pub timeline: Vec<Event>,
    pub state: Vec<Event>,
}

impl Sync {
    /// Whether it has no news.
    pub fn is_empty(&self) -> bool {
        let lists = &self.device_lists;
        self.to_device.is_empty()
            && lists.changed.is_empty()
            && lists.left.is_empty()
            && self.joined.is_empty()
            && self.left.is_empty()
            && self.invited.is_empty()
    }
}

impl ParseResponse for Sync {
    fn read(_: RawJson<'_>, fields: &Fields<'_>) -> Result<Self, &'static str> {
        let next_batch: String = fields.value("next_batch").ok_or("it has no next_batch")?;
        if next_batch.contains('\0') {
            return Err("its next_batch cannot be stored");
        }
        let to_device = fields.object("to_device").list("events");
        let rooms = fields.object("rooms");
        let joined = of_rooms(rooms.object("join"));
        let is_joined = |id: &str| joined.iter().any(|(room, _)| room == id);
        let invitations = rooms.object("invite").into_iter().filter(|(id, _)| is_room(id));
        Ok(Self {
            next_batch,
            invitations: invitations.flat_map(|(id, json)| of_invitation(&id, json)).collect(),
            to_device: to_device
                .into_iter()
                .filter_map(|event| event.raw_object("an event"))
                .collect(),
            device_lists: device_lists(&fields.object("device_lists")),
            one_time_keys: key_counts(fields.object("device_one_time_keys_count")),
            unused_fallback_keys: fields.get("device_unused_fallback_key_types").map(|kinds| {
                let kinds = kinds.list("device_unused_fallback_key_types").into_iter();
                kinds.filter_map(|kind| kind.value("a kind of key")).collect()
            }),
            left: of_rooms(rooms.object("leave")),
            // A lagging homeserver worker may still report the invitation of a joined room.
            invited: rooms
                .object("invite")
                .into_iter()
                .map(|(id, _)| id)
                .filter(|id| is_room(id) && !is_joined(id))
                .collect(),
            joined,
        })
    }
}

fn of_rooms(rooms: Fields<'_>) -> Vec<(String, Room)> {
    let rooms = rooms.into_iter().filter(|(id, _)| is_room(id));
    rooms.map(|(id, json)| (id, room(&json.object("a room")))).collect()
}

/// Malformed events are skipped: the invitation itself does not depend on them.
fn of_invitation(room_id: &str, invite: RawJson<'_>) -> Vec<Invitation> {
    let fields = invite.fields().unwrap_or_default();
    let state = fields.get("invite_state").and_then(RawJson::fields).unwrap_or_default();
    let events = state.get("events").and_then(RawJson::elements).unwrap_or_default();
    let invitation = |event: RawJson<'_>| {
        let event = event.fields()?;
        let text = |name: &str| event.get(name)?.read::<String>();
        let membership = event.get("content")?.fields()?.get("membership")?.read::<String>()?;
        let inviter = UserId::parse(text("sender")?).ok()?.to_string();
        let wanted = membership == "invite" && text("type")? == "m.room.member";
        let room_id = room_id.to_owned();
        wanted.then_some(Invitation { room_id, invited: text("state_key")?, inviter })
    };
    events.into_iter().filter_map(invitation).collect()
}

fn room(fields: &Fields<'_>) -> Room {
    let timeline = fields.object("timeline");
    Room {
        // A malformed value counts as `true`: a missed gap would lose messages.
        limited: timeline
            .get("limited")
            .is_some_and(|limited| limited.value("limited") != Some(false)),
        prev_batch: timeline.value("prev_batch").filter(|token: &String| !token.contains('\0')),
        timeline: events(timeline.list("events")),
        state: events(fields.object("state").list("events")),
    }
}

fn is_room(id: &str) -> bool {
    let is_room = storable(id) && RoomId::parse(id).is_ok();
    if !is_room {
        log_malformed("a room id");
    }
    is_room
}

/// A room's events, unchecked: malformed ones are counted when they are classified.
pub fn events(list: Vec<RawJson<'_>>) -> Vec<Event> {
    list.into_iter().map(RawJson::to_raw).collect()
}

fn device_lists(fields: &Fields<'_>) -> DeviceLists {
    let users = |name: &str| {
        let ids = fields.list(name).into_iter().filter_map(|id| id.value::<String>("a user id"));
        ids.filter_map(|id| UserId::parse(id).ok()).collect()
    };
    let mut lists = DeviceLists::new();
    lists.changed = users("changed");
    lists.left = users("left");
    lists
}

pub fn key_counts(counts: Fields<'_>) -> BTreeMap<OneTimeKeyAlgorithm, UInt> {
    let count = |(kind, count): (String, RawJson<'_>)| {
        Some((OneTimeKeyAlgorithm::from(kind), count.value("a count of keys")?))
    };
    counts.into_iter().filter_map(count).collect()
}
