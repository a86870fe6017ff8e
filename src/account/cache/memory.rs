//! What the cache holds, within its limits.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use lru::LruCache;

use super::{Effect, OVERHEAD_BYTES, Place, Rows, Stored, Ticket, keys::Keys, put};

struct Group {
    rows: Arc<Rows>,
    bytes: usize,
}

#[derive(Default)]
struct Table {
    /// Rises with every change.
    epoch: u64,
    keys: Keys,
}

/// What to ask the database for, where memory does not know.
pub(crate) struct Question {
    /// When the cache, and when the table last changed.
    epochs: (u64, u64),
    /// How many of the table's keys the caller is to fetch as well, if any.
    pub(crate) wants_keys: Option<i64>,
    /// Whether others are fetching the rows of the place, or they are too many to be kept.
    pub(crate) is_busy: bool,
}

/// More places are not remembered as too large.
const MOST_LARGE: usize = 1_000;

pub(super) struct Memory {
    groups: LruCache<Place, Group>,
    bytes: usize,
    most_bytes: usize,
    most_keys: usize,
    tables: HashMap<&'static str, Table>,
    /// Places whose rows somebody is fetching.
    coming: HashSet<Place>,
    /// Places whose rows were too many to be kept.
    large: HashSet<Place>,
    /// Rises when everything is forgotten.
    epoch: u64,
    maintenance: Option<i64>,
}

impl Memory {
    pub(super) fn new(most_bytes: usize, most_keys: usize) -> Self {
        Self {
            groups: LruCache::unbounded(),
            bytes: 0,
            most_bytes,
            most_keys,
            tables: HashMap::new(),
            coming: HashSet::new(),
            large: HashSet::new(),
            epoch: 0,
            maintenance: None,
        }
    }

    pub(super) fn look(&mut self, place: &Place) -> Result<Arc<Rows>, Question> {
        if let Some(group) = self.groups.get(place) {
            return Ok(group.rows.clone());
        }
        let table = self.tables.entry(place.table).or_default();
        if table.keys.lack(place) {
            return Ok(Arc::default());
        }
        // One more than are kept, to see that they are too many.
        let wants_keys = (self.most_keys > 0 && matches!(table.keys, Keys::Unknown))
            .then(|| i64::try_from(self.most_keys).unwrap_or(i64::MAX).saturating_add(1));
        if wants_keys.is_some() {
            table.keys = Keys::Coming(HashSet::new());
        }
        let epochs = (self.epoch, table.epoch);
        let is_busy = self.large.contains(place) || !self.coming.insert(place.clone());
        Err(Question { epochs, wants_keys, is_busy })
    }

    pub(super) fn peek(&self, place: &Place) -> Option<Arc<Rows>> {
        if let Some(group) = self.groups.peek(place) {
            return Some(group.rows.clone());
        }
        let table = self.tables.get(place.table)?;
        table.keys.lack(place).then(Arc::default)
    }

    pub(super) fn is_current(&self, ticket: &Ticket) -> bool {
        let table = self.tables.get(ticket.place.table).map_or(0, |table| table.epoch);
        ticket.question.epochs == (self.epoch, table)
    }

    /// Keeps the rows of a place, and lets go of what was not asked for the longest.
    pub(super) fn keep(&mut self, place: Place, rows: Arc<Rows>) {
        let bytes =
            place.bytes() + rows.iter().map(|(key, row)| row_bytes(key.len(), row)).sum::<usize>();
        self.forget(&place);
        self.push(place, Group { rows, bytes });
    }

    fn push(&mut self, place: Place, group: Group) {
        // One that would push out most of the others is better asked for.
        if group.bytes > self.most_bytes / 2 {
            if self.large.len() < MOST_LARGE {
                self.large.insert(place);
            }
            return;
        }
        self.large.remove(&place);
        self.bytes += group.bytes;
        self.groups.push(place, group);
        while self.bytes > self.most_bytes {
            let Some((_, group)) = self.groups.pop_lru() else { break };
            self.bytes -= group.bytes;
        }
    }

    fn forget(&mut self, place: &Place) {
        if let Some(group) = self.groups.pop(place) {
            self.bytes -= group.bytes;
        }
    }

    pub(super) fn fill_keys(&mut self, ticket: &Ticket, keys: Keys) {
        if ticket.question.epochs.0 == self.epoch {
            self.tables.entry(ticket.place.table).or_default().keys.come(keys);
        }
    }

    /// Whoever held the ticket fetches nothing any more.
    pub(super) fn settle(&mut self, ticket: &Ticket) {
        self.coming.remove(&ticket.place);
        if ticket.question.wants_keys.is_some() {
            self.fill_keys(ticket, Keys::Unknown);
        }
    }

    pub(super) fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Put(place, key, row) => {
                self.change(&place, key, row);
                self.has(&place);
            }
            Effect::Set(place, key, row) => {
                self.has(&place);
                self.keep(place, Arc::new(Rows::from([(key, row)])));
            }
            Effect::Touch(place) => {
                self.forget(&place);
                self.has(&place);
            }
            Effect::TouchAll(table) => {
                self.tables.entry(table).or_default().epoch += 1;
                let places = self.groups.iter().map(|(place, _)| place);
                let touched: Vec<Place> =
                    places.filter(|place| place.table == table).cloned().collect();
                touched.iter().for_each(|place| self.forget(place));
            }
        }
    }

    /// Changes one row of a group whose rows are known.
    fn change(&mut self, place: &Place, key: Vec<u8>, row: Option<Arc<Stored>>) {
        let mut group = match self.groups.pop(place) {
            Some(group) => {
                self.bytes -= group.bytes;
                group
            }
            None => match self.peek(place) {
                Some(rows) => Group { rows, bytes: place.bytes() },
                None => return,
            },
        };
        let length = key.len();
        let added = row.as_ref().map_or(0, |row| row_bytes(length, row));
        let before = put(Arc::make_mut(&mut group.rows), key, row);
        let removed = before.map_or(0, |row| row_bytes(length, &row));
        group.bytes = (group.bytes + added).saturating_sub(removed);
        self.push(place.clone(), group);
    }

    /// The table has something at the place.
    fn has(&mut self, place: &Place) {
        let table = self.tables.entry(place.table).or_default();
        table.epoch += 1;
        table.keys.add(place, self.most_keys);
    }

    pub(super) fn see_maintenance(&mut self, generation: i64) {
        if self.maintenance.replace(generation).is_some_and(|before| before != generation) {
            self.clear();
        }
    }

    pub(super) fn clear(&mut self) {
        self.groups.clear();
        self.bytes = 0;
        self.tables.clear();
        self.coming.clear();
        self.large.clear();
        self.epoch += 1;
    }
}

fn row_bytes(key_length: usize, row: &Stored) -> usize {
    key_length + row.data.len() + OVERHEAD_BYTES
}
