//! Rows that an exclusive owner can read without a query: only the owner changes them.
//!
//! Rows are cached as they are stored, so sealed in an encrypted account, in groups that are read,
//! kept and dropped as one. Reads fill the cache, and writes when they are committed; a read that
//! began before a commit does not fill it afterwards. In addition, a key set for a table shows
//! which groups have no rows. Rows of a table that is not cached may be read ahead of their
//! use, once.

mod key_set;
mod overlay;
mod prefetch;
mod rows;
#[cfg(test)]
mod tests;
mod update;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

use sha2::{Digest, Sha256};

use self::{
    key_set::KeySet,
    rows::{CachedRows, MissPlan},
};
pub(crate) use self::{
    overlay::{Overlaid, UncommittedOverlay},
    rows::Ahead,
    update::CacheUpdate,
};
use crate::postgres::{cell::Cells, metrics, statement::CacheIndex};

/// The key under which a group of rows is cached: what its rows have in common.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct CacheKey {
    pub(crate) index: &'static CacheIndex,
    pub(crate) cells: Cells,
}

impl CacheKey {
    pub(crate) fn new(index: &'static CacheIndex, cells: impl Into<Cells>) -> Self {
        Self { index, cells: cells.into() }
    }

    /// The group of a row, by the row's whole key, and the row's key within the group.
    pub(crate) fn of_row(index: &'static CacheIndex, key: &Cells) -> (Self, Cells) {
        let (cells, rest) = key.split_at(key.len().saturating_sub(index.row_key));
        (Self { index, cells }, rest)
    }

    /// The key's entry in a key set; the server computes the same. A collision costs a query that
    /// finds no rows.
    fn fingerprint(&self) -> u64 {
        let mut hash = Sha256::new();
        self.cells.iter().for_each(|cell| hash.update(cell.key_bytes()));
        let mut first = [0; 8];
        first.copy_from_slice(&hash.finalize()[..8]);
        u64::from_be_bytes(first)
    }

    fn size(&self) -> usize {
        self.cells.size() + OVERHEAD_BYTES
    }
}

/// Approximate memory overhead of a row or a key, in addition to its cells.
const OVERHEAD_BYTES: usize = 96;

/// The rows of a group, by their keys within it.
pub(crate) type Rows = BTreeMap<Cells, Cells>;

/// The result of a lookup.
pub(crate) enum Lookup {
    Hit(Arc<Rows>),
    Miss(CacheMiss),
}

/// A cache miss, which fills the cache with the result of the query, unless a commit has changed
/// the index since.
pub(crate) struct CacheMiss {
    cache: Arc<Cache>,
    pub(crate) key: CacheKey,
    pub(crate) plan: MissPlan,
}

impl CacheMiss {
    /// Caches the rows of the group.
    pub(crate) fn fill(&self, rows: Arc<Rows>) {
        self.cache.with(|cached| {
            if cached.is_current(self) {
                cached.insert(self.key.clone(), rows);
            }
        });
    }

    /// Keeps rows that were prefetched; those of an index that keeps no rows, until they are read.
    pub(crate) fn fill_prefetched(&self, rows: HashMap<CacheKey, Arc<Rows>>) {
        self.cache.with(|cached| {
            if cached.is_current(self) {
                cached.insert_prefetched(self, rows);
            }
        });
    }

    /// Caches the fingerprints of the keys that the database has.
    pub(crate) fn fill_keys(&self, fingerprints: &[u8]) {
        let Some(limit) = self.plan.wants_keys else { return };
        let keys = KeySet::parse(fingerprints, limit);
        self.cache.with(|cached| cached.fill_keys(self, keys));
    }

    /// Disables the key set of this index, after the combined query failed.
    pub(crate) fn disable_key_set(&self) {
        self.cache.with(|cached| cached.fill_keys(self, KeySet::TooMany));
    }
}

impl Drop for CacheMiss {
    fn drop(&mut self) {
        self.cache.with(|cached| cached.end(self));
    }
}

/// The cache of one lane; shared by reads and by the writer.
pub(crate) struct Cache {
    /// `None` when it is disabled or closed.
    cached: Mutex<Option<CachedRows>>,
    maintenance: AtomicI64,
}

/// Key sets may take this fraction of the budget: 1/8.
const KEY_SETS_PART: usize = 8;

/// Memory of a key: a fingerprint of 8 bytes, twice, for the spare capacity of a hash set.
const KEY_BYTES: usize = 16;

impl Cache {
    /// Caches rows and keys in about this many bytes; 0 disables the cache.
    pub(crate) fn with_budget(bytes: usize) -> Self {
        let key_bytes = bytes / KEY_SETS_PART;
        Self::new(bytes - key_bytes, key_bytes / KEY_BYTES)
    }

    /// Caches about this many bytes of rows, and up to this many keys of all tables.
    pub(crate) fn new(bytes: usize, keys: usize) -> Self {
        let cached = (bytes > 0).then(|| CachedRows::new(bytes, keys));
        Self { cached: Mutex::new(cached), maintenance: AtomicI64::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Option<CachedRows>> {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with(&self, act: impl FnOnce(&mut CachedRows)) {
        if let Some(cached) = &mut *self.lock() {
            act(cached);
        }
    }

    /// Looks a group up; `None` when the cache is disabled.
    pub(crate) fn look_up(self: &Arc<Self>, key: &CacheKey) -> Option<Lookup> {
        let found = self.lock().as_mut()?.look_up(key);
        metrics::cache_lookup(key.index.group.name, found.is_ok());
        Some(match found {
            Ok(rows) => Lookup::Hit(rows),
            Err(plan) => Lookup::Miss(CacheMiss { cache: self.clone(), key: key.clone(), plan }),
        })
    }

    /// Records that these groups are likely to be read next.
    pub(crate) fn expect(&self, keys: impl IntoIterator<Item = CacheKey>) {
        self.with(|cached| keys.into_iter().for_each(|key| cached.expect(key)));
    }

    /// The rows of a prefetched group, which the cache forgets.
    pub(crate) fn take_prefetched(&self, key: &CacheKey) -> Option<Arc<Rows>> {
        let rows = self.lock().as_mut()?.take_prefetched(key)?;
        metrics::cache_lookup(key.index.group.name, true);
        Some(rows)
    }

    /// The cached rows of a group, without recording a miss.
    pub(crate) fn peek(&self, key: &CacheKey) -> Option<Arc<Rows>> {
        self.lock().as_ref()?.peek(key)
    }

    /// Applies the updates of a commit, all at once.
    pub(crate) fn apply(&self, updates: impl IntoIterator<Item = CacheUpdate>) {
        self.with(|cached| updates.into_iter().for_each(|update| cached.apply(update)));
    }

    /// Records the maintenance counter, which counts changes by others than the owner. When it has
    /// changed, all cached rows are dropped.
    pub(crate) fn set_maintenance(&self, generation: i64) {
        // A late heartbeat may have an older one.
        self.maintenance.fetch_max(generation, Ordering::AcqRel);
        self.with(|cached| cached.set_maintenance(generation));
    }

    /// The maintenance counter, as far as it was read: what was committed under another one may have been changed.
    pub(crate) fn maintenance(&self) -> i64 {
        self.maintenance.load(Ordering::Acquire)
    }

    /// Drops everything; reads in flight do not fill the cache.
    pub(crate) fn clear(&self) {
        self.with(CachedRows::clear);
    }

    /// Drops everything and disables the cache.
    pub(crate) fn close(&self) {
        drop(self.lock().take());
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cache(…)")
    }
}
