//! The cache against a model: after any sequence of reads, writes, dropped misses and rollbacks, a
//! hit has the rows of the database.

use std::{collections::HashMap, fmt, sync::Arc};

use proptest::{collection::vec, prelude::*, sample::Index};

use super::{
    super::{
        Ahead, Cache, CacheKey, CacheMiss, CacheUpdate, Lookup, Overlaid, Rows, UncommittedOverlay,
    },
    Database, Group, TABLES, all_rows, cache_key, fingerprints, rows, value, whole_key,
};

#[derive(Clone, Debug)]
enum Write {
    Upsert(Group, u8, u8),
    Delete(Group, u8),
    /// By a hand-written statement, which only invalidates the group.
    Change(Group, u8, u8),
    /// Another value for all rows of a table.
    ChangeAll(usize, u8),
}

impl Write {
    fn apply(&self, database: &mut Database) -> CacheUpdate {
        match *self {
            Self::Upsert(group, row, data) => {
                let row = if group.0 == 1 { 0 } else { row };
                database.entry(group).or_default().insert(row, data);
                let table = TABLES[group.0];
                CacheUpdate::of_upsert(table, &whole_key(group, row), &value(data)).unwrap()
            }
            Self::Delete(group, row) => {
                let row = if group.0 == 1 { 0 } else { row };
                database.entry(group).or_default().remove(&row);
                CacheUpdate::of_delete(TABLES[group.0], &whole_key(group, row)).unwrap()
            }
            Self::Change(group, row, data) => {
                Self::Upsert(group, row, data).apply(database);
                CacheUpdate::InvalidateGroup(cache_key(group))
            }
            Self::ChangeAll(table, data) => {
                let groups = database.iter_mut().filter(|((of, _), _)| *of == table);
                groups.flat_map(|(_, rows)| rows.values_mut()).for_each(|value| *value = data);
                CacheUpdate::InvalidateTable(TABLES[table].cache.unwrap())
            }
        }
    }
}

/// When the query for a miss reads the database.
#[derive(Clone, Copy, Debug)]
enum QueryTime {
    AtLookup,
    Now,
}

#[derive(Clone, Debug)]
enum Step {
    LookUp(Group),
    /// Fills a miss with the result of its query.
    Fill(Index, QueryTime),
    DropMiss(Index),
    DisableKeySet(Index),
    /// Commits in the database, then fills these misses, then updates the cache.
    Commit(Vec<Write>, Vec<(Index, QueryTime)>),
    /// In a transaction that stays open.
    Save(Vec<Write>),
    LookUpInOverlay(Group),
    FillOverlay(Index),
    CommitSaves,
    RollBack,
    /// Others than the owner change rows.
    Maintain(Vec<Write>),
    Clear,
}

fn group() -> impl Strategy<Value = Group> {
    (0..TABLES.len(), 0..3_u8)
}

fn write() -> impl Strategy<Value = Write> {
    let (row, data) = (0..3_u8, 0..100_u8);
    prop_oneof![
        4 => (group(), row.clone(), data.clone()).prop_map(|(group, row, data)| Write::Upsert(group, row, data)),
        2 => (group(), row.clone()).prop_map(|(group, row)| Write::Delete(group, row)),
        1 => (group(), row, data.clone()).prop_map(|(group, row, data)| Write::Change(group, row, data)),
        1 => (0..TABLES.len(), data).prop_map(|(table, data)| Write::ChangeAll(table, data)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let query_time = || prop_oneof![Just(QueryTime::AtLookup), Just(QueryTime::Now)];
    let miss = || any::<Index>();
    let writes = || vec(write(), 0..3);
    prop_oneof![
        8 => group().prop_map(Step::LookUp),
        4 => (miss(), query_time()).prop_map(|(miss, query_time)| Step::Fill(miss, query_time)),
        1 => miss().prop_map(Step::DropMiss),
        1 => miss().prop_map(Step::DisableKeySet),
        4 => (writes(), vec((miss(), query_time()), 0..2)).prop_map(|(writes, fills)| Step::Commit(writes, fills)),
        3 => writes().prop_map(Step::Save),
        3 => group().prop_map(Step::LookUpInOverlay),
        2 => miss().prop_map(Step::FillOverlay),
        1 => Just(Step::CommitSaves),
        1 => Just(Step::RollBack),
        1 => writes().prop_map(Step::Maintain),
        1 => Just(Step::Clear),
    ]
}

/// One step a line, so that a failure can be read.
#[derive(Clone)]
struct Steps(Vec<Step>);

impl fmt::Debug for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|step| write!(f, "\n    {step:?}"))
    }
}

/// A miss whose query is in flight, with the database's rows at the lookup.
struct Pending {
    miss: CacheMiss,
    group: Group,
    rows: Arc<Rows>,
    all_rows: HashMap<CacheKey, Arc<Rows>>,
    keys: Vec<u8>,
}

/// A transaction that stays open.
struct Open {
    overlay: Arc<UncommittedOverlay>,
    database: Database,
    updates: Vec<CacheUpdate>,
    unknown: Vec<(Group, u64, Arc<Rows>)>,
}

struct Harness {
    cache: Arc<Cache>,
    max_keys: usize,
    database: Database,
    pending: Vec<Pending>,
    open: Option<Open>,
    maintenance: i64,
}

