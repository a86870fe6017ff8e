//! The schema's version, and how it is brought up to date.

use std::fmt::Write as _;

use serde::Serialize;
use tokio_postgres::types::Type;

use super::connection::AdminConnection;
use crate::{
    Access, DatabaseError, OpenStoreError, PostgresStoreConfig,
    account::{find, handle::parts},
    crypto_store::CRYPTO_STORE,
    postgres::{
        migrations::{
            self, CREATE_TABLE, End, Installed, LIMITS, LOCK_SPACE, Migration, Migrations,
        },
        schema::Schema,
    },
};

/// Which migrations a schema has, and which are pending: see [`migration_status`].
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct MigrationStatus {
    /// The schema's name.
    pub schema: String,
    /// Whether the schema exists.
    pub exists: bool,
    /// The engine's part of the schema, and each store's.
    pub parts: Vec<PartStatus>,
}

/// One part of a schema.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct PartStatus {
    /// `account`, or the store's name.
    pub part: &'static str,
    /// The newest migration that was applied; 0 for none.
    pub installed: i32,
    /// The version that this program works with.
    pub required: i32,
    /// Whether a newer program migrated it in a way that this one does not understand.
    pub is_too_new: bool,
    /// What is to be applied, oldest first.
    pub pending: Vec<PendingMigration>,
}

/// A migration that is to be applied.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct PendingMigration {
    /// Its number.
    pub version: i32,
    /// Its name.
    pub name: &'static str,
    /// The oldest version of the part whose programs keep working after it.
    pub compatible_with: i32,
}

impl MigrationStatus {
    /// Whether this program can work with the schema as it is.
    pub fn is_current(&self) -> bool {
        self.parts.iter().all(|part| part.pending.is_empty() && !part.is_too_new)
    }

    /// Whether programs that work with the schema now keep working when it is migrated.
    pub fn keeps_older_programs(&self) -> bool {
        self.parts.iter().all(|part| {
            // None works with a part that is not there.
            part.installed == 0
                || part.pending.iter().all(|step| step.compatible_with <= part.installed)
        })
    }
}

/// Tells which migrations a schema has, and which are pending. It reads only.
///
/// # Errors
///
/// What keeps a store from being opened.
///
/// ```no_run
/// # async fn example() -> Result<(), matrix_sdk_postgres::OpenStoreError> {
/// use matrix_sdk_postgres::{PostgresStoreConfig, admin};
///
/// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot");
/// if !admin::migration_status(&config).await?.is_current() {
///     config.migrate().await?;
/// }
/// # Ok(()) }
/// ```
pub async fn migration_status(
    config: &PostgresStoreConfig,
) -> Result<MigrationStatus, OpenStoreError> {
    let admin = AdminConnection::new(config)?;
    status(&admin).await.map(|(status, _)| status)
}

/// The SQL of the pending migrations, to be applied with another role: one transaction,
/// empty if nothing is pending. It reads only.
///
/// The text is to be applied to this schema, at its present version: it fails if that has changed
/// meanwhile. `psql --set ON_ERROR_STOP=1 --file migration.sql` does that.
///
/// # Errors
///
/// What keeps a store from being opened.
pub async fn migration_script(config: &PostgresStoreConfig) -> Result<String, OpenStoreError> {
    let admin = AdminConnection::new(config)?;
    let (status, has_table) = status(&admin).await?;
    Ok(script(admin.schema(), &status, has_table))
}

/// Applies the pending migrations, and takes them back: it shows whether they would succeed, with the
/// rights of this role, on these data. While it runs it holds the locks that a migration holds.
///
/// # Errors
///
/// What a migration fails with.
pub async fn try_migrations(config: &PostgresStoreConfig) -> Result<(), OpenStoreError> {
    let admin = AdminConnection::new(config)?;
    match admin.check(config, Access::default()).await {
        Ok(_) => return Ok(()),
        Err(OpenStoreError::MigrationsPending { .. } | OpenStoreError::SchemaNotFound { .. }) => {}
        Err(error) => return Err(error),
    }
    let (admin, parts) = (&admin, &parts(&[&CRYPTO_STORE]));
    let try_all = || async move {
        let mut connection = admin.database.connect().await?;
        migrations::run_until(&mut connection, admin.schema(), parts, End::Rollback).await
    };
    admin.database.retry().run("migrating", OpenStoreError::is_retryable, try_all).await
}

