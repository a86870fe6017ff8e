//! Creates the bridge's schema, or brings it up to date.

use matrix_sdk_postgres::deadpool_postgres::{Pool, tokio_postgres::types::Type};
use tracing::info;

use crate::errors::{BridgeError, exit_code};

const MIGRATIONS: [&str; 1] = [include_str!("../../migrations/0001_inbox.sql")];

/// Apply what is missing, in one transaction; bridges that start at once wait for each other.
pub async fn migrate(pool: &Pool) -> Result<(), BridgeError> {
    let mut connection = pool.get().await?;
    let transaction = connection.transaction().await?;
    // A number of our own; it only has to differ from other programs' numbers.
    transaction.batch_execute("SELECT pg_advisory_xact_lock(7166209614382015)").await?;
    let exists = "SELECT to_regnamespace('webhook_bridge') IS NOT NULL";
    // Looked up first: CREATE … IF NOT EXISTS demands the privilege even when nothing is missing.
    if !transaction.query_typed_one(exists, &[]).await?.get::<_, bool>(0) {
        transaction
            .batch_execute(
                "CREATE SCHEMA webhook_bridge;
                 CREATE TABLE webhook_bridge.schema_migrations (
                     version integer NOT NULL PRIMARY KEY,
                     applied_at timestamptz NOT NULL DEFAULT now()
                 )",
            )
            .await?;
    }
    let newest = "SELECT coalesce(max(version), 0) FROM webhook_bridge.schema_migrations";
    let found: i32 = transaction.query_typed_one(newest, &[]).await?.get(0);
    if found as usize > MIGRATIONS.len() {
        return Err(BridgeError::last(
            exit_code::DATABASE,
            format!("the schema webhook_bridge has version {found}: upgrade the bridge"),
        ));
    }
    for (sql, version) in MIGRATIONS.iter().zip(1i32..).skip(found as usize) {
        info!(version, "migrating the schema webhook_bridge");
        transaction.batch_execute("SET LOCAL search_path = webhook_bridge").await?;
        transaction.batch_execute(sql).await?;
        let applied = "INSERT INTO webhook_bridge.schema_migrations (version) VALUES ($1)";
        transaction.execute_typed(applied, &[(&version, Type::INT4)]).await?;
    }
    transaction.commit().await?;
    Ok(())
}
