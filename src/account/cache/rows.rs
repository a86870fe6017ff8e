//! The cached rows and key sets, within their limits.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use lru::LruCache;

use super::{
    CacheKey, CacheMiss, CacheUpdate, OVERHEAD_BYTES, Rows, key_set::KeySet, prefetch::Prefetch,
};
use crate::postgres::{
    cell::Cells,
    statement::{CacheIndex, Prefetched},
};

struct Group {
    rows: Arc<Rows>,
    bytes: usize,
}

/// The state of an index as a whole.
#[derive(Default)]
struct Index {
    /// Rises with every change.
    epoch: u64,
    keys: KeySet,
    /// How often it was tried to prefetch all rows.
    attempts: u8,
    is_prefetching: bool,
}

/// What to query after a miss.
pub(crate) struct MissPlan {
    /// The epochs of the cache and of the index at the lookup.
    epochs: (u64, u64),
    /// The limit of the key set's query, if it is to be sent as well.
    pub(crate) wants_keys: Option<i64>,
    /// Whether others are reading the group already, or it is too large to be kept.
    pub(crate) is_busy: bool,
    pub(crate) prefetch: Ahead,
}

/// What to prefetch together with a group.
pub(crate) enum Ahead {
    Groups(Vec<CacheKey>),
    /// All rows, if they are not more than these.
    Table {
        rows: i64,
        bytes: i64,
    },
}

/// How many groups are remembered as too large.
const MAX_LARGE: usize = 1_000;

/// A table is prefetched as a whole up to these limits: a group may have many rows, and a row many bytes.
const FEW_GROUPS: usize = 256;
const FEW_ROWS: i64 = 1_024;
const FEW_BYTES: i64 = 512 << 10;

/// How often this is tried: the rows of an attempt are dropped if the table was written meanwhile.
const MAX_ATTEMPTS: u8 = 3;

pub(super) struct CachedRows {
    groups: LruCache<CacheKey, Group>,
    bytes: usize,
    max_bytes: usize,
    max_keys: usize,
    indexes: HashMap<&'static CacheIndex, Index>,
    prefetch: Prefetch,
    /// Groups that are being read.
    loading: HashSet<CacheKey>,
    /// Groups too large to be kept.
    large: HashSet<CacheKey>,
    /// Rises when the cache is cleared.
    epoch: u64,
    maintenance: Option<i64>,
}

impl CachedRows {
    pub(super) fn new(max_bytes: usize, max_keys: usize) -> Self {
        Self {
            groups: LruCache::unbounded(),
            bytes: 0,
            max_bytes,
            max_keys,
            indexes: HashMap::new(),
            prefetch: Prefetch::default(),
            loading: HashSet::new(),
            large: HashSet::new(),
            epoch: 0,
            maintenance: None,
        }
    }

    pub(super) fn look_up(&mut self, key: &CacheKey) -> Result<Arc<Rows>, MissPlan> {
        if let Some(group) = self.groups.get(key) {
            return Ok(group.rows.clone());
        }
        let max_keys = self.max_keys_of(key.index);
        let index = self.indexes.entry(key.index).or_default();
        if index.keys.is_absent(key) {
            return Ok(Arc::default());
        }
        // One more than the limit, to detect that there are more.
        let may_load = max_keys > 0 && matches!(index.keys, KeySet::Unknown);
        let wants_keys = (may_load && key.index.keys.is_some())
            .then(|| i64::try_from(max_keys).unwrap_or(i64::MAX).saturating_add(1));
        if wants_keys.is_some() {
            index.keys = KeySet::Loading(HashSet::new());
        }
        let epochs = (self.epoch, index.epoch);
        let prefetch = match key.index.prefetch {
            Some(Prefetched::SmallTable(_))
                if self.bytes < self.max_bytes && index.begin_prefetch() =>
            {
                let free = i64::try_from(self.max_bytes - self.bytes);
                Ahead::Table { rows: FEW_ROWS, bytes: FEW_BYTES.min(free.unwrap_or(FEW_BYTES)) }
            }
            Some(Prefetched::Expected(_)) => {
                let mut groups = self.prefetch.plan(key);
                groups.retain(|other| !index.keys.is_absent(other));
                Ahead::Groups(groups)
            }
            _ => Ahead::Groups(Vec::new()),
        };
        let is_busy = self.large.contains(key) || !self.loading.insert(key.clone());
        Err(MissPlan { epochs, wants_keys, is_busy, prefetch })
    }

