//! What happened in the rooms: the truth that the homeserver shows in pieces.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Mutex,
};

use serde_json::{Value, json};

use crate::support::Delivery;

/// A homeserver's page.
const PAGE: usize = 10;

#[derive(Default)]
struct Room {
    events: Vec<Value>,
    /// So many of them have been in a sync.
    told: usize,
}

#[derive(Default)]
pub struct History {
    rooms: Mutex<BTreeMap<String, Room>>,
    /// The text of each message that is to arrive, and its place in its room.
    messages: Mutex<HashMap<String, (String, usize, String)>>,
    /// To-device events with the number of the sync that brought them.
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
        let place = self.rooms.lock().unwrap()[room].events.len();
        let message = (room.to_owned(), place, body.to_owned());
        self.messages.lock().unwrap().insert(id, message);
    }

    /// A sync with all that is new; `limited` shows the last event of each room only.
    pub fn news(&self, keys: &mut Vec<Value>, limited: bool) -> Value {
        let mut syncs = self.syncs.lock().unwrap();
        *syncs += 1;
        self.keys.lock().unwrap().extend(keys.iter().map(|key| (*syncs, key.clone())));
        let mut join = serde_json::Map::new();
        for (id, room) in self.rooms.lock().unwrap().iter_mut() {
            let end = room.events.len();
            let from = if limited { end.saturating_sub(1).max(room.told) } else { room.told };
            if room.told == end {
                continue;
            }
            let is_limited = from > room.told;
            room.told = end;
            join.insert(id.clone(), part(&room.events[from..], from, is_limited));
        }
        json!({"rooms": {"join": join}, "to_device": {"events": std::mem::take(keys)}})
    }

    /// A sync was pushed that is not ours.
    pub fn other_sync(&self) {
        *self.syncs.lock().unwrap() += 1;
    }

    /// A sync from nowhere: the newest events of all rooms, and the keys that were not acknowledged
    /// by a sync from behind them.
    pub fn all(&self, acknowledged: usize) -> Value {
        let mut join = serde_json::Map::new();
        for (id, room) in self.rooms.lock().unwrap().iter() {
            // What no sync has told of comes with the next.
            let from = room.told.saturating_sub(2);
            join.insert(id.clone(), part(&room.events[from..room.told], from, from > 0));
        }
        let keys = self.keys.lock().unwrap();
        let keys: Vec<_> =
            keys.iter().filter(|(sync, _)| *sync > acknowledged).map(|(_, key)| key).collect();
        json!({"rooms": {"join": join}, "to_device": {"events": keys}})
    }

    /// A page of `/messages`, back from a token or from the end.
    pub fn page(&self, room: &str, from: Option<&str>) -> Value {
        let rooms = self.rooms.lock().unwrap();
        let Some(room) = rooms.get(room) else { return json!({"chunk": []}) };
        let end = from.and_then(|token| token.strip_prefix('h')?.parse().ok()).unwrap_or(room.told);
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

    /// All under their ids, none that is no message, and in order within each room.
    pub fn check(&self, accepted: &[Delivery]) {
        let messages = self.messages.lock().unwrap();
        let mut seen = HashSet::new();
        let mut last: HashMap<&str, (usize, &str)> = HashMap::new();
        for delivery in accepted {
            let id = delivery.key.as_str();
            let Some((room, place, body)) = messages.get(id) else {
                panic!("delivered, and never sent: {delivery:?}");
            };
            assert_eq!((&delivery.room, &delivery.body), (room, body), "{id}");
            assert_eq!(delivery.message["event_id"], id);
            if !seen.insert(id) {
                continue;
            }
            if let Some((before, other)) = last.insert(room, (*place, id)) {
                assert!(before < *place, "{id} came after {other} in {room}");
            }
        }
        assert_eq!(seen.len(), messages.len());
    }
}

fn part(events: &[Value], from: usize, limited: bool) -> Value {
    json!({"timeline": {"events": events, "limited": limited, "prev_batch": format!("h{from}")}})
}