fn take<T>(list: &mut Vec<T>, index: Index) -> Option<T> {
    (!list.is_empty()).then(|| list.swap_remove(index.index(list.len())))
}

impl Harness {
    fn new(bytes: usize, max_keys: usize) -> Self {
        let cache = Arc::new(Cache::new(bytes, max_keys));
        cache.set_maintenance(0);
        let (database, pending) = Default::default();
        Self { cache, max_keys, database, pending, open: None, maintenance: 0 }
    }

    fn look_up(&mut self, group: Group) {
        match self.cache.look_up(&cache_key(group)).unwrap() {
            Lookup::Hit(found) => assert_eq!(*found, rows(&self.database, group)),
            Lookup::Miss(miss) => {
                let max = miss.plan.wants_keys.map_or(0, |max| usize::try_from(max).unwrap());
                let keys = fingerprints(&self.database, group.0, max);
                let rows = Arc::new(rows(&self.database, group));
                let all_rows = all_rows(&self.database, group.0);
                self.pending.push(Pending { miss, group, rows, all_rows, keys });
            }
        }
    }

    fn fill(&mut self, index: Index, query_time: QueryTime) {
        let Some(pending) = take(&mut self.pending, index) else { return };
        let Pending { miss, group, rows: rows_at_lookup, all_rows: all_at_lookup, keys } = pending;
        let (rows, all_rows, keys) = match query_time {
            QueryTime::AtLookup => (rows_at_lookup, all_at_lookup, keys),
            QueryTime::Now => {
                let keys = fingerprints(&self.database, group.0, self.max_keys + 1);
                let rows = Arc::new(rows(&self.database, group));
                (rows, all_rows(&self.database, group.0), keys)
            }
        };
        if let Ahead::Table { .. } = miss.plan.prefetch {
            miss.fill_prefetched(all_rows);
        }
        if miss.plan.wants_keys.is_some() {
            miss.fill_keys(&keys);
        }
        if TABLES[group.0].cache.unwrap().keeps_rows {
            miss.fill(rows);
        }
    }

    /// The open transaction; as all writes pass one lane, nothing else is written until it ends.
    fn open(&mut self) -> &mut Open {
        let (cache, database) = (&self.cache, &self.database);
        self.open.get_or_insert_with(|| Open {
            overlay: UncommittedOverlay::new(cache.clone()),
            database: database.clone(),
            updates: Vec::new(),
            unknown: Vec::new(),
        })
    }

    fn look_up_in_overlay(&mut self, group: Group) {
        let open = self.open();
        let expected = rows(&open.database, group);
        match open.overlay.look_up(&cache_key(group)) {
            Some(Overlaid::Known(found)) => assert_eq!(*found, expected),
            Some(Overlaid::Unknown(seen)) => open.unknown.push((group, seen, Arc::new(expected))),
            // Not changed by the transaction: the committed rows.
            None => {
                assert_eq!(expected, rows(&self.database, group));
                self.look_up(group);
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::LookUp(group) => self.look_up(group),
            Step::Fill(index, query_time) => self.fill(index, query_time),
            Step::DropMiss(index) => drop(take(&mut self.pending, index)),
            Step::DisableKeySet(index) => {
                if let Some(pending) = take(&mut self.pending, index) {
                    pending.miss.disable_key_set();
                }
            }
            Step::Commit(writes, fills) if self.open.is_none() => {
                let updates: Vec<_> =
                    writes.iter().map(|write| write.apply(&mut self.database)).collect();
                fills.into_iter().for_each(|(index, query_time)| self.fill(index, query_time));
                self.cache.apply(updates);
            }
            Step::Save(writes) => {
                let open = self.open();
                let updates: Vec<_> =
                    writes.iter().map(|write| write.apply(&mut open.database)).collect();
                open.overlay.apply(&updates, []);
                open.updates.extend(updates);
            }
            Step::LookUpInOverlay(group) => self.look_up_in_overlay(group),
            Step::FillOverlay(index) => {
                let open = self.open();
                if let Some((group, seen, rows)) = take(&mut open.unknown, index)
                    && TABLES[group.0].cache.unwrap().keeps_rows
                {
                    open.overlay.fill(&cache_key(group), seen, rows);
                }
            }
            Step::CommitSaves => {
                if let Some(open) = self.open.take() {
                    self.database = open.database;
                    self.cache.apply(open.updates);
                }
            }
            Step::RollBack => self.open = None,
            Step::Maintain(writes) if self.open.is_none() => {
                for write in writes {
                    write.apply(&mut self.database);
                }
                self.maintenance += 1;
                self.cache.set_maintenance(self.maintenance);
            }
            Step::Commit(..) | Step::Maintain(_) => {}
            Step::Clear => self.cache.clear(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn a_hit_has_the_rows_of_the_database(
        bytes in prop_oneof![Just(800_usize), Just(1 << 20)],
        max_keys in prop_oneof![Just(0_usize), Just(2), Just(100)],
        steps in vec(step(), 0..60).prop_map(Steps),
    ) {
        let mut harness = Harness::new(bytes, max_keys);
        steps.0.into_iter().for_each(|step| harness.step(step));
        // At the end each group is looked up once more.
        for table in 0..TABLES.len() {
            (0..3).for_each(|group| harness.look_up((table, group)));
        }
    }
}
