//! Moves rows that do not decode into a table of their own, and back.

use serde::Serialize;
use tokio_postgres::types::Type;

use super::{
    connection::{AdminConnection, Param, Transaction},
    unlock::Unlocked,
    verify::{CorruptRow, types},
};
use crate::{
    Access, DatabaseError, OpenStoreError, PostgresStoreConfig,
    crypto_store::{CRYPTO_STORE, INSPECTED, Inspected},
    postgres::statement::{Column, Table},
};

/// The table of the rows that were set aside.
pub(super) const QUARANTINE: &str = "quarantined_rows";

/// What [`put_back`] did.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct PutBack {
    /// How many rows are in their tables again.
    pub rows: u64,
    /// How many stayed in quarantine: a newer row has their key.
    pub superseded: u64,
}

/// Moves these rows, unless they were written again meanwhile, and adds their number to `moved`: also before
/// [`OpenStoreError::NotReplicated`], with which it was done.
pub(super) async fn set_aside(
    unlocked: &Unlocked,
    inspected: &Inspected,
    rows: &[CorruptRow],
    moved: &mut u64,
) -> Result<(), OpenStoreError> {
    let transaction = unlocked.admin.write().await?;
    let done = set_aside_within(&transaction, unlocked.account_id, inspected, rows).await;
    *moved += done.map_err(|error| OpenStoreError::refused(error, "setting rows aside"))?;
    transaction.commit().await
}

async fn set_aside_within(
    transaction: &Transaction<'_>,
    account_id: i64,
    inspected: &Inspected,
    rows: &[CorruptRow],
) -> Result<u64, DatabaseError> {
    let Inspected { table: Table { name: table, .. }, key, .. } = inspected;
    let conditions =
        key.iter().zip(4..).map(|(Column(name, _), at)| format!(" AND d.{name} = ${at}"));
    let sql = format!(
        "WITH gone AS (DELETE FROM {{schema}}.{table} d \
                       WHERE d.account_id = $1 AND sha256(d.data) = $2{} RETURNING d.*) \
         INSERT INTO {{schema}}.quarantined_rows (account_id, table_name, reason, contents) \
         SELECT account_id, '{table}', $3, to_jsonb(gone) FROM gone",
        conditions.collect::<String>()
    );
    let mut moved = 0;
    for row in rows {
        let mut params: Vec<Param<'_>> =
            vec![(&account_id, Type::INT8), (&row.digest, Type::BYTEA), (&row.reason, Type::TEXT)];
        params.extend(row.key.iter().zip(types(inspected)).map(|(cell, ty)| (cell as _, ty)));
        moved += transaction.execute(&sql, &params).await?;
    }
    if moved > 0 {
        raise_maintenance(transaction, account_id).await?;
    }
    Ok(moved)
}

/// Makes the owner, if there is one, drop its cache. The last statement of a transaction,
/// for the owner's commits wait for it.
pub(super) async fn raise_maintenance(
    transaction: &Transaction<'_>,
    account_id: i64,
) -> Result<(), DatabaseError> {
    let sql = "UPDATE {schema}.account_lanes SET maintenance = maintenance + 1 \
               WHERE account_id = $1 AND lane = $2";
    let params = [(&account_id as _, Type::INT8), (&CRYPTO_STORE.name as _, Type::TEXT)];
    transaction.execute(sql, &params).await.map(drop)
}

/// Puts the rows of an account that were set aside back into their tables, in one transaction: after a
/// program that can decode them was installed, say. A row whose key is in use again stays where it is. It
/// needs neither passphrase nor key, and a running bot forgets what it has cached.
///
/// # Errors
///
/// [`OpenStoreError::AccountNotFound`] and what keeps a connection from being made. Nothing was put back
/// then, unless the error says that the outcome of `COMMIT` is unknown.
pub async fn put_back(config: &PostgresStoreConfig) -> Result<PutBack, OpenStoreError> {
    let admin = AdminConnection::new(config)?;
    let (account_id, _) = admin.account(config, Access::default()).await?;
    let transaction = admin.write().await?;
    let back = put_back_within(&transaction, account_id).await;
    let back = back.map_err(|error| OpenStoreError::refused(error, "putting rows back"))?;
    transaction.commit().await?;
    Ok(back)
}

async fn put_back_within(
    transaction: &Transaction<'_>,
    account_id: i64,
) -> Result<PutBack, DatabaseError> {
    let mut rows = 0;
    for Inspected { table: Table { name: table, .. }, .. } in &INSPECTED {
        // Of several versions of a row the newest: an older ratchet must not be used again.
        // The deletion finds those whose insertion succeeded by their contents: all of them hold the key.
        let sql = format!(
            "WITH kept AS (SELECT q.id, q.quarantined_at, \
                                  jsonb_populate_record(NULL::{{schema}}.{table}, q.contents) AS r \
                           FROM {{schema}}.quarantined_rows q \
                           WHERE q.account_id = $1 AND q.table_name = '{table}' FOR UPDATE), \
             back AS (INSERT INTO {{schema}}.{table} SELECT (r).* FROM kept \
                      ORDER BY quarantined_at DESC ON CONFLICT DO NOTHING RETURNING to_jsonb({table}.*) AS contents) \
             DELETE FROM {{schema}}.quarantined_rows q USING kept, back \
             WHERE q.account_id = $1 AND q.id = kept.id AND to_jsonb(kept.r) = back.contents"
        );
        rows += transaction.execute(&sql, &[(&account_id, Type::INT8)]).await?;
    }
    let sql = "SELECT count(*) FROM {schema}.quarantined_rows WHERE account_id = $1";
    let left = transaction.query_one(sql, &[(&account_id, Type::INT8)]).await?;
    let superseded = left.try_get::<_, i64>(0)?.unsigned_abs();
    if rows > 0 {
        raise_maintenance(transaction, account_id).await?;
    }
    Ok(PutBack { rows, superseded })
}
