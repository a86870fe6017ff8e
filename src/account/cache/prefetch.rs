//! Groups that are expected to be read, and are read together with the first of them. (Tables of few rows are
//! read as a whole, see `rows`.)
//!
//! Those of a table whose rows are cached are cached as if they had been read. Others are kept here: a
//! prefetched group is handed to one reader only, dropped by every write of it, and never prefetched a
//! second time, so nothing is answered from memory that was answered before.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{CacheKey, Rows};
use crate::postgres::statement::CacheIndex;

/// Expected and prefetched groups are forgotten after this time without a further one.
const WINDOW: Duration = Duration::from_secs(1);

/// How many groups are prefetched at once.
const MAX_EXPECTED: usize = 4_096;

/// How many groups are remembered as read. Beyond, a group may be prefetched again.
const MAX_READ: usize = 65_536;

#[derive(Default)]
pub(super) struct Prefetch {
    expected: HashSet<CacheKey>,
    last_expected: Option<Instant>,
    rows: HashMap<CacheKey, Arc<Rows>>,
    last_used: Option<Instant>,
    /// Fingerprints of the groups that were read or prefetched.
    read: HashSet<u64>,
}

impl Prefetch {
    /// Records that the group is likely to be read next.
    pub(super) fn expect(&mut self, key: CacheKey) {
        self.expire();
        self.last_expected = Some(Instant::now());
        if self.expected.len() < MAX_EXPECTED && !self.read.contains(&key.fingerprint()) {
            self.expected.insert(key);
        }
    }

    /// The groups to fetch together with this one.
    pub(super) fn plan(&mut self, key: &CacheKey) -> Vec<CacheKey> {
        if self.read.len() > MAX_READ {
            self.read.clear();
        }
        self.read.insert(key.fingerprint());
        self.expire();
        self.expected.remove(key);
        let (planned, others) =
            self.expected.drain().partition(|expected: &CacheKey| expected.index == key.index);
        self.expected = others;
        let planned: HashSet<CacheKey> = planned;
        self.read.extend(planned.iter().map(CacheKey::fingerprint));
        planned.into_iter().collect()
    }

    pub(super) fn fill(&mut self, rows: HashMap<CacheKey, Arc<Rows>>) {
        self.rows = rows;
        self.last_used = Some(Instant::now());
    }

    /// The rows of a prefetched group, which is forgotten.
    pub(super) fn take(&mut self, key: &CacheKey) -> Option<Arc<Rows>> {
        self.expire();
        let rows = self.rows.remove(key)?;
        self.last_used = Some(Instant::now());
        Some(rows)
    }

    /// Frees what was not used in time.
    pub(super) fn expire(&mut self) {
        let is_over = |last: Option<Instant>| last.is_some_and(|last| last.elapsed() > WINDOW);
        if is_over(self.last_expected) {
            (self.expected, self.last_expected) = Default::default();
        }
        if is_over(self.last_used) {
            (self.rows, self.last_used) = Default::default();
        }
    }

    /// Forgets a group that was written.
    pub(super) fn remove(&mut self, key: &CacheKey) {
        self.rows.remove(key);
    }

    /// Forgets all groups of an index.
    pub(super) fn remove_all(&mut self, index: &'static CacheIndex) {
        self.rows.retain(|key, _| key.index != index);
    }

    /// Forgets all rows, but not which groups were read.
    pub(super) fn clear(&mut self) {
        self.rows = HashMap::new();
        self.expected = HashSet::new();
    }
}