    pub(super) fn expect(&mut self, key: CacheKey) {
        self.prefetch.expect(key);
    }

    pub(super) fn take_prefetched(&mut self, key: &CacheKey) -> Option<Arc<Rows>> {
        self.prefetch.take(key)
    }

    /// Caches prefetched groups; those of an index that keeps no rows for one read, as many as fit into
    /// half the budget.
    pub(super) fn insert_prefetched(
        &mut self,
        miss: &CacheMiss,
        rows: HashMap<CacheKey, Arc<Rows>>,
    ) {
        if let Ahead::Table { .. } = miss.plan.prefetch {
            self.indexes.entry(miss.key.index).or_default().attempts = MAX_ATTEMPTS;
            // The query's limit counts values only, and others may have taken the space since.
            let bytes: usize = rows.iter().map(|(key, rows)| key.size() + rows_bytes(rows)).sum();
            if bytes > self.max_bytes.saturating_sub(self.bytes) {
                return;
            }
        }
        if rows.keys().all(|key| key.index.keeps_rows) {
            rows.into_iter().for_each(|(key, rows)| self.insert(key, rows));
            return;
        }
        let mut left = self.max_bytes / 2;
        let fits = |(key, rows): &(CacheKey, Arc<Rows>)| {
            let rest = left.checked_sub(key.size() + rows_bytes(rows));
            left = rest.unwrap_or(left);
            rest.is_some()
        };
        self.prefetch.fill(rows.into_iter().filter(fits).collect());
    }

    pub(super) fn peek(&self, key: &CacheKey) -> Option<Arc<Rows>> {
        if let Some(group) = self.groups.peek(key) {
            return Some(group.rows.clone());
        }
        self.indexes.get(key.index)?.keys.is_absent(key).then(Arc::default)
    }

    pub(super) fn is_current(&self, miss: &CacheMiss) -> bool {
        let index = self.indexes.get(miss.key.index).map_or(0, |index| index.epoch);
        miss.plan.epochs == (self.epoch, index)
    }

    /// Caches the rows of a group, and evicts the least recently used groups.
    pub(super) fn insert(&mut self, key: CacheKey, rows: Arc<Rows>) {
        let bytes = key.size() + rows_bytes(&rows);
        self.remove(&key);
        self.push(key, Group { rows, bytes });
    }

    fn push(&mut self, key: CacheKey, group: Group) {
        // Groups above half the budget are not cached: they would evict everything else.
        if group.bytes > self.max_bytes / 2 {
            if self.large.len() < MAX_LARGE {
                self.large.insert(key);
            }
            return;
        }
        self.large.remove(&key);
        self.bytes += group.bytes;
        self.groups.push(key, group);
        while self.bytes > self.max_bytes {
            let Some((_, group)) = self.groups.pop_lru() else { break };
            self.bytes -= group.bytes;
        }
    }

    fn remove(&mut self, key: &CacheKey) {
        self.prefetch.remove(key);
        if let Some(group) = self.groups.pop(key) {
            self.bytes -= group.bytes;
        }
    }

    pub(super) fn fill_keys(&mut self, miss: &CacheMiss, keys: KeySet) {
        if miss.plan.wants_keys.is_some() && miss.plan.epochs.0 == self.epoch {
            let max = self.max_keys_of(miss.key.index);
            self.indexes.entry(miss.key.index).or_default().keys.loaded(keys, max);
        }
    }

