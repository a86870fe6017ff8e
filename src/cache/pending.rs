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
    /// Only the transaction itself can tell.
    Unknown,
}

#[derive(Default)]
struct Changes {
    groups: HashMap<Place, Changed>,
    /// Of these tables no other group can be told.
    tables: HashSet<&'static str>,
    /// These may have lost a key.
    shrunk: HashSet<&'static str>,
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

    /// Whether keys that were committed may be missing within.
    pub(crate) fn has_shrunk(&self, table: &'static str) -> bool {
        self.lock().shrunk.contains(table)
    }

    /// The row as the next one to write finds it, if that is known without a question.
    pub(crate) fn stored(&self, place: &Place, key: &[u8]) -> Option<Arc<Stored>> {
        match self.lock().known(&self.cache, place) {
            Changed::Known(rows) => rows.get(key).cloned(),
            Changed::Unknown => None,
        }
    }

    /// Takes in the rows that the transaction sees at a place that it changed.
    pub(crate) fn fill(&self, place: &Place, rows: Arc<Rows>) {
        if let Some(changed) = self.lock().groups.get_mut(place) {
            *changed = Changed::Known(rows);
        }
    }

    pub(crate) fn apply(&self, effects: &[Effect]) {
        let mut changes = self.lock();
        effects.iter().for_each(|effect| changes.apply(&self.cache, effect));
    }
}

impl Changes {
    fn look(&self, place: &Place) -> Option<Changed> {
        let changed = self.groups.get(place).cloned();
        changed.or_else(|| self.tables.contains(place.table).then_some(Changed::Unknown))
    }

    fn known(&self, cache: &Cache, place: &Place) -> Changed {
        self.look(place)
            .unwrap_or_else(|| cache.peek(place).map_or(Changed::Unknown, Changed::Known))
    }

    fn apply(&mut self, cache: &Cache, effect: &Effect) {
        match effect {
            Effect::Put(place, key, row) => {
                let mut changed = self.known(cache, place);
                // That it is the only one to hold the rows, and need not copy them.
                self.groups.remove(place);
                if let Changed::Known(rows) = &mut changed {
                    put(Arc::make_mut(rows), key.clone(), row.clone());
                }
                self.groups.insert(place.clone(), changed);
                if row.is_none() {
                    self.shrunk.insert(place.table);
                }
            }
            Effect::Set(place, key, row) => {
                let rows = Rows::from([(key.clone(), row.clone())]);
                self.groups.insert(place.clone(), Changed::Known(Arc::new(rows)));
            }
            Effect::Touch(place) => {
                self.groups.insert(place.clone(), Changed::Unknown);
            }
            Effect::TouchAll(table) => {
                self.groups.retain(|place, _| place.table != *table);
                self.tables.insert(table);
            }
        }
    }
}
