//! What is saved and not committed yet, over what the cache knows: for those who must see it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Cache, Effect, Place, Rows, Stored};

/// The places that a transaction has changed.
pub(crate) struct Pending {
    cache: Arc<Cache>,
    changed: Mutex<Changed>,
}

#[derive(Default)]
struct Changed {
    /// `None` where only the transaction itself can tell.
    groups: HashMap<Place, Option<Arc<Rows>>>,
    /// Of these tables no other group can be told.
    tables: HashSet<&'static str>,
}

impl Pending {
    pub(crate) fn new(cache: Arc<Cache>) -> Arc<Self> {
        Arc::new(Self { cache, changed: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Changed> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rows of a place that was changed; within, `None` when they must be asked for.
    pub(crate) fn look(&self, place: &Place) -> Option<Option<Arc<Rows>>> {
        self.lock().look(place)
    }

    /// The row as the next one to write finds it, if that is known without a question.
    pub(crate) fn stored(&self, place: &Place, key: &[u8]) -> Option<Arc<Stored>> {
        self.lock().rows(&self.cache, place)?.get(key).cloned()
    }

    /// Takes in the rows that the transaction sees.
    pub(crate) fn fill(&self, place: Place, rows: Arc<Rows>) {
        self.lock().groups.insert(place, Some(rows));
    }

    pub(crate) fn apply(&self, effects: &[Effect]) {
        let mut changed = self.lock();
        effects.iter().for_each(|effect| changed.apply(&self.cache, effect));
    }
}

impl Changed {
    fn look(&self, place: &Place) -> Option<Option<Arc<Rows>>> {
        match self.groups.get(place) {
            Some(rows) => Some(rows.clone()),
            None => self.tables.contains(place.table).then_some(None),
        }
    }

    fn rows(&self, cache: &Cache, place: &Place) -> Option<Arc<Rows>> {
        self.look(place).unwrap_or_else(|| cache.peek(place))
    }

    fn apply(&mut self, cache: &Cache, effect: &Effect) {
        match effect {
            Effect::Put(place, key, row) => self.change(cache, place, |rows| {
                rows.insert(key.clone(), row.clone());
            }),
            Effect::Set(place, key, row) => {
                let rows = Rows::from([(key.clone(), row.clone())]);
                self.groups.insert(place.clone(), Some(Arc::new(rows)));
            }
            Effect::Remove(place, key) => self.change(cache, place, |rows| {
                rows.remove(key);
            }),
            Effect::Touch(place) => {
                self.groups.insert(place.clone(), None);
            }
            Effect::TouchAll(table) => {
                self.groups.retain(|place, _| place.table != *table);
                self.tables.insert(table);
            }
        }
    }

    fn change(&mut self, cache: &Cache, place: &Place, change: impl FnOnce(&mut Rows)) {
        let mut rows = self.rows(cache, place);
        self.groups.remove(place);
        if let Some(rows) = &mut rows {
            change(Arc::make_mut(rows));
        }
        self.groups.insert(place.clone(), rows);
    }
}
