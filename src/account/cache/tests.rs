//! The cache against a model: after any sequence of reads, writes, dropped misses and rollbacks, a
//! hit has the rows of the database.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
};

use proptest::{collection::vec, prelude::*, sample::Index};

use super::{
    Ahead, Cache, CacheKey, CacheMiss, CacheUpdate, Lookup, Overlaid, Rows, UncommittedOverlay,
};
use crate::postgres::{
    cell::{Cell, Cells},
    statement::{CacheIndex, Column, ColumnType, Prefetched, Sql, Table},
};

const INT: ColumnType = ColumnType::Int8;
const VALUES: &[Column] = &[Column("value", INT)];

/// Rows in groups, with a key of three parts.
static MANY: Table = Table {
    name: "many",
    key: &[Column("a", INT), Column("b", ColumnType::Text), Column("c", INT)],
    values: VALUES,
    cache: Some(&BY_TWO),
};
static BY_TWO: CacheIndex = index(&MANY, &GET_MANY, 1, true);
static GET_MANY: Sql = Sql::get_group("many.group", &MANY);

/// Groups of one row.
static ONE: Table =
    Table { name: "one", key: &[Column("a", INT)], values: VALUES, cache: Some(&BY_KEY) };
static BY_KEY: CacheIndex = index(&ONE, &GET_ONE, 0, true);
static GET_ONE: Sql = Sql::get("one.get", &ONE);

/// Caches only which groups exist.
static KEYS: Table = Table {
    name: "keys",
    key: &[Column("a", INT), Column("b", INT)],
    values: VALUES,
    cache: Some(&BY_FIRST),
};
static BY_FIRST: CacheIndex = index(&KEYS, &GET_KEYS, 1, false);
static GET_KEYS: Sql = Sql::get_group("keys.group", &KEYS);

const fn index(
    table: &'static Table,
    group: &'static Sql,
    row_key: usize,
    keeps_rows: bool,
) -> CacheIndex {
    let prefetch = if keeps_rows { Some(Prefetched::SmallTable(group)) } else { None };
    CacheIndex { table, group, row: None, keys: Some(group), prefetch, row_key, keeps_rows }
}

static TABLES: [&Table; 3] = [&MANY, &ONE, &KEYS];

/// A group: its table, and a number.
type Group = (usize, u8);

/// What a database has: the values of a group's rows.
type Database = BTreeMap<Group, BTreeMap<u8, u8>>;

fn group_cells((table, group): Group) -> Vec<Cell> {
    match table {
        0 => vec![Cell::Int(group.into()), format!("group {group}").into()],
        _ => vec![Cell::Int(group.into())],
    }
}

fn cache_key(group: Group) -> CacheKey {
    CacheKey::new(TABLES[group.0].cache.unwrap(), group_cells(group).into_iter().collect::<Cells>())
}

/// A row's key within its group: none where the group has one row.
fn row_cells((table, _): Group, row: u8) -> Cells {
    if table == 1 { Cells::default() } else { [Cell::Int(row.into())].into() }
}

fn whole_key(group: Group, row: u8) -> Cells {
    group_cells(group).into_iter().chain(row_cells(group, row).iter().cloned()).collect()
}

fn value(value: u8) -> Cells {
    [Cell::Int(value.into())].into()
}

fn rows(database: &Database, group: Group) -> Rows {
    let rows = database.get(&group).into_iter().flatten();
    rows.map(|(row, data)| (row_cells(group, *row), value(*data))).collect()
}

/// All groups of a table that have rows.
fn all_rows(database: &Database, table: usize) -> HashMap<CacheKey, Arc<Rows>> {
    let groups = database.iter().filter(|((of, _), rows)| *of == table && !rows.is_empty());
    groups.map(|(group, _)| (cache_key(*group), Arc::new(rows(database, *group)))).collect()
}

/// The fingerprints of a table's groups, of up to `max` rows.
fn fingerprints(database: &Database, table: usize, max: usize) -> Vec<u8> {
    let groups = database.iter().filter(|((of, _), _)| *of == table);
    let rows = groups.flat_map(|(group, rows)| rows.iter().map(move |_| *group));
    rows.take(max).flat_map(|group| cache_key(group).fingerprint().to_be_bytes()).collect()
}

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

fn missed(cache: &Arc<Cache>, number: u8) -> CacheMiss {
    match cache.look_up(&cache_key((1, number))).unwrap() {
        Lookup::Miss(miss) => miss,
        Lookup::Hit(_) => panic!("group {number} is cached"),
    }
}

fn reads_table(miss: &CacheMiss) -> bool {
    matches!(miss.plan.prefetch, Ahead::Table { .. })
}

#[test]
fn a_small_table_is_read_by_one_miss_at_a_time_and_tried_three_times() {
    let cache = Arc::new(Cache::new(1 << 20, 100));
    let database: Database = (0..3).map(|group| ((1, group), [(0, 7)].into())).collect();
    let load_keys = || {
        let first = missed(&cache, 0);
        assert!(!reads_table(&first));
        first.fill_keys(&fingerprints(&database, 1, 10));
    };
    load_keys();
    for _ in 0..3 {
        let planned = missed(&cache, 0);
        assert!(reads_table(&planned));
        assert!(!reads_table(&missed(&cache, 1)));
        // Written meanwhile: its rows are dropped.
        cache.apply([CacheUpdate::InvalidateGroup(cache_key((1, 2)))]);
        planned.fill_prefetched(all_rows(&database, 1));
    }
    assert!(!reads_table(&missed(&cache, 0)));

    // A miss of before `clear` does not end the prefetch of one after it.
    cache.clear();
    load_keys();
    let before = missed(&cache, 0);
    assert!(reads_table(&before));
    cache.clear();
    load_keys();
    let after = missed(&cache, 0);
    drop(before);
    assert!(reads_table(&after) && !reads_table(&missed(&cache, 1)));
    after.fill_prefetched(all_rows(&database, 1));
    assert!(matches!(cache.look_up(&cache_key((1, 2))).unwrap(), Lookup::Hit(_)));
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
