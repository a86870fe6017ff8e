//! How much there is of what.

use std::{collections::BTreeMap, time::SystemTime};

use serde::Serialize;
use tokio_postgres::{Row, types::Type};

use super::{
    connection::{AdminConnection, Transaction},
    owner::{COMMITS, IS_ALIVE},
    time::unix,
};
use crate::{
    Access, DatabaseError, OpenStoreError, PostgresStoreConfig, PostgresStores,
    crypto_store::{TABLES, tables::INBOUND_SESSIONS},
};

const ROOM_KEYS: &str = INBOUND_SESSIONS.name;

/// Days of which the new room keys are counted, today among them.
const DAYS: i32 = 14;

/// What a schema holds: see [`stats`].
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// The schema's name.
    pub schema: String,
    /// Bytes of all tables and indexes of the schema.
    pub bytes: u64,
    /// The accounts, by name.
    pub accounts: Vec<AccountStats>,
}

/// What there is of one account. Times are serialised as seconds since 1970.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct AccountStats {
    /// The account's name.
    pub name: String,
    /// Whether it is encrypted at rest.
    pub is_encrypted: bool,
    /// When it was created.
    #[serde(serialize_with = "unix")]
    pub created_at: Option<SystemTime>,
    /// When a sync token was last stored; `None` before the first sync.
    #[serde(serialize_with = "unix")]
    pub last_sync: Option<SystemTime>,
    /// Who owns it; `None` if it was never opened for writing.
    pub owner: Option<OwnerStats>,
    /// How many transactions were committed, by all of its owners.
    pub commits: u64,
    /// Rows and bytes of each table, those without a row of the account among them.
    pub tables: Vec<TableStats>,
    /// Bytes of all its rows, with their share of the indexes.
    pub bytes: u64,
    /// Room keys.
    pub room_keys: u64,
    /// Rooms of which there is a room key.
    pub rooms_with_keys: u64,
    /// Bytes for every 100 rooms of which there is a room key; about 1 MB is expected of an ordinary
    /// bot. `None` without such rooms.
    pub bytes_per_100_rooms: Option<u64>,
    /// New room keys of each of the last 14 days (UTC, `2026-11-29`) that had any.
    pub room_keys_per_day: BTreeMap<String, u64>,
    /// When the oldest room key that is there came.
    #[serde(serialize_with = "unix")]
    pub oldest_room_key: Option<SystemTime>,
    /// When the newest room key came.
    #[serde(serialize_with = "unix")]
    pub newest_room_key: Option<SystemTime>,
}

/// The owner of an account.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct OwnerStats {
    /// Its label, host and process.
    pub name: String,
    /// Since when.
    #[serde(serialize_with = "unix")]
    pub since: Option<SystemTime>,
    /// Whether it has the account open, and its heartbeat is alive.
    pub is_alive: bool,
}

/// An account's part of one table.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct TableStats {
    /// The table's name.
    pub name: &'static str,
    /// How many rows.
    pub rows: u64,
    /// Its share of the table's bytes, indexes included, by the number of rows.
    pub bytes: u64,
}

/// Counts what a schema holds, for dashboards and for people.
///
/// It reads each table once, in one snapshot: some seconds for a million rows. It needs no passphrase
/// and no key, locks nothing, and works on a standby.
///
/// # Errors
///
/// What keeps a store from being opened: [`OpenStoreError::SchemaNotFound`] when there is no schema.
///
/// ```no_run
/// # async fn example() -> Result<(), matrix_sdk_postgres::OpenStoreError> {
/// use matrix_sdk_postgres::{PostgresStoreConfig, admin};
///
/// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot");
/// for account in admin::stats(&config).await?.accounts {
///     println!("{}: {} room keys", account.name, account.room_keys);
/// }
/// # Ok(()) }
/// ```
pub async fn stats(config: &PostgresStoreConfig) -> Result<Stats, OpenStoreError> {
    let admin = AdminConnection::new(config)?;
    admin.check(config, Access::ReadOnly).await?;
    let transaction = admin.read().await?;
    let schema = admin.schema().name();
    let stats = count(&transaction, schema, None).await;
    let stats =
        stats.map_err(|error| OpenStoreError::refused(error, "reading the schema's tables"))?;
    transaction.commit().await?;
    Ok(stats)
}

