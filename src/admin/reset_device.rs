//! Removes an account's device; its room keys stay.

use tokio_postgres::types::Type;

use super::{
    connection::{AdminConnection, Transaction},
    owner::Claimed,
    quarantine::{QUARANTINE, raise_maintenance},
    table_counts::{DeletedRows, TableCount},
};
use crate::{
    Access, DatabaseError, OpenStoreError, PostgresStoreConfig, account::ownership::random_id,
    crypto_store::OF_THE_DEVICE,
};

/// Counts what [`reset_device`] would delete. It reads only, whether or not a process has the account open.
///
/// # Errors
///
/// [`OpenStoreError::AccountNotFound`] and what keeps a connection from being made.
pub async fn count_device(config: &PostgresStoreConfig) -> Result<DeletedRows, OpenStoreError> {
    let admin = AdminConnection::new(config)?;
    let (id, _) = admin.account(config, Access::ReadOnly).await?;
    let transaction = admin.read().await?;
    let counted = each(&transaction, id, "SELECT FROM").await;
    let tables = counted.map_err(|error| OpenStoreError::refused(error, "counting rows"))?;
    transaction.commit().await?;
    Ok(DeletedRows::new(&config.account, tables).without_empty())
}

/// Removes what belongs to the account's device, so that the bot begins with a new one: its Olm account, the
/// sessions with other devices, the sessions it sends with, requests, and the sync position; also what of
/// these tables was set aside by [`verify`](super::verify). Room keys,
/// other devices and their trust, the private cross-signing keys, the backup's key and version, settings of
/// rooms and the application's own values stay.
///
/// Use it after the database was rolled back, and for a device whose keys no longer match what the
/// homeserver has ("one time key already exists"). All in one transaction, which also gives the account an
/// owner token that no process has: one that was believed to be dead can no longer write. It needs
/// neither passphrase nor key.
///
/// Then log the old device out at the homeserver, forget its access token and device id, and start the bot,
/// which logs in with a new device id. Never start it with the old one: the homeserver has keys under that
/// id which are gone.
///
/// # Errors
///
/// [`OpenStoreError::OwnerAlive`] when a process has the account open and is alive: stop it first.
/// [`OpenStoreError::AccountNotFound`] and what keeps a connection from being made. Nothing was deleted then,
/// unless the error says that the outcome of `COMMIT` is unknown.
///
/// ```no_run
/// # async fn example() -> Result<(), matrix_sdk_postgres::OpenStoreError> {
/// use matrix_sdk_postgres::{PostgresStoreConfig, admin};
///
/// admin::reset_device(&PostgresStoreConfig::new("postgres://localhost/bots", "my-bot")).await?;
/// # Ok(()) }
/// ```
pub async fn reset_device(config: &PostgresStoreConfig) -> Result<DeletedRows, OpenStoreError> {
    let admin = AdminConnection::new(config)?;
    let Claimed { transaction, account_id } = Claimed::lock(&admin, config).await?;
    let reset = reset(&transaction, account_id).await;
    let tables = reset.map_err(|error| OpenStoreError::refused(error, "resetting the device"))?;
    transaction.commit().await?;
    Ok(DeletedRows::new(&config.account, tables).without_empty())
}

pub(super) async fn reset(
    transaction: &Transaction<'_>,
    account_id: i64,
) -> Result<Vec<TableCount>, DatabaseError> {
    let token = random_id();
    let fence = "UPDATE {schema}.account_owners \
                 SET token = $2, name = 'matrix-postgres reset-device', since = clock_timestamp() \
                 WHERE account_id = $1";
    let params = [(&account_id as _, Type::INT8), (&token.as_slice() as _, Type::BYTEA)];
    transaction.execute(fence, &params).await?;
    // Of an owner that lost its connection: it would count as alive once it is back.
    let handles = "DELETE FROM {schema}.account_handles WHERE account_id = $1";
    transaction.execute(handles, &[(&account_id, Type::INT8)]).await?;
    let leases = "DELETE FROM {schema}.lease_locks WHERE account_id = $1";
    transaction.execute(leases, &[(&account_id, Type::INT8)]).await?;
    let tables = each(transaction, account_id, "DELETE FROM").await?;
    raise_maintenance(transaction, account_id).await?;
    Ok(tables)
}

/// Does it with each of the device's rows; returns how many there were.
async fn each(
    transaction: &Transaction<'_>,
    account_id: i64,
    verb: &str,
) -> Result<Vec<TableCount>, DatabaseError> {
    let mut tables = Vec::new();
    for rows in &OF_THE_DEVICE {
        let (table, condition) = (rows.table.name, rows.condition());
        let sql = format!("{verb} {{schema}}.{table} WHERE account_id = $1{condition}");
        let rows = transaction.execute(&sql, &[(&account_id, Type::INT8)]).await?;
        tables.push(TableCount { table, rows });
    }
    // Put back later, they would be used by the new device.
    let names: Vec<&str> = OF_THE_DEVICE.iter().map(|rows| rows.table.name).collect();
    let sql =
        format!("{verb} {{schema}}.{QUARANTINE} WHERE account_id = $1 AND table_name = ANY ($2)");
    let params = [(&account_id as _, Type::INT8), (&names as _, Type::TEXT_ARRAY)];
    let rows = transaction.execute(&sql, &params).await?;
    tables.push(TableCount { table: QUARANTINE, rows });
    Ok(tables)
}
