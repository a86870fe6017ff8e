//! How migrations are applied: those of the engine, and those of each store.

use deadpool_postgres::{Object, Transaction};
use tokio_postgres::{
    IsolationLevel,
    types::{ToSql, Type},
};
use tracing::info;

use crate::{DatabaseError, OpenStoreError, postgres::schema::Schema};

/// One step of a part of the schema.
#[derive(Debug)]
pub(crate) struct Migration {
    pub(crate) version: i32,
    /// The oldest version whose programs keep working after this step.
    pub(crate) compatible_with: i32,
    pub(crate) name: &'static str,
    pub(crate) sql: &'static str,
}

/// The steps of one part of the schema, oldest first: the engine's part, or a store's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Migrations {
    pub(crate) part: &'static str,
    pub(crate) steps: &'static [Migration],
}

/// What is installed of a part of the schema; 0 where it is not installed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Installed {
    pub(crate) version: i32,
    pub(crate) compatible_with: i32,
}

impl Migrations {
    /// Whether a newer program has migrated this part in a way that this one does not understand.
    pub(crate) fn is_too_new(&self, installed: Installed) -> bool {
        installed.version > self.current() && installed.compatible_with > self.current()
    }

    /// The version this crate works with.
    pub(crate) fn current(&self) -> i32 {
        self.steps.last().map_or(0, |step| step.version)
    }
}

pub(crate) const CREATE_TABLE: &str = "CREATE TABLE {schema}.schema_migrations (
    part text COLLATE \"C\" NOT NULL,
    version integer NOT NULL,
    -- The oldest version whose programs keep working after this step.
    compatible_with integer NOT NULL,
    name text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (part, version)
)";

/// Overrides the role's limits, which may be too short to migrate a large table, or to wait for
/// another process that is migrating.
pub(crate) const LIMITS: &str = "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; \
                      SET LOCAL idle_in_transaction_session_timeout = '60s'; \
                      SET LOCAL client_min_messages = warning";

/// First half of the advisory lock's key, against collisions with other applications' locks.
pub(crate) const LOCK_SPACE: i32 = 0x6d78_7370;

/// Migrates all parts to their current version, in one transaction. Processes that start together
/// wait for each other, and the later ones find nothing to do.
pub(crate) async fn run(
    connection: &mut Object,
    schema: &Schema,
    parts: &[Migrations],
) -> Result<(), OpenStoreError> {
    run_until(connection, schema, parts, End::Commit).await
}

/// How the transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Commit,
    /// After every statement was tried.
    Rollback,
}

pub(crate) async fn run_until(
    connection: &mut Object,
    schema: &Schema,
    parts: &[Migrations],
    end: End,
) -> Result<(), OpenStoreError> {
    let applied = apply(connection, schema, parts, end).await;
    applied.map_err(|error| OpenStoreError::refused(error, "migrating the schema"))
}

async fn apply(
    connection: &mut Object,
    schema: &Schema,
    parts: &[Migrations],
    end: End,
) -> Result<(), DatabaseError> {
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
    // DDL that waits for a lock blocks all later queries, so it gives up soon; opening retries it.
    transaction.batch_execute("SET LOCAL lock_timeout = '3s'").await?;

    if !ensure_schema(&transaction, schema).await? {
        transaction.batch_execute(&schema.qualify(CREATE_TABLE)).await?;
    }
    for Migrations { part, steps } in parts {
        let found = installed_version(&transaction, schema, part).await?;
        for step in steps.iter().filter(|step| step.version > found) {
            info!(part, version = step.version, name = step.name, "migrating the schema");
            for statement in statements(step.sql) {
                transaction.batch_execute(&schema.qualify(statement)).await?;
            }
            record(&transaction, schema, part, step).await?;
        }
    }
    match end {
        End::Commit => transaction.commit().await?,
        End::Rollback => transaction.rollback().await?,
    }
    Ok(())
}

/// The statements of a file, which are separated by blank lines. Each is sent in a message of its
/// own: a distributed PostgreSQL refuses several in one.
pub(crate) fn statements(sql: &str) -> impl Iterator<Item = &str> {
    sql.split_inclusive(";\n\n")
}

async fn record(
    transaction: &Transaction<'_>,
    schema: &Schema,
    part: &str,
    step: &Migration,
) -> Result<(), DatabaseError> {
    let sql = "INSERT INTO {schema}.schema_migrations (part, version, compatible_with, name) \
               VALUES ($1, $2, $3, $4)";
    let params: [(&(dyn ToSql + Sync), Type); 4] = [
        (&part, Type::TEXT),
        (&step.version, Type::INT4),
        (&step.compatible_with, Type::INT4),
        (&step.name, Type::TEXT),
    ];
    transaction.execute_typed(&schema.qualify(sql), &params).await?;
    Ok(())
}

/// Creates the schema if it is missing; returns whether it has the table of migrations.
async fn ensure_schema(
    transaction: &Transaction<'_>,
    schema: &Schema,
) -> Result<bool, DatabaseError> {
    // CREATE SCHEMA IF NOT EXISTS requires the privilege even if the schema exists: check first.
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
    Ok(has_table)
}

/// The newest applied version of a part; 0 when there is none.
async fn installed_version(
    transaction: &Transaction<'_>,
    schema: &Schema,
    part: &str,
) -> Result<i32, DatabaseError> {
    let sql = "SELECT coalesce(max(version), 0) FROM {schema}.schema_migrations WHERE part = $1";
    let rows = transaction.query_typed(&schema.qualify(sql), &[(&part, Type::TEXT)]).await?;
    Ok(rows.first().map_or(0, |row| row.get(0)))
}

#[cfg(test)]
mod tests {
    use super::statements;

    #[test]
    fn a_file_is_sent_statement_by_statement() {
        let sql = "-- Why.\n\nCREATE TABLE a (\n    b int\n);\n\nCREATE INDEX c;\n";
        let expected = ["-- Why.\n\nCREATE TABLE a (\n    b int\n);\n\n", "CREATE INDEX c;\n"];
        assert_eq!(statements(sql).collect::<Vec<_>>(), expected);
    }
}