impl PostgresStoreConfig {
    /// Creates the schema, or brings it up to date, without opening an account: for a role that may, before
    /// programs are started whose role may not ([`run_migrations(false)`](Self::run_migrations)). Does
    /// nothing when nothing is pending; several at once wait for one another.
    ///
    /// # Errors
    ///
    /// [`OpenStoreError::PermissionDenied`], [`OpenStoreError::SchemaTooNew`] and what keeps a
    /// connection from being made. [`OpenStoreError::NotReplicated`] after it was migrated.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), matrix_sdk_postgres::OpenStoreError> {
    /// use matrix_sdk_postgres::PostgresStoreConfig;
    ///
    /// PostgresStoreConfig::new("postgres://owner@localhost/bots", "any").migrate().await?;
    /// # Ok(()) }
    /// ```
    pub async fn migrate(&self) -> Result<(), OpenStoreError> {
        let admin = AdminConnection::new(self)?;
        let config = self.clone().access(Access::default()).run_migrations(true);
        let unreplicated = admin.database.unreplicated_commits();
        find::look_up(&admin.database, &config, &parts(&[&CRYPTO_STORE])).await?;
        match admin.database.unreplicated_commits() == unreplicated {
            true => Ok(()),
            false => Err(OpenStoreError::NotReplicated),
        }
    }
}

/// The status, and whether migrations were ever noted.
pub(super) async fn status(
    admin: &AdminConnection,
) -> Result<(MigrationStatus, bool), OpenStoreError> {
    let schema = admin.schema().name();
    let transaction = admin.read().await?;
    let exists = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1), \
                  EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                          WHERE n.nspname = $1 AND c.relname = 'schema_migrations')";
    let row = transaction.query_one(exists, &[(&schema, Type::TEXT)]).await?;
    let failed = DatabaseError::from;
    let (exists, has_table) = (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
    let mut installed = Vec::new();
    if has_table {
        let sql = "SELECT part::text, max(version), max(compatible_with) \
                   FROM {schema}.schema_migrations GROUP BY part";
        let rows = transaction.query(sql, &[]).await;
        let rows = rows.map_err(|error| match error {
            error if error.is_missing_column() => {
                OpenStoreError::UnreleasedSchema { schema: schema.to_owned() }
            }
            error => OpenStoreError::refused(error, "reading the schema's tables"),
        })?;
        for row in rows {
            let part: String = row.try_get(0).map_err(failed)?;
            let version = row.try_get(1).map_err(failed)?;
            let compatible_with = row.try_get(2).map_err(failed)?;
            installed.push((part, Installed { version, compatible_with }));
        }
    }
    transaction.commit().await?;
    let parts = parts(&[&CRYPTO_STORE]);
    let parts = parts.iter().map(|part| PartStatus::of(part, &installed)).collect();
    Ok((MigrationStatus { schema: schema.to_owned(), exists, parts }, has_table))
}

impl PartStatus {
    fn of(migrations: &Migrations, installed: &[(String, Installed)]) -> Self {
        let (part, required) = (migrations.part, migrations.current());
        let found = installed.iter().find(|(name, _)| name == part);
        let found = found.map(|(_, found)| *found).unwrap_or_default();
        let is_too_new = migrations.is_too_new(found);
        let installed = found.version;
        let pending = migrations.steps.iter().filter(|step| step.version > installed);
        let pending = pending.map(|step| PendingMigration {
            version: step.version,
            name: step.name,
            compatible_with: step.compatible_with,
        });
        Self { part, installed, required, is_too_new, pending: pending.collect() }
    }
}

fn script(schema: &Schema, status: &MigrationStatus, has_table: bool) -> String {
    if status.parts.iter().all(|part| part.pending.is_empty()) {
        return String::new();
    }
    let mut sql = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;\n{LIMITS};\n\
         SELECT pg_advisory_xact_lock({LOCK_SPACE}, hashtext({}));\n\
         SET LOCAL lock_timeout = '3s';\n\n",
        literal(schema.name()),
    );
    if !status.exists {
        sql.push_str(&schema.qualify("CREATE SCHEMA {schema};\n\n"));
    }
    if !has_table {
        let _ = writeln!(sql, "{};\n", schema.qualify(CREATE_TABLE));
    }
    for Migrations { part, steps } in parts(&[&CRYPTO_STORE]) {
        let found = status.parts.iter().find(|status| status.part == part);
        let installed = found.map_or(0, |status| status.installed);
        for step in steps.iter().filter(|step| step.version > installed) {
            push_step(&mut sql, schema, part, step);
        }
    }
    sql.push_str("COMMIT;\n");
    sql
}

/// The note comes first: the script fails at once if the step was applied meanwhile.
fn push_step(sql: &mut String, schema: &Schema, part: &str, step: &Migration) {
    let note = schema.qualify(
        "INSERT INTO {schema}.schema_migrations (part, version, compatible_with, name) VALUES",
    );
    let (part, name) = (literal(part), literal(step.name));
    let (version, compatible_with) = (step.version, step.compatible_with);
    let _ = writeln!(sql, "{note} ({part}, {version}, {compatible_with}, {name});\n");
    for statement in migrations::statements(step.sql) {
        sql.push_str(&schema.qualify(statement));
    }
    sql.push('\n');
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
