//! The complete history of the rooms, which syncs and pages return in parts.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Mutex,
};

use serde_json::{Value, json};

use crate::support::Delivery;

/// Events per page of `/messages`.
const PAGE: usize = 10;

#[derive(Default)]
struct Room {
    events: Vec<Value>,
    /// Number of events that were part of a sync.
    synced: usize,
}

#[derive(Default)]
pub struct History {
    rooms: Mutex<BTreeMap<String, Room>>,
    /// By event id: room, position in the room and body of each message that must be delivered.
    messages: Mutex<HashMap<String, (String, usize, String)>>,
    /// To-device events with the number of the sync that contained them.
    keys: Mutex<Vec<(usize, Value)>>,
    syncs: Mutex<usize>,
}

impl History {
    pub fn add(&self, room: &str, event: Value) {
        self.rooms.lock().unwrap().entry(room.to_owned()).or_default().events.push(event);
    }

    pub fn message(&self, room: &str, event: Value, body: &str) {
        let id = event["event_id"].as_str().unwrap().to_owned();
        self.add(room, event);
        let position = self.rooms.lock().unwrap()[room].events.len();
        let message = (room.to_owned(), position, body.to_owned());
        self.messages.lock().unwrap().insert(id, message);
    }

    /// A sync with all new events; with `limited`, only the last event of each room.
    pub fn news(&self, keys: &mut Vec<Value>, limited: bool) -> Value {
        let mut syncs = self.syncs.lock().unwrap();
        *syncs += 1;
        self.keys.lock().unwrap().extend(keys.iter().map(|key| (*syncs, key.clone())));
        let mut join = serde_json::Map::new();
        for (id, room) in self.rooms.lock().unwrap().iter_mut() {
            let end = room.events.len();
            let from = if limited { end.saturating_sub(1).max(room.synced) } else { room.synced };
            if room.synced == end {
                continue;
            }
            let is_limited = from > room.synced;
            room.synced = end;
            join.insert(id.clone(), part(&room.events[from..], from, is_limited));
        }
        json!({"rooms": {"join": join}, "to_device": {"events": std::mem::take(keys)}})
    }

    /// Count a sync that was pushed by other code.
    pub fn other_sync(&self) {
        *self.syncs.lock().unwrap() += 1;
    }

    /// A sync without a position: the newest events of all rooms, and the keys that were not
    /// acknowledged by a sync from a later position.
    pub fn all(&self, acknowledged: usize) -> Value {
        let mut join = serde_json::Map::new();
        for (id, room) in self.rooms.lock().unwrap().iter() {
            // Events that were in no sync yet follow with the next one.
            let from = room.synced.saturating_sub(2);
            join.insert(id.clone(), part(&room.events[from..room.synced], from, from > 0));
        }
        let keys = self.keys.lock().unwrap();
        let keys: Vec<_> =
            keys.iter().filter(|(sync, _)| *sync > acknowledged).map(|(_, key)| key).collect();
        json!({"rooms": {"join": join}, "to_device": {"events": keys}})
    }

    /// A page of `/messages`, backwards from a token or from the end.
    pub fn page(&self, room: &str, from: Option<&str>) -> Value {
        let rooms = self.rooms.lock().unwrap();
        let Some(room) = rooms.get(room) else { return json!({"chunk": []}) };
        let end =
            from.and_then(|token| token.strip_prefix('h')?.parse().ok()).unwrap_or(room.synced);
        let begin = end.saturating_sub(PAGE);
        let chunk: Vec<_> = room.events[begin..end].iter().rev().collect();
        match begin {
            0 => json!({"start": from, "chunk": chunk}),
            begin => json!({"start": from, "chunk": chunk, "end": format!("h{begin}")}),
        }
    }

    pub fn missing(&self, accepted: &[Delivery]) -> Vec<String> {
        let got: HashSet<&str> = accepted.iter().map(|delivery| delivery.key.as_str()).collect();
        let messages = self.messages.lock().unwrap();
        messages.keys().filter(|id| !got.contains(id.as_str())).cloned().collect()
    }

    /// Check that exactly the sent messages were delivered, under their ids and in order within each
    /// room.
    pub fn check(&self, accepted: &[Delivery]) {
        let messages = self.messages.lock().unwrap();
        let mut seen = HashSet::new();
        let mut last: HashMap<&str, (usize, &str)> = HashMap::new();
        for delivery in accepted {
            let id = delivery.key.as_str();
            let Some((room, position, body)) = messages.get(id) else {
                panic!("delivered, but never sent: {delivery:?}");
            };
            assert_eq!((&delivery.room, &delivery.body), (room, body), "{id}");
            assert_eq!(delivery.message["event_id"], id);
            if !seen.insert(id) {
                continue;
            }
            if let Some((before, other)) = last.insert(room, (*position, id)) {
                assert!(before < *position, "{id} was delivered after {other} in {room}");
            }
        }
        assert_eq!(seen.len(), messages.len());
    }
}

fn part(events: &[Value], from: usize, limited: bool) -> Value {
    json!({"timeline": {"events": events, "limited": limited, "prev_batch": format!("h{from}")}})
}
