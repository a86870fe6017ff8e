//! A second store on the same engine, without a change to it: two tables, one with a key of three parts, own
//! migrations and own errors. Compiled into the crate's unit tests, because the engine is not public.
#![allow(clippy::unwrap_used, clippy::panic)]

mod cases;

use std::sync::Arc;

use tokio_postgres::Row;

use crate::{
    Error,
    account::{
        cipher::{Codec, column},
        handle::Opening,
        store::{Lifecycle, StoreKind},
        store_handle::StoreHandle,
        write::batch::Batch,
    },
    postgres::{
        cell::{Cell, Cells},
        migrations::Migration,
        statement::{CacheIndex, Column, ColumnType, Delete, Sql, Table, Upsert, bytea},
    },
};

static STATE: Table = Table {
    name: "toy_state",
    key: &[bytea("room_id"), Column("kind", ColumnType::Text), bytea("state_key")],
    values: &[Column("position", ColumnType::Int8), bytea("data")],
    cache: Some(&BY_KIND),
};

static BY_KIND: CacheIndex = CacheIndex {
    table: &STATE,
    group: &GET_BY_KIND,
    row: Some(&GET_STATE),
    keys: Some(&STATE_KEYS),
    prefetch: None,
    row_key: 1,
    keeps_rows: true,
};

static GET_STATE: Sql = Sql::get("toy_state.get", &STATE);
static GET_BY_KIND: Sql = Sql::get_group("toy_state.by_kind", &STATE);
static STATE_KEYS: Sql = Sql::key_set("toy_state.keys", &STATE);
static UPSERT_STATE: Upsert = Upsert::new("toy_state.upsert", &STATE);
static DELETE_STATE: Delete = Delete::new("toy_state.delete", &STATE);

static PROFILES: Table =
    Table { name: "toy_profiles", key: &[bytea("user_id")], values: &[bytea("data")], cache: None };

static GET_PROFILE: Sql = Sql::get("toy_profiles.get", &PROFILES);
static UPSERT_PROFILE: Upsert = Upsert::new("toy_profiles.upsert", &PROFILES);

static TOY_STORE: StoreKind = StoreKind {
    name: "toy_store",
    migrations: &[Migration {
        version: 1,
        compatible_with: 1,
        name: "initial",
        sql: include_str!("0001_initial.sql"),
    }],
    statements: &[&[
        &GET_STATE,
        &GET_BY_KIND,
        &STATE_KEYS,
        UPSERT_STATE.sql(),
        DELETE_STATE.sql(),
        &GET_PROFILE,
        UPSERT_PROFILE.sql(),
    ]],
    hidden_until_commit: &[],
};

/// The store's own errors.
#[derive(Debug)]
enum ToyError {
    Engine(Error),
    NotText,
}

impl From<Error> for ToyError {
    fn from(error: Error) -> Self {
        Self::Engine(error)
    }
}

struct Toy;

impl Lifecycle for Toy {}

#[derive(Clone)]
struct ToyStore(Arc<StoreHandle>);

/// A room, a kind, and a state key.
type StateKey<'a> = [&'a str; 3];

fn cells(codec: &Codec, [room, kind, key]: StateKey<'_>) -> [Cell; 3] {
    let (room, key) = (codec.key(STATE.name, room), codec.key(STATE.name, key));
    [room.into(), kind.to_owned().into(), key.into()]
}

impl ToyStore {
    fn of(account: &Opening) -> Self {
        let (store, _) = StoreHandle::new(account, &TOY_STORE, |_| Arc::new(Toy));
        Self(store)
    }

    async fn set_state(&self, key: StateKey<'_>, data: &str) -> Result<(), ToyError> {
        let account = self.0.operation()?;
        let (key, data) = (cells(&account.codec, key), data.to_owned());
        let write = account.write(|staging| async move {
            let mut batch = Batch::default();
            let data = staging.codec.seal(STATE.name, &[], &data)?;
            batch.upsert(&UPSERT_STATE, key, [Cell::Int(7), data.into()]);
            Ok(batch)
        });
        Ok(write.await?)
    }

    async fn state(&self, key: StateKey<'_>) -> Result<Option<String>, ToyError> {
        let account = self.0.operation()?;
        let row = account.row(&BY_KIND, cells(&account.codec, key)).await?;
        let open = |row: Cells| account.codec.open(STATE.name, &[], row.bytes(1, STATE.name)?);
        Ok(row.map(open).transpose()?)
    }

    async fn delete_state(&self, key: StateKey<'_>) -> Result<(), ToyError> {
        let account = self.0.operation()?;
        let key = cells(&account.codec, key);
        Ok(account.delete(&DELETE_STATE, key).await?)
    }

    async fn set_profile(&self, user: &str, data: &[u8]) -> Result<(), ToyError> {
        let data = std::str::from_utf8(data).map_err(|_| ToyError::NotText)?;
        let account = self.0.operation()?;
        let user = account.codec.key(PROFILES.name, user);
        let data = account.codec.seal(PROFILES.name, &[&user], &data)?;
        let mut batch = Batch::default();
        batch.upsert(&UPSERT_PROFILE, [user], [data]);
        Ok(account.write(move |_| std::future::ready(Ok(batch))).await?)
    }

    async fn profile(&self, user: &str) -> Result<Option<String>, ToyError> {
        let account = self.0.operation()?;
        let user = account.codec.key(PROFILES.name, user);
        let row = account.query_opt(&GET_PROFILE, &[&user]).await?;
        let open =
            |row: Row| account.codec.open(PROFILES.name, &[&user], column(&row, 0, PROFILES.name)?);
        Ok(row.map(open).transpose()?)
    }
}
