//! Checks the server and the schema, and reads the account's row.

use std::sync::Once;

use deadpool_postgres::Object;
use futures_util::future::{OptionFuture, join};
use tokio::time::timeout;
use tokio_postgres::{Row, types::Type};
use tracing::warn;

use crate::{
    Access, DatabaseError, Error, OpenStoreError, PostgresStoreConfig,
    account::{cipher::SealedCipher, ownership::OwnerRow},
    postgres::{
        database::Database,
        metrics,
        migrations::{self, Installed, Migrations},
        statement::Sql,
    },
};

/// The oldest server version that is tested.
const OLDEST_SERVER: i32 = 13;

/// The columns about the server; those about the schema follow.
macro_rules! server {
    ($schema:literal) => {
        concat!(
            "
SELECT current_setting('server_version_num')::int4 / 10000, pg_is_in_recovery(),
       current_setting('default_transaction_read_only') = 'on', current_user::text,
       current_setting('fsync') = 'on' AND current_setting('synchronous_commit') <> 'off'",
            $schema
        )
    };
}

const SERVER: &str = server!("");

/// With the columns about the schema: if it exists, one statement returns all that opening needs.
pub(super) static PROBE: Sql = Sql::new(
    "accounts.probe",
    server!(
        ",
       m.parts, m.versions, m.compatible_with, a.id, a.secret_kind, a.cipher, a.cipher_written_by
FROM (SELECT array_agg(part) AS parts, array_agg(version) AS versions,
             array_agg(compatible_with) AS compatible_with
      FROM (SELECT part, max(version) AS version, max(compatible_with) AS compatible_with
            FROM {schema}.schema_migrations GROUP BY part) p) m
LEFT JOIN {schema}.accounts a ON a.name = $1"
    ),
    &[Type::TEXT],
);

/// The account as it is stored.
pub(super) struct Stored {
    pub(super) id: i64,
    pub(super) cipher: SealedCipher,
    /// Its owner, if that was to be read.
    pub(super) owner: Option<Result<OwnerRow, Error>>,
}

/// Checks server and schema, migrates if that is needed and allowed, and looks the account up, and its
/// owner in the same round trip.
pub(super) async fn probe(
    connection: &mut Object,
    database: &Database,
    config: &PostgresStoreConfig,
    parts: &[Migrations],
    with_owner: bool,
) -> Result<Option<Stored>, OpenStoreError> {
    let name = &config.account;
    for migrated in [false, true] {
        let owner = with_owner.then(|| OwnerRow::read_by_name(database, connection, name));
        // Sent in this order: a failure of the second one does not affect the first.
        let answers = join(read(database, connection, name), OptionFuture::from(owner));
        metrics::round_trip();
        let answers = timeout(database.statement_timeout(), answers).await;
        let (found, owner) = answers.map_err(|_| no_answer())?;
        let Probe { server, versions, stored } = match found {
            Ok(found) => found,
            Err(error) if error.is_missing_schema() => {
                let server =
                    timeout(database.statement_timeout(), Probe::without_schema(connection));
                server.await.map_err(|_| no_answer())??
            }
            Err(error) if error.is_missing_column() => {
                let schema = database.statements().schema().name().to_owned();
                return Err(OpenStoreError::UnreleasedSchema { schema });
            }
            Err(error) => {
                return Err(OpenStoreError::refused(error, "reading the schema's tables"));
            }
        };
        server.check(config)?;
        if let Some(Err(error)) = &owner
            && error.is_transient()
            && error.invalidates_connection()
        {
            return Err(DatabaseError::broken(format!("reading the owner: {error}")).into());
        }
        let Some(pending) = first_pending(&versions, parts)? else {
            return Ok(stored.map(|(id, cipher)| Stored { id, cipher, owner }));
        };
        if migrated || !config.run_migrations || config.access == Access::ReadOnly {
            return Err(pending);
        }
        migrations::run(connection, database.statements().schema(), parts).await?;
    }
    Ok(None)
}

