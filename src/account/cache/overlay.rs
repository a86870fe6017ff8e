//! Uncommitted writes over the cached rows, for the reads that must see them.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Cache, CacheKey, CacheUpdate, Rows};
use crate::postgres::{cell::Cells, statement::CacheIndex};

/// The changes of an uncommitted transaction.
pub(crate) struct UncommittedOverlay {
    cache: Arc<Cache>,
    changes: Mutex<Changes>,
}

/// A group that the transaction has changed.
#[derive(Clone)]
pub(crate) enum Overlaid {
    Known(Arc<Rows>),
    /// Its rows must be read in the transaction. The number rises with each change.
    Unknown(u64),
}

#[derive(Default)]
struct Changes {
    groups: HashMap<CacheKey, Overlaid>,
    /// The tables that were written to.
    written: HashSet<&'static str>,
    /// Indexes whose other groups are all unknown.
    invalidated: HashSet<&'static CacheIndex>,
    count: u64,
}

impl UncommittedOverlay {
    pub(crate) fn new(cache: Arc<Cache>) -> Arc<Self> {
        Arc::new(Self { cache, changes: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rows of a group, if it was changed.
    pub(crate) fn look_up(&self, key: &CacheKey) -> Option<Overlaid> {
        self.lock().look_up(key)
    }

    /// Whether one of the tables was written to.
    pub(crate) fn has_written(&self, tables: &[&'static str]) -> bool {
        let changes = self.lock();
        tables.iter().any(|table| changes.written.contains(table))
    }

    /// The row as the next write will find it, where that is known without a query.
    pub(crate) fn row(&self, group: &CacheKey, key: &Cells) -> Option<Cells> {
        match self.lock().known(&self.cache, group) {
            Overlaid::Known(rows) => rows.get(key).cloned(),
            Overlaid::Unknown(_) => None,
        }
    }

    /// Stores the rows of a group as read in the transaction, unless the group was changed since it
    /// was looked up.
    pub(crate) fn fill(&self, key: &CacheKey, seen: u64, rows: Arc<Rows>) {
        let mut changes = self.lock();
        if matches!(changes.look_up(key), Some(Overlaid::Unknown(count)) if count == seen) {
            changes.groups.insert(key.clone(), Overlaid::Known(rows));
        }
    }

    /// Applies writes of the transaction, and records their tables.
    pub(crate) fn apply<'a>(
        &self,
        updates: impl IntoIterator<Item = &'a CacheUpdate>,
        written: impl IntoIterator<Item = &'static str>,
    ) {
        let mut changes = self.lock();
        changes.written.extend(written);
        updates.into_iter().for_each(|update| changes.apply(&self.cache, update));
    }
}

impl Changes {
    fn look_up(&self, key: &CacheKey) -> Option<Overlaid> {
        let changed = self.groups.get(key).cloned();
        changed.or_else(|| {
            self.invalidated.contains(key.index).then_some(Overlaid::Unknown(self.count))
        })
    }

    fn known(&self, cache: &Cache, key: &CacheKey) -> Overlaid {
        self.look_up(key).unwrap_or_else(|| {
            cache.peek(key).map_or(Overlaid::Unknown(self.count), Overlaid::Known)
        })
    }

    fn apply(&mut self, cache: &Cache, update: &CacheUpdate) {
        self.count += 1;
        match update {
            CacheUpdate::UpsertRow(group, key, row) => self.change(cache, group, |rows| {
                rows.insert(key.clone(), row.clone());
            }),
            CacheUpdate::DeleteRow(group, key) => self.change(cache, group, |rows| {
                rows.remove(key);
            }),
            CacheUpdate::ReplaceGroup(group, key, row) => {
                let rows = Rows::from([(key.clone(), row.clone())]);
                self.groups.insert(group.clone(), Overlaid::Known(Arc::new(rows)));
            }
            CacheUpdate::InvalidateGroup(group) => {
                self.groups.insert(group.clone(), Overlaid::Unknown(self.count));
            }
            CacheUpdate::InvalidateTable(index) => {
                self.groups.retain(|group, _| group.index != *index);
                self.invalidated.insert(index);
            }
        }
    }

    fn change(&mut self, cache: &Cache, group: &CacheKey, change: impl FnOnce(&mut Rows)) {
        let mut overlaid = self.known(cache, group);
        // Drops the map's reference first, so that `Arc::make_mut` changes the rows in place.
        self.groups.remove(group);
        match &mut overlaid {
            Overlaid::Known(rows) => change(Arc::make_mut(rows)),
            Overlaid::Unknown(count) => *count = self.count,
        }
        self.groups.insert(group.clone(), overlaid);
    }
}
