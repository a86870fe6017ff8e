//! Creates and migrates the bridge's schema.

use matrix_sdk_postgres::deadpool_postgres::{
    Object, Pool, Transaction,
    tokio_postgres::{self, IsolationLevel, types::Type},
};
use tracing::info;

use crate::errors::{BridgeError, exit_code};

const MIGRATIONS: [&str; 7] = [
    include_str!("../../migrations/0001_inbox.sql"),
    include_str!("../../migrations/0002_limits_and_replays.sql"),
    include_str!("../../migrations/0003_labels.sql"),
    include_str!("../../migrations/0004_invitations.sql"),
    include_str!("../../migrations/0005_api.sql"),
    include_str!("../../migrations/0006_waited.sql"),
    include_str!("../../migrations/0007_indexes_and_sealed.sql"),
];

/// The role's default timeouts may be too short for a large table, or while another bridge migrates.
const LIMITS: &str = "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0";

/// Begin a transaction whose isolation level and access mode do not depend on the role's defaults.
/// Read committed, so that after waiting for a lock it sees the lock holder's changes.
pub async fn begin(connection: &mut Object) -> Result<Transaction<'_>, tokio_postgres::Error> {
    let builder = connection.build_transaction();
    builder.isolation_level(IsolationLevel::ReadCommitted).read_only(false).start().await
}

/// Apply missing migrations in one transaction; concurrent bridges are serialised. An up-to-date
/// schema needs no CREATE privilege.
pub async fn migrate(pool: &Pool) -> Result<(), BridgeError> {
    let mut connection = pool.get().await?;
    if is_current(&connection).await? {
        return Ok(());
    }
    let transaction = begin(&mut connection).await?;
    transaction.batch_execute(LIMITS).await?;
    // An arbitrary number that other programs are unlikely to use.
    transaction.batch_execute("SELECT pg_advisory_xact_lock(7166209614382015)").await?;
    let found = version_to_begin_with(&transaction).await?;
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

/// Refuse a schema of another version; changes nothing. An older one is accepted if the bridge
/// `may_migrate` it.
pub async fn check(pool: &Pool, may_migrate: bool) -> Result<(), BridgeError> {
    if is_current(&pool.get().await?).await? || may_migrate {
        return Ok(());
    }
    Err(BridgeError::fatal(
        exit_code::DATABASE,
        "the schema webhook_bridge is missing or outdated, and BRIDGE_RUN_MIGRATIONS is false: run \
         the bridge with --migrate-only as a role that may create tables",
    ))
}

const HAS_TABLE: &str = "
    SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'webhook_bridge'),
           EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                   WHERE n.nspname = 'webhook_bridge' AND c.relname = 'schema_migrations')";
const NEWEST: &str = "SELECT coalesce(max(version), 0) FROM webhook_bridge.schema_migrations";

async fn is_current(connection: &Object) -> Result<bool, BridgeError> {
    let exists = connection.query_typed_one(HAS_TABLE, &[]).await?;
    if !exists.get::<_, bool>(1) {
        return Ok(false);
    }
    let found: i32 = connection.query_typed_one(NEWEST, &[]).await?.get(0);
    if found as usize > MIGRATIONS.len() {
        return Err(BridgeError::fatal(
            exit_code::DATABASE,
            format!(
                "the schema webhook_bridge has version {found}, which is newer than this bridge's \
                 {}: upgrade the bridge",
                MIGRATIONS.len()
            ),
        ));
    }
    Ok(found as usize == MIGRATIONS.len())
}

/// The newest applied version. Creates the schema and its version table if they are missing.
async fn version_to_begin_with(transaction: &Transaction<'_>) -> Result<i32, BridgeError> {
    let exists = transaction.query_typed_one(HAS_TABLE, &[]).await?;
    // Not CREATE … IF NOT EXISTS, which requires the privilege even if nothing is missing. A schema
    // that was created by hand is empty.
    if !exists.get::<_, bool>(0) {
        transaction.batch_execute("CREATE SCHEMA webhook_bridge").await?;
    }
    if !exists.get::<_, bool>(1) {
        let create = "
            CREATE TABLE webhook_bridge.schema_migrations (
                version integer NOT NULL PRIMARY KEY,
                applied_at timestamptz NOT NULL DEFAULT now()
            )";
        transaction.batch_execute(create).await?;
    }
    Ok(transaction.query_typed_one(NEWEST, &[]).await?.get(0))
}