impl PostgresStores {
    /// Counts what the schema holds of this account, for dashboards: see [`stats`]. It reads the rows of
    /// this account only, on a connection of the stores' pool. Its share of a table's bytes is by the
    /// number of rows that `ANALYZE` has last estimated for the table.
    ///
    /// # Errors
    ///
    /// [`OpenStoreError::Store`] with [`Error::StoreClosed`](crate::Error::StoreClosed) and others.
    ///
    /// ```no_run
    /// # async fn example(
    /// #     stores: matrix_sdk_postgres::PostgresStores,
    /// # ) -> Result<(), matrix_sdk_postgres::OpenStoreError> {
    /// println!("{} room keys", stores.stats().await?.room_keys);
    /// # Ok(()) }
    /// ```
    pub async fn stats(&self) -> Result<AccountStats, OpenStoreError> {
        let store = self.crypto_store();
        let operation = store.handle().operation()?;
        let admin = AdminConnection { database: operation.database().clone() };
        let transaction = admin.read().await?;
        let only = Some(operation.account_id());
        let stats = count(&transaction, admin.schema().name(), only).await?;
        transaction.commit().await?;
        let own = stats.accounts.into_iter().next();
        Ok(own.ok_or_else(|| DatabaseError::permanent("the account was deleted"))?)
    }
}

/// What is known while it is counted.
struct Reading<'a> {
    transaction: &'a Transaction<'a>,
    /// The account that is counted; all of them if it is `None`.
    only: Option<i64>,
    /// By their numbers.
    accounts: BTreeMap<i64, AccountStats>,
    tables: BTreeMap<String, TableSize>,
}

/// A table with the rows of all accounts.
#[derive(Default, Clone, Copy)]
struct TableSize {
    /// Indexes included.
    bytes: u64,
    /// As `ANALYZE` has last estimated it.
    rows: u64,
}

/// Counts what there is of an account, or of all.
async fn count(
    transaction: &Transaction<'_>,
    schema: &str,
    only: Option<i64>,
) -> Result<Stats, DatabaseError> {
    let accounts = accounts(transaction, only).await?;
    let tables = sizes(transaction, schema).await?;
    let mut reading = Reading { transaction, only, accounts, tables };
    for table in TABLES {
        match table.name {
            ROOM_KEYS => reading.room_keys().await?,
            name => reading.count(name).await?,
        }
    }
    reading.days().await?;
    Ok(reading.finish(schema))
}

impl Reading<'_> {
    fn finish(self, schema: &str) -> Stats {
        let mut accounts: Vec<_> = self.accounts.into_values().collect();
        for account in &mut accounts {
            account.bytes = account.tables.iter().map(|table| table.bytes).sum();
            let rooms = account.rooms_with_keys;
            account.bytes_per_100_rooms = (account.bytes * 100).checked_div(rooms);
        }
        accounts.sort_by(|one, other| one.name.cmp(&other.name));
        let bytes = self.tables.into_values().map(|table| table.bytes).sum();
        Stats { schema: schema.to_owned(), bytes, accounts }
    }

    /// Counts the rows of a table.
    async fn count(&mut self, table: &'static str) -> Result<(), DatabaseError> {
        let sql = format!(
            "SELECT account_id, count(*) FROM {{schema}}.{table} \
             WHERE $1 IS NULL OR account_id = $1 GROUP BY account_id"
        );
        let mut counts = BTreeMap::new();
        for row in self.transaction.query(&sql, &[(&self.only, Type::INT8)]).await? {
            counts.insert(row.try_get::<_, i64>(0)?, unsigned(&row, 1)?);
        }
        self.share(table, &counts);
        Ok(())
    }

    /// Notes a table's rows by account, with their share of its bytes.
    fn share(&mut self, table: &'static str, counts: &BTreeMap<i64, u64>) {
        let TableSize { bytes, rows } = self.tables.get(table).copied().unwrap_or_default();
        let counted = counts.values().sum::<u64>().max(1);
        let all = u128::from(if self.only.is_some() { rows.max(counted) } else { counted });
        let bytes = u128::from(bytes);
        for (id, account) in &mut self.accounts {
            let rows = counts.get(id).copied().unwrap_or_default();
            let share = u64::try_from(bytes * u128::from(rows) / all).unwrap_or(u64::MAX);
            account.tables.push(TableStats { name: table, rows, bytes: share });
        }
    }

    /// The same for the room keys, whose table is the largest: counted once.
    async fn room_keys(&mut self) -> Result<(), DatabaseError> {
        let mut counts = BTreeMap::new();
        let sql = format!(
            "SELECT account_id, count(*), count(DISTINCT room_id), min(created_at), max(created_at) \
             FROM {{schema}}.{ROOM_KEYS} WHERE $1 IS NULL OR account_id = $1 GROUP BY account_id"
        );
        for row in self.transaction.query(&sql, &[(&self.only, Type::INT8)]).await? {
            let id = row.try_get(0)?;
            counts.insert(id, unsigned(&row, 1)?);
            let Some(account) = self.accounts.get_mut(&id) else { continue };
            account.room_keys = unsigned(&row, 1)?;
            account.rooms_with_keys = unsigned(&row, 2)?;
            account.oldest_room_key = row.try_get(3)?;
            account.newest_room_key = row.try_get(4)?;
        }
        self.share(ROOM_KEYS, &counts);
        Ok(())
    }

    async fn days(&mut self) -> Result<(), DatabaseError> {
        let sql = format!(
            "SELECT account_id, (created_at AT TIME ZONE 'UTC')::date::text, count(*) \
             FROM {{schema}}.{ROOM_KEYS} \
             WHERE (created_at AT TIME ZONE 'UTC')::date > (now() AT TIME ZONE 'UTC')::date - $1 \
                 AND ($2 IS NULL OR account_id = $2) \
             GROUP BY 1, 2"
        );
        let params = [(&DAYS as _, Type::INT4), (&self.only as _, Type::INT8)];
        for row in self.transaction.query(&sql, &params).await? {
            if let Some(account) = self.accounts.get_mut(&row.try_get(0)?) {
                account.room_keys_per_day.insert(row.try_get(1)?, unsigned(&row, 2)?);
            }
        }
        Ok(())
    }
}

