#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::BytesMut;
use tokio_postgres::types::{ToSql, Type};

use super::{Batch, CHUNK_BYTES};
use crate::{
    account::cache::{Cache, CacheKey, CacheUpdate, Lookup, Overlaid, UncommittedOverlay},
    postgres::{
        cell::{Cell, Cells},
        statement::{
            CacheIndex, Column, ColumnType, Delete, ExpectedRows, Sql, Table, Upsert, Write, bytea,
        },
    },
};

/// A table as a store may have it: a key of three parts, and columns of other types.
static EVENTS: Table = Table {
    name: "events",
    key: &[bytea("room"), Column("kind", ColumnType::Text), bytea("state_key")],
    values: &[Column("sent", ColumnType::Timestamptz), Column("position", ColumnType::Int8)],
    cache: Some(&BY_ROOM_AND_KIND),
};

static BY_ROOM_AND_KIND: CacheIndex = CacheIndex {
    table: &EVENTS,
    group: &GROUP,
    row: None,
    keys: None,
    prefetch: None,
    row_key: 1,
    keeps_rows: true,
};

static GROUP: Sql = Sql::get_group("events.group", &EVENTS);
static UPSERT: Upsert = Upsert::new("events.upsert", &EVENTS);
static DELETE: Delete = Delete::new("events.delete", &EVENTS);
static FORGET: Write = Write {
    sql: Sql::new("events.forget", "DELETE FROM {schema}.events", &[Type::INT8, Type::BYTEA_ARRAY]),
    table: &EVENTS,
    expected_rows: ExpectedRows::Any,
};

fn key(room: &str, state_key: &str) -> Cells {
    let cells = [room.as_bytes().to_vec().into(), "kind".to_owned().into(), bytes(state_key)];
    cells.into()
}

fn bytes(text: &str) -> Cell {
    text.as_bytes().to_vec().into()
}

fn values(position: i64) -> Cells {
    [Cell::Time(std::time::SystemTime::UNIX_EPOCH), Cell::Int(position)].into()
}

fn group(room: &str) -> CacheKey {
    CacheKey::of_row(&BY_ROOM_AND_KIND, &key(room, "")).0
}

/// An array parameter in its binary form.
fn sent(column: &super::Column<'_>, ty: &Type) -> BytesMut {
    let mut sent = BytesMut::new();
    column.to_sql_checked(ty, &mut sent).unwrap();
    sent
}

#[test]
fn a_key_staged_twice_is_one_row_and_rows_are_sent_in_the_order_of_their_keys() {
    let mut batch = Batch::default();
    for (state_key, position) in [("b", 1), ("a", 2), ("b", 3)] {
        batch.upsert(&UPSERT, key("room", state_key), values(position));
    }
    assert_eq!(batch.rows(), 2);
    let statements = batch.statements();
    assert_eq!(statements.len(), 1);
    assert_eq!((statements[0].sql.name, statements[0].min_rows), ("events.upsert", 2));
    let types = UPSERT.sql().types();
    assert_eq!(statements[0].columns.len(), types.len() - 1);
    let mut expected = BytesMut::new();
    vec![2_i64, 3].to_sql_checked(&Type::INT8_ARRAY, &mut expected).unwrap();
    assert_eq!(sent(&statements[0].columns[4], &types[5]), expected);
}

#[test]
fn statements_run_in_the_order_in_which_they_were_staged_first() {
    let mut batch = Batch::default();
    batch.upsert(&UPSERT, key("room", "a"), values(1));
    batch.delete(&DELETE, key("room", "a"));
    batch.write(&FORGET, [bytes("room")], Cells::default(), []);
    batch.upsert(&UPSERT, key("room", "b"), values(1));
    let sent: Vec<_> =
        batch.statements().iter().map(|sent| (sent.sql.name, sent.min_rows)).collect();
    assert_eq!(sent, [("events.upsert", 2), ("events.delete", 0), ("events.forget", 0)]);
}