/// Returns which part of the schema is missing or old; fails if one is too new.
fn first_pending(
    versions: &[(String, Installed)],
    parts: &[Migrations],
) -> Result<Option<OpenStoreError>, OpenStoreError> {
    let mut pending = None;
    for migrations in parts {
        let (part, required) = (migrations.part, migrations.current());
        let installed = versions.iter().find(|(name, _)| name == part);
        let installed = installed.map(|(_, installed)| *installed).unwrap_or_default();
        let found = installed.version;
        if migrations.is_too_new(installed) {
            return Err(OpenStoreError::SchemaTooNew { part, found, supported: required });
        }
        if found < required {
            pending.get_or_insert(OpenStoreError::MigrationsPending { part, found, required });
        }
    }
    Ok(pending)
}

struct Probe {
    server: Server,
    /// Empty when there is no schema yet.
    versions: Vec<(String, Installed)>,
    stored: Option<(i64, SealedCipher)>,
}

impl Probe {
    async fn without_schema(connection: &Object) -> Result<Self, OpenStoreError> {
        let rows = connection.query_typed(SERVER, &[]).await.map_err(DatabaseError::from)?;
        let row = rows.first().ok_or_else(no_answer)?;
        let server = Server::of(row).map_err(DatabaseError::from)?;
        Ok(Self { server, versions: Vec::new(), stored: None })
    }
}

async fn read(
    database: &Database,
    connection: &Object,
    name: &str,
) -> Result<Probe, DatabaseError> {
    let rows = database.run_on(connection, &PROBE, &[&name]).await?;
    let row = rows.first().ok_or_else(no_answer)?;
    let stored = match row.try_get(8)? {
        Some(id) => Some((id, SealedCipher::of_row(row, 9)?)),
        None => None,
    };
    Ok(Probe { server: Server::of(row)?, versions: versions(row)?, stored })
}

fn versions(row: &Row) -> Result<Vec<(String, Installed)>, tokio_postgres::Error> {
    let parts: Option<Vec<String>> = row.try_get(5)?;
    let (versions, compatible): (Option<Vec<i32>>, Option<Vec<i32>>) =
        (row.try_get(6)?, row.try_get(7)?);
    let numbers = versions.into_iter().flatten().zip(compatible.into_iter().flatten());
    let installed =
        numbers.map(|(version, compatible_with)| Installed { version, compatible_with });
    Ok(parts.into_iter().flatten().zip(installed).collect())
}

fn no_answer() -> DatabaseError {
    DatabaseError::broken("no answer to the first statement")
}

/// The properties of the server that opening checks.
struct Server {
    version: i32,
    is_standby: bool,
    /// By a default of the role, the database or the server.
    is_read_only: bool,
    role: String,
    is_durable: bool,
}

impl Server {
    fn of(row: &Row) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            version: row.try_get(0)?,
            is_standby: row.try_get(1)?,
            is_read_only: row.try_get(2)?,
            role: row.try_get(3)?,
            is_durable: row.try_get(4)?,
        })
    }

    /// Fails for a server that is too old, or that accepts no writes; warns once about one that may
    /// lose commits.
    fn check(self, config: &PostgresStoreConfig) -> Result<(), OpenStoreError> {
        static WARNED: Once = Once::new();
        if self.version < OLDEST_SERVER {
            return Err(OpenStoreError::ServerTooOld {
                found: self.version,
                required: OLDEST_SERVER,
            });
        }
        if config.access == Access::ReadOnly {
            return Ok(());
        }
        if self.is_standby {
            return Err(OpenStoreError::ReadOnlyServer);
        }
        // The crate's transactions could override this, but it was set to prevent writes.
        if self.is_read_only {
            return Err(OpenStoreError::ReadOnlyRole { role: self.role });
        }
        if !self.is_durable && !config.accept_unsafe_durability {
            WARNED.call_once(|| {
                warn!(
                    "the server runs with fsync or synchronous_commit off: after a crash \
                     commits may be missing, so that keys are used twice and messages can no longer \
                     be read; switch both on, or set accept_unsafe_durability(true)"
                );
            });
        }
        Ok(())
    }
}