async fn accounts(
    transaction: &Transaction<'_>,
    only: Option<i64>,
) -> Result<BTreeMap<i64, AccountStats>, DatabaseError> {
    let sql = format!(
        "\
SELECT a.id, a.name, a.secret_kind > 0, a.created_at, s.updated_at, o.name, o.since, {IS_ALIVE}, {COMMITS}
FROM {{schema}}.accounts a
LEFT JOIN {{schema}}.account_owners o ON o.account_id = a.id
LEFT JOIN {{schema}}.sync_tokens s ON s.account_id = a.id
WHERE $1 IS NULL OR a.id = $1"
    );
    let rows = transaction.query(&sql, &[(&only, Type::INT8)]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, account(row)?))).collect()
}

fn account(row: &Row) -> Result<AccountStats, DatabaseError> {
    let owner = match row.try_get(5)? {
        Some(name) => Some(OwnerStats { name, since: row.try_get(6)?, is_alive: row.try_get(7)? }),
        None => None,
    };
    Ok(AccountStats {
        name: row.try_get(1)?,
        is_encrypted: row.try_get(2)?,
        created_at: row.try_get(3)?,
        last_sync: row.try_get(4)?,
        owner,
        commits: unsigned(row, 8)?,
        tables: Vec::new(),
        bytes: 0,
        room_keys: 0,
        rooms_with_keys: 0,
        bytes_per_100_rooms: None,
        room_keys_per_day: BTreeMap::new(),
        oldest_room_key: None,
        newest_room_key: None,
    })
}

/// The size of each table of the schema, by name.
async fn sizes(
    transaction: &Transaction<'_>,
    schema: &str,
) -> Result<BTreeMap<String, TableSize>, DatabaseError> {
    // `reltuples` is -1 before the first ANALYZE.
    let sql = "SELECT c.relname::text, pg_total_relation_size(c.oid), greatest(c.reltuples, 0)::int8 \
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE n.nspname = $1 AND c.relkind = 'r'";
    let rows = transaction.query(sql, &[(&schema, Type::TEXT)]).await?;
    let sizes = rows.iter().map(|row| {
        let size = TableSize { bytes: unsigned(row, 1)?, rows: unsigned(row, 2)? };
        Ok((row.try_get(0)?, size))
    });
    sizes.collect()
}

fn unsigned(row: &Row, column: usize) -> Result<u64, DatabaseError> {
    Ok(row.try_get::<_, i64>(column)?.unsigned_abs())
}