#[test]
fn a_large_batch_is_split_and_no_row_is_lost() {
    let mut batch = Batch::default();
    for number in 0..5_u8 {
        batch.write(&FORGET, [vec![number; CHUNK_BYTES / 2]], Cells::default(), []);
    }
    let rows: Vec<_> = batch.statements().iter().map(|sent| sent.columns[0].0.len()).collect();
    assert_eq!(rows.iter().sum::<usize>(), 5);
    assert!(rows.len() >= 3, "{rows:?}");
    // A row above the limit is sent alone.
    let mut batch = Batch::default();
    batch.write(&FORGET, [vec![0; 2 * CHUNK_BYTES]], Cells::default(), []);
    assert_eq!(batch.statements().len(), 1);
}

#[test]
fn a_write_updates_the_overlay_before_the_commit_and_the_cache_after_it() {
    let cache = Arc::new(Cache::new(1 << 20, 0));
    let Some(Lookup::Miss(miss)) = cache.look_up(&group("room")) else {
        panic!("a hit in an empty cache")
    };
    miss.fill(Arc::default());
    drop(miss);
    let mut batch = Batch::default();
    batch.upsert(&UPSERT, key("room", "a"), values(1));
    batch.upsert(&UPSERT, key("room", "b"), values(2));
    batch.delete(&DELETE, key("room", "a"));
    let calls = Arc::new(AtomicUsize::new(0));
    let (shown, committed) = (calls.clone(), calls.clone());
    batch.on_overlay(move || {
        shown.fetch_add(1, Ordering::Relaxed);
    });
    batch.on_commit(move || {
        committed.fetch_add(10, Ordering::Relaxed);
    });

    let overlay = UncommittedOverlay::new(cache.clone());
    batch.apply_to(&overlay);
    let Some(Overlaid::Known(rows)) = overlay.look_up(&group("room")) else {
        panic!("not in the overlay")
    };
    let only = [([bytes("b")].into(), values(2))].into();
    assert_eq!(*rows, only);
    assert!(overlay.has_written(&["events"]) && !overlay.has_written(&["profiles"]));
    assert!(overlay.look_up(&group("another room")).is_none());
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    assert!(cache.peek(&group("room")).unwrap().is_empty(), "not committed yet");

    Batch::committed(vec![batch], &cache);
    assert_eq!(*cache.peek(&group("room")).unwrap(), only);
    assert_eq!(calls.load(Ordering::Relaxed), 11);
}

#[test]
fn a_hand_written_statement_updates_the_cache_as_declared() {
    let cache = Arc::new(Cache::new(1 << 20, 0));
    let mut batch = Batch::default();
    let update = CacheUpdate::ReplaceGroup(group("room"), [bytes("a")].into(), values(1));
    batch.write(&FORGET, [bytes("room")], Cells::default(), [update]);
    Batch::committed(vec![batch], &cache);
    assert_eq!(cache.peek(&group("room")).unwrap().len(), 1);
    let mut batch = Batch::default();
    let update = CacheUpdate::InvalidateTable(&BY_ROOM_AND_KIND);
    batch.write(&FORGET, [bytes("room")], Cells::default(), [update]);
    Batch::committed(vec![batch], &cache);
    assert!(cache.peek(&group("room")).is_none());
}

#[test]
fn debug_prints_no_staged_value() {
    let mut batch = Batch::default();
    batch.write(&FORGET, [bytes("secret")], Cells::default(), []);
    let statements = batch.statements();
    assert_eq!(
        format!("{:?} {:?}", statements[0].columns[0], key("secret", "secret")),
        "[1 cells] Cells([_, _, _])"
    );
}

#[test]
fn a_write_of_a_cached_table_that_names_no_update_is_refused() {
    let mut batch = Batch::default();
    batch.upsert(&UPSERT, key("room", "a"), values(1));
    assert!(batch.check().is_ok());
    batch.write(&FORGET, [bytes("room")], Cells::default(), []);
    assert!(batch.check().is_err());
}
