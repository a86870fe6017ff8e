//! What the cache holds, within its limits.

use std::{collections::HashMap, sync::Arc};

use lru::LruCache;

use super::{Answer, Effect, OVERHEAD_BYTES, Place, Rows, Stored, Ticket, keys::Keys, run::Run};

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

pub(super) struct Memory {
    groups: LruCache<Place, Group>,
    bytes: usize,
    most_bytes: usize,
    most_keys: usize,
    tables: HashMap<&'static str, Table>,
    /// Rises when everything is forgotten.
    epoch: u64,
    maintenance: Option<i64>,
    run: Run,
}

impl Memory {
    pub(super) fn new(most_bytes: usize, most_keys: usize) -> Self {
        Self {
            groups: LruCache::unbounded(),
            bytes: 0,
            most_bytes,
            most_keys,
            tables: HashMap::new(),
            epoch: 0,
            maintenance: None,
            run: Run::default(),
        }
    }

    pub(super) fn look(&mut self, place: &Place) -> Answer {
        self.run.begin(place.table);
        if let Some(group) = self.groups.get(place) {
            self.run.hit();
            return Answer::Known(group.rows.clone());
        }
        let table = self.tables.entry(place.table).or_default();
        if table.keys.lack(place.fingerprint()) {
            return Answer::Known(Arc::default());
        }
        // One more than are kept, to see that they are too many.
        let wants_keys = (self.most_keys > 0 && matches!(table.keys, Keys::Unknown))
            .then(|| i64::try_from(self.most_keys).unwrap_or(i64::MAX).saturating_add(1));
        if wants_keys.is_some() {
            table.keys = Keys::Coming;
        }
        let epochs = (self.epoch, table.epoch);
        let neighbours = self.run.ask(place);
        Answer::Ask(Ticket { table: place.table, epochs, wants_keys, neighbours })
    }

    pub(super) fn peek(&self, place: &Place) -> Option<Arc<Rows>> {
        if let Some(group) = self.groups.peek(place) {
            return Some(group.rows.clone());
        }
        let table = self.tables.get(place.table)?;
        table.keys.lack(place.fingerprint()).then(Arc::default)
    }

    pub(super) fn is_current(&self, ticket: &Ticket) -> bool {
        let table = self.tables.get(ticket.table).map_or(0, |table| table.epoch);
        ticket.epochs == (self.epoch, table)
    }

    /// Keeps the rows of a place, and lets go of what was not asked for the longest.
    pub(super) fn keep(&mut self, place: Place, rows: Arc<Rows>) {
        let bytes =
            place.bytes() + rows.iter().map(|(key, row)| row_bytes(key, row)).sum::<usize>();
        self.forget(&place);
        // One that would push out most of the others is better asked for.
        if bytes <= self.most_bytes / 2 {
            self.bytes += bytes;
            self.groups.push(place, Group { rows, bytes });
        }
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

    /// Keeps rows that were fetched beside others, in their order.
    pub(super) fn keep_neighbours(&mut self, neighbours: Vec<(Place, Rows)>) {
        self.run.fetched(neighbours.len(), neighbours.last().map(|(last, _)| last));
        for (place, rows) in neighbours {
            self.keep(place, Arc::new(rows));
        }
    }

    pub(super) fn fill_keys(&mut self, ticket: &Ticket, fingerprints: Option<&[u8]>) {
        let is_current = self.is_current(ticket);
        let table = self.tables.entry(ticket.table).or_default();
        if matches!(table.keys, Keys::Coming) {
            table.keys = match fingerprints {
                Some(fingerprints) if is_current => Keys::parse(fingerprints, self.most_keys),
                _ => Keys::Unknown,
            };
        }
    }

    pub(super) fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Put(place, key, row) => {
                self.change(&place, |rows| drop(rows.insert(key, row)));
                self.has(&place);
            }
            Effect::Set(place, key, row) => {
                self.has(&place);
                self.keep(place, Arc::new(Rows::from([(key, row)])));
            }
            Effect::Remove(place, key) => {
                self.change(&place, |rows| drop(rows.remove(&key)));
                self.tables.entry(place.table).or_default().epoch += 1;
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

    /// Changes a group whose rows are known.
    fn change(&mut self, place: &Place, change: impl FnOnce(&mut Rows)) {
        let known = match self.groups.pop(place) {
            Some(group) => {
                self.bytes -= group.bytes;
                Some(group.rows)
            }
            None => self.peek(place),
        };
        if let Some(mut rows) = known {
            change(Arc::make_mut(&mut rows));
            self.keep(place.clone(), rows);
        }
    }

    /// The table has something at the place.
    fn has(&mut self, place: &Place) {
        let table = self.tables.entry(place.table).or_default();
        table.epoch += 1;
        table.keys.add(place.fingerprint(), self.most_keys);
    }

    pub(super) fn see_maintenance(&mut self, generation: i64) {
        if self.maintenance.replace(generation).is_some_and(|before| before != generation) {
            self.groups.clear();
            self.bytes = 0;
            self.tables.clear();
            self.epoch += 1;
        }
    }
}

fn row_bytes(key: &[u8], row: &Stored) -> usize {
    key.len() + row.data.len() + OVERHEAD_BYTES
}
