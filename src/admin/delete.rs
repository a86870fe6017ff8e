//! Deletes an account with all its rows.

use tokio_postgres::types::Type;

use super::{
    connection::{AdminConnection, Transaction},
    owner::Claimed,
    table_counts::{DeletedRows, TableCount},
};
use crate::{Access, DatabaseError, OpenStoreError, PostgresStoreConfig, crypto_store::TABLES};

/// Counts what [`delete_account`] would delete. It reads only, whether or not a process has the account open.
///
/// # Errors
///
/// [`OpenStoreError::AccountNotFound`] and what keeps a connection from being made.
pub async fn count_account(config: &PostgresStoreConfig) -> Result<DeletedRows, OpenStoreError> {
    let admin = AdminConnection::new(config)?;
    let (id, _) = admin.account(config, Access::ReadOnly).await?;
    let transaction = admin.read().await?;
    let tables = transaction.count_rows(id).await?;
    transaction.commit().await?;
    Ok(DeletedRows::new(&config.account, tables).without_empty())
}

/// Deletes an account with all its rows, in one transaction: first its row in `accounts`, which holds the
/// key that everything else is sealed with. It needs neither passphrase nor key. Other accounts are not
/// touched. Copies of the database still hold it, and a passphrase opens those.
///
/// # Errors
///
/// [`OpenStoreError::OwnerAlive`] when a process has the account open and is alive: stop it first.
/// [`OpenStoreError::AccountNotFound`], [`OpenStoreError::PermissionDenied`] and what keeps a connection
/// from being made. Nothing was deleted then, unless the error says that the outcome of `COMMIT` is
/// unknown.
///
/// ```no_run
/// # async fn example() -> Result<(), matrix_sdk_postgres::OpenStoreError> {
/// use matrix_sdk_postgres::{PostgresStoreConfig, admin};
///
/// let config = PostgresStoreConfig::new("postgres://localhost/bots", "old-bot");
/// println!("{:?}", admin::delete_account(&config).await?.tables);
/// # Ok(()) }
/// ```
pub async fn delete_account(config: &PostgresStoreConfig) -> Result<DeletedRows, OpenStoreError> {
    let admin = AdminConnection::new(config)?;
    let claimed = Claimed::lock(&admin, config).await?;
    let transaction = claimed.transaction;
    let tables = delete(&transaction, claimed.account_id).await;
    let tables = tables.map_err(|error| OpenStoreError::refused(error, "deleting the account"))?;
    transaction.commit().await?;
    Ok(DeletedRows::new(&config.account, tables).without_empty())
}

async fn delete(
    transaction: &Transaction<'_>,
    account_id: i64,
) -> Result<Vec<TableCount>, DatabaseError> {
    let id = [(&account_id as _, Type::INT8)];
    // Of the tables that go with the row, the counts are taken before.
    let tables = transaction.count_rows(account_id).await?;
    transaction.execute("DELETE FROM {schema}.accounts WHERE id = $1", &id).await?;
    for table in TABLES {
        let sql = format!("DELETE FROM {{schema}}.{} WHERE account_id = $1", table.name);
        transaction.execute(&sql, &id).await?;
    }
    Ok(tables)
}