    /// Ends a miss, whether or not it filled the cache.
    pub(super) fn end(&mut self, miss: &CacheMiss) {
        if !miss.plan.is_busy {
            self.loading.remove(&miss.key);
        }
        if let Ahead::Table { .. } = miss.plan.prefetch
            && miss.plan.epochs.0 == self.epoch
        {
            self.indexes.entry(miss.key.index).or_default().is_prefetching = false;
        }
        self.fill_keys(miss, KeySet::Unknown);
    }

    pub(super) fn apply(&mut self, update: CacheUpdate) {
        match update {
            CacheUpdate::UpsertRow(group, key, row) => {
                self.change(&group, key, Some(row));
                self.insert_key(&group);
            }
            CacheUpdate::DeleteRow(group, key) => {
                self.change(&group, key, None);
                self.indexes.entry(group.index).or_default().epoch += 1;
            }
            CacheUpdate::ReplaceGroup(group, key, row) => {
                self.insert_key(&group);
                self.insert(group, Arc::new(Rows::from([(key, row)])));
            }
            CacheUpdate::InvalidateGroup(group) => {
                self.remove(&group);
                self.insert_key(&group);
            }
            CacheUpdate::InvalidateTable(index) => {
                let state = self.indexes.entry(index).or_default();
                state.epoch += 1;
                // Its rows may be prefetched once more.
                state.attempts = 0;
                self.prefetch.remove_all(index);
                let keys = self.groups.iter().map(|(key, _)| key);
                let keys: Vec<CacheKey> = keys.filter(|key| key.index == index).cloned().collect();
                keys.iter().for_each(|key| self.remove(key));
            }
        }
    }

    /// Changes one row of a group whose rows are known.
    fn change(&mut self, group_key: &CacheKey, key: Cells, row: Option<Cells>) {
        let mut group = match self.groups.pop(group_key) {
            Some(group) => {
                self.bytes -= group.bytes;
                group
            }
            None => match self.peek(group_key) {
                Some(rows) => Group { rows, bytes: group_key.size() },
                None => return,
            },
        };
        let added = row.as_ref().map_or(0, |row| row_bytes(&key, row));
        let rows = Arc::make_mut(&mut group.rows);
        let before = match row {
            Some(row) => rows.insert(key.clone(), row),
            None => rows.remove(&key),
        };
        let removed = before.map_or(0, |row| row_bytes(&key, &row));
        group.bytes = (group.bytes + added).saturating_sub(removed);
        self.push(group_key.clone(), group);
    }

    /// How many keys of this index may be kept in addition to those of the others.
    fn max_keys_of(&self, index: &'static CacheIndex) -> usize {
        let others = self.indexes.iter().filter(|(other, _)| **other != index);
        let taken = others.map(|(_, other)| other.keys.len()).sum::<usize>();
        self.max_keys.saturating_sub(taken)
    }

    /// Records that the group has rows.
    fn insert_key(&mut self, key: &CacheKey) {
        let max_keys = self.max_keys_of(key.index);
        let index = self.indexes.entry(key.index).or_default();
        index.epoch += 1;
        index.keys.add(key, max_keys);
    }

    pub(super) fn set_maintenance(&mut self, generation: i64) {
        // Called by each heartbeat.
        self.prefetch.expire();
        if self.maintenance.replace(generation).is_some_and(|before| before != generation) {
            self.clear();
        }
    }

    pub(super) fn clear(&mut self) {
        self.groups.clear();
        self.bytes = 0;
        self.indexes.clear();
        self.prefetch.clear();
        self.loading.clear();
        self.large.clear();
        self.epoch += 1;
    }
}

impl Index {
    /// Whether to prefetch all rows now.
    fn begin_prefetch(&mut self) -> bool {
        let begins =
            !self.is_prefetching && self.attempts < MAX_ATTEMPTS && self.keys.is_few(FEW_GROUPS);
        if begins {
            self.is_prefetching = true;
            self.attempts += 1;
        }
        begins
    }
}

fn rows_bytes(rows: &Rows) -> usize {
    rows.iter().map(|(key, row)| row_bytes(key, row)).sum()
}

fn row_bytes(key: &Cells, row: &Cells) -> usize {
    key.size() + row.size() + OVERHEAD_BYTES
}
