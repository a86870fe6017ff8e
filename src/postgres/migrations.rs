//! The ordered list of migrations and how it is applied.

use backon::{BackoffBuilder, ExponentialBuilder};
use deadpool_postgres::Object;
use tokio_postgres::{IsolationLevel, types::Type};
use tracing::info;

use crate::{DatabaseError, OpenStoreError, postgres::schema::Schema};

/// One step of the schema.
pub(crate) struct Migration {
    pub(crate) version: i32,
    /// The oldest version whose programs keep working after this step.
    pub(crate) compatible_with: i32,
    pub(crate) name: &'static str,
    pub(crate) sql: &'static str,
}

/// All steps, oldest first.
pub(crate) const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        compatible_with: 1,
        name: "initial",
        sql: include_str!("../../migrations/crypto_store/0001_initial.sql"),
    },
    // Not compatible with 1: its programs write without showing a token.
    Migration {
        version: 2,
        compatible_with: 2,
        name: "ownership",
        sql: include_str!("../../migrations/crypto_store/0002_ownership.sql"),
    },
];

/// The version this crate works with.
pub(crate) const CURRENT: i32 = MIGRATIONS[MIGRATIONS.len() - 1].version;

const CREATE_TABLE: &str = "CREATE TABLE {schema}.schema_migrations (
    version integer PRIMARY KEY,
    -- The oldest version whose programs keep working after this step.
    compatible_with integer NOT NULL,
    name text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)";

/// Named, for the role's own limits may be too short: a table may be large, and others may be
/// migrating.
const LIMITS: &str = "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; \
                      SET LOCAL idle_in_transaction_session_timeout = '60s'";

/// The first half of the advisory lock's key, so that it meets nobody else's.
const LOCK_SPACE: i32 = 0x6d78_7370;

/// Brings the schema to [`CURRENT`], in one transaction. Processes that start together wait for
/// one another, and the late ones find nothing to do.
pub(crate) async fn run(connection: &mut Object, schema: &Schema) -> Result<(), OpenStoreError> {
    // DDL that waits behind a long reader stalls everybody behind it: give up soon, try again.
    let mut pauses = ExponentialBuilder::default().with_jitter().with_max_times(6).build();
    loop {
        match apply(connection, schema).await {
            Ok(()) => return Ok(()),
            Err(error) => match pauses.next() {
                Some(pause) if may_pass(&error) => tokio::time::sleep(pause).await,
                _ => return Err(OpenStoreError::refused(error, "migrating the schema")),
            },
        }
    }
}

fn may_pass(error: &DatabaseError) -> bool {
    error.sqlstate().is_some() && error.is_transient()
}

async fn apply(connection: &mut Object, schema: &Schema) -> Result<(), DatabaseError> {
    let transaction = connection
        .build_transaction()
        .isolation_level(IsolationLevel::ReadCommitted)
        .read_only(false)
        .start()
        .await?;
    transaction.batch_execute(LIMITS).await?;
    transaction
        .query_typed(
            "SELECT pg_advisory_xact_lock($1, hashtext($2))",
            &[(&LOCK_SPACE, Type::INT4), (&schema.name(), Type::TEXT)],
        )
        .await?;
    transaction.batch_execute("SET LOCAL lock_timeout = '3s'").await?;

    let found = installed_version(&transaction, schema).await?;
    if found.is_none() {
        transaction.batch_execute(&schema.qualify(CREATE_TABLE)).await?;
    }
    for migration in MIGRATIONS.iter().filter(|step| step.version > found.unwrap_or(0)) {
        info!(version = migration.version, name = migration.name, "migrating the schema");
        transaction.batch_execute(&schema.qualify(migration.sql)).await?;
        transaction
            .execute_typed(
                &schema.qualify(
                    "INSERT INTO {schema}.schema_migrations (version, compatible_with, name) \
                     VALUES ($1, $2, $3)",
                ),
                &[
                    (&migration.version, Type::INT4),
                    (&migration.compatible_with, Type::INT4),
                    (&migration.name, Type::TEXT),
                ],
            )
            .await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// The newest applied version; creates the schema when there is none. `None`: no migration yet.
async fn installed_version(
    transaction: &deadpool_postgres::Transaction<'_>,
    schema: &Schema,
) -> Result<Option<i32>, DatabaseError> {
    // CREATE SCHEMA IF NOT EXISTS demands the privilege even when the schema exists: look first.
    let exists = transaction
        .query_typed(
            "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1), \
             EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                     WHERE n.nspname = $1 AND c.relname = 'schema_migrations')",
            &[(&schema.name(), Type::TEXT)],
        )
        .await?;
    let (has_schema, has_table) =
        exists.first().map_or((false, false), |row| (row.get(0), row.get(1)));
    if !has_schema {
        transaction.batch_execute(&schema.qualify("CREATE SCHEMA {schema}")).await?;
    }
    if !has_table {
        return Ok(None);
    }
    let rows = transaction
        .query_typed(
            &schema.qualify("SELECT coalesce(max(version), 0) FROM {schema}.schema_migrations"),
            &[],
        )
        .await?;
    Ok(rows.first().map(|row| row.get(0)))
}
