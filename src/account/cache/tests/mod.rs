//! The cache without a database: three tables, and what a database would answer.

#![allow(clippy::unwrap_used, clippy::panic)]

mod model;
mod small_table;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{CacheKey, Rows};
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
