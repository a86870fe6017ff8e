//! What is saved and not committed yet, over what the cache knows: for those who must see it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Cache, Effect, Place, Rows, Stored, put};

/// The places that a transaction has changed.
pub(crate) struct Pending {
    cache: Arc<Cache>,
    changes: Mutex<Changes>,
}

/// What is known of a place that was changed.
#[derive(Clone)]
pub(crate) enum Changed {
    Known(Arc<Rows>),
    /// Only the transaction itself can tell. The number rises with each change.
    Unknown(u64),
}

#[derive(Default)]
struct Changes {
    groups: HashMap<Place, Changed>,
    /// The tables that were written to.
    written: HashSet<&'static str>,
    /// Of these tables no other group can be told.
    tables: HashSet<&'static str>,
    count: u64,
}

impl Pending {
    pub(crate) fn new(cache: Arc<Cache>) -> Arc<Self> {
        Arc::new(Self { cache, changes: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a place, if it was changed.
    pub(crate) fn look(&self, place: &Place) -> Option<Changed> {
        self.lock().look(place)
    }

    /// Whether one of the tables was written to.
    pub(crate) fn has_written(&self, mut tables: impl Iterator<Item = &'static str>) -> bool {
        let changes = self.lock();
        tables.any(|table| changes.written.contains(table))
    }

    /// The row as the next one to write finds it, if that is known without a question.
    pub(crate) fn stored(&self, place: &Place, key: &[u8]) -> Option<Arc<Stored>> {
        match self.lock().known(&self.cache, place) {
            Changed::Known(rows) => rows.get(key).cloned(),
            Changed::Unknown(_) => None,
        }
    }

    /// Takes in the rows that the transaction sees at a place, unless that was changed since it was
    /// looked at.
    pub(crate) fn fill(&self, place: &Place, seen: u64, rows: Arc<Rows>) {
        if let Some(changed) = self.lock().groups.get_mut(place)
            && matches!(changed, Changed::Unknown(count) if *count == seen)
        {
            *changed = Changed::Known(rows);
        }
    }

    pub(crate) fn apply(&self, effects: &[Effect], written: impl Iterator<Item = &'static str>) {
        let mut changes = self.lock();
        changes.written.extend(written);
        effects.iter().for_each(|effect| changes.apply(&self.cache, effect));
    }
}

impl Changes {
    fn look(&self, place: &Place) -> Option<Changed> {
        let changed = self.groups.get(place).cloned();
        changed
            .or_else(|| self.tables.contains(place.table).then_some(Changed::Unknown(self.count)))
    }

    fn known(&self, cache: &Cache, place: &Place) -> Changed {
        self.look(place).unwrap_or_else(|| {
            cache.peek(place).map_or(Changed::Unknown(self.count), Changed::Known)
        })
    }

    fn apply(&mut self, cache: &Cache, effect: &Effect) {
        self.count += 1;
        match effect {
            Effect::Put(place, key, row) => {
                let mut changed = self.known(cache, place);
                // That it is the only one to hold the rows, and need not copy them.
                self.groups.remove(place);
                match &mut changed {
                    Changed::Known(rows) => {
                        put(Arc::make_mut(rows), key.clone(), row.clone());
                    }
                    Changed::Unknown(count) => *count = self.count,
                }
                self.groups.insert(place.clone(), changed);
            }
            Effect::Set(place, key, row) => {
                let rows = Rows::from([(key.clone(), row.clone())]);
                self.groups.insert(place.clone(), Changed::Known(Arc::new(rows)));
            }
            Effect::Touch(place) => {
                self.groups.insert(place.clone(), Changed::Unknown(self.count));
            }
            Effect::TouchAll(table) => {
                self.groups.retain(|place, _| place.table != *table);
                self.tables.insert(table);
            }
        }
    }
}
