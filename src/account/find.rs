//! Finds the account's row at open, or makes it, on a server and a schema that are fit for it.

use std::sync::Once;

use backon::Retryable;
use deadpool_postgres::Object;
use tokio_postgres::{
    error::SqlState,
    types::{ToSql, Type},
};
use tracing::{info, warn};

use crate::{
    Access, DatabaseError, OpenStoreError, PostgresStoreConfig,
    codec::{Codec, SealedCipher},
    connection::{Database, is_transient},
    migrations,
    schema::Schema,
};

/// The oldest server that the tests pass on.
const OLDEST_SERVER: i32 = 13;

/// One statement tells all that opening needs, when the schema is there.
const PROBE: &str = "
SELECT current_setting('server_version_num')::int4 / 10000, m.version, m.compatible_with,
       a.id, a.secret_kind, a.cipher, a.cipher_written_by,
       pg_is_in_recovery(), current_setting('fsync') = 'on'
           AND current_setting('synchronous_commit') <> 'off'
FROM (SELECT coalesce(max(version), 0) AS version, max(compatible_with) AS compatible_with
      FROM {schema}.schema_migrations) m
LEFT JOIN {schema}.accounts a ON a.name = $1";

const INSERT: &str = "
INSERT INTO {schema}.accounts (name, secret_kind, cipher, cipher_written_by)
VALUES ($1, $2, $3, $4) ON CONFLICT (name) DO NOTHING";

/// Brings the schema up to date, finds or creates the account, and opens its cipher.
pub(super) async fn find(
    database: &Database,
    config: &PostgresStoreConfig,
) -> Result<(i64, Codec), OpenStoreError> {
    // Of a shared pool, a connection that has died unnoticed is no reason to fail.
    (|| find_once(database, config))
        .retry(database.backoff())
        .when(is_retryable)
        .notify(|error, pause| info!(%error, ?pause, "the store could not be opened: retrying"))
        .await
}

/// Whether it is worth another try. A server that cannot be reached, a database that does not exist
/// and a password that is fixed are reported at once.
fn is_retryable(error: &OpenStoreError) -> bool {
    match error {
        OpenStoreError::Store(error) => is_transient(error),
        OpenStoreError::Connect(error) => error.is_answer(),
        OpenStoreError::Authentication(error) => {
            error.is_transient() && !error.has_code(&SqlState::INVALID_CATALOG_NAME)
        }
        _ => false,
    }
}

async fn find_once(
    database: &Database,
    config: &PostgresStoreConfig,
) -> Result<(i64, Codec), OpenStoreError> {
    let schema = database.statements().schema();
    let mut connection = database.connect().await?;
    let name = &config.account;
    let (id, cipher) = match probe(&mut connection, schema, config).await? {
        Some(found) => found,
        None if config.access == Access::Observe => {
            return Err(OpenStoreError::AccountNotFound { account: name.clone() });
        }
        None => {
            // Derived before the row exists, so that nobody ever sees a half-made account.
            let cipher = SealedCipher::create(name, config.secret.clone()).await?;
            let params: [(&(dyn ToSql + Sync), Type); 4] = [
                (name, Type::TEXT),
                (&cipher.secret_kind, Type::INT2),
                (&cipher.bytes, Type::BYTEA),
                (&cipher.written_by, Type::INT2),
            ];
            connection
                .execute_typed(&schema.qualify(INSERT), &params)
                .await
                .map_err(|error| OpenStoreError::refused(error.into(), "creating the account"))?;
            // Another process may have been first: what counts is what is there.
            probe(&mut connection, schema, config).await?.ok_or_else(|| {
                OpenStoreError::from(DatabaseError::broken("the account's row has disappeared"))
            })?
        }
    };
    drop(connection);
    Ok((id, cipher.open(name, config.secret.clone()).await?))
}

/// Checks server and schema, migrates if that is needed and allowed, and looks the account up.
async fn probe(
    connection: &mut Object,
    schema: &Schema,
    config: &PostgresStoreConfig,
) -> Result<Option<(i64, SealedCipher)>, OpenStoreError> {
    for migrated in [false, true] {
        let (server, version, compatible_with, stored, durable) =
            match look(connection, schema, &config.account).await {
                Ok(found) => found,
                Err(error) if is_missing(&error) => {
                    (server_version(connection).await?, 0, 0, None, Durability::GOOD)
                }
                Err(error) => {
                    return Err(OpenStoreError::refused(error, "reading the schema's tables"));
                }
            };
        if config.access != Access::Observe {
            durable.check(config)?;
        }
        if server < OLDEST_SERVER {
            return Err(OpenStoreError::ServerTooOld { found: server, required: OLDEST_SERVER });
        }
        let (found, required) = (version, migrations::CURRENT);
        if found > required && compatible_with > required {
            return Err(OpenStoreError::SchemaTooNew { found, supported: required });
        }
        if found >= required {
            return Ok(stored);
        }
        if migrated || !config.run_migrations || config.access == Access::Observe {
            return Err(OpenStoreError::MigrationsPending { found, required });
        }
        migrations::run(connection, schema).await?;
    }
    Ok(None)
}

type Found = (i32, i32, i32, Option<(i64, SealedCipher)>, Durability);

/// Whether a commit on the server is there to stay.
struct Durability {
    is_standby: bool,
    is_safe: bool,
}

impl Durability {
    const GOOD: Self = Self { is_standby: false, is_safe: true };

    /// Refuses a standby, and warns once of a server that may forget commits.
    fn check(&self, config: &PostgresStoreConfig) -> Result<(), OpenStoreError> {
        static WARNED: Once = Once::new();
        if self.is_standby {
            return Err(OpenStoreError::ReadOnlyServer);
        }
        if !self.is_safe && !config.accept_unsafe_durability {
            WARNED.call_once(|| {
                warn!(
                    "the server runs with fsync or synchronous_commit off: a crash of it may set \
                     ratchets back, so that messages are encrypted twice with one key or can no \
                     longer be read; switch both on, or say accept_unsafe_durability(true)"
                );
            });
        }
        Ok(())
    }
}

async fn look(connection: &Object, schema: &Schema, name: &str) -> Result<Found, DatabaseError> {
    let rows = connection.query_typed(&schema.qualify(PROBE), &[(&name, Type::TEXT)]).await?;
    let Some(row) = rows.first() else { return Ok((0, 0, 0, None, Durability::GOOD)) };
    let stored = match row.try_get(3)? {
        Some(id) => Some((
            id,
            SealedCipher {
                secret_kind: row.try_get(4)?,
                bytes: row.try_get(5)?,
                written_by: row.try_get(6)?,
            },
        )),
        None => None,
    };
    let compatible_with: Option<i32> = row.try_get(2)?;
    let durability = Durability { is_standby: row.try_get(7)?, is_safe: row.try_get(8)? };
    Ok((row.try_get(0)?, row.try_get(1)?, compatible_with.unwrap_or(0), stored, durability))
}

fn is_missing(error: &DatabaseError) -> bool {
    error.has_code(&SqlState::UNDEFINED_TABLE) || error.has_code(&SqlState::INVALID_SCHEMA_NAME)
}

async fn server_version(connection: &Object) -> Result<i32, OpenStoreError> {
    let sql = "SELECT current_setting('server_version_num')::int4 / 10000";
    let rows = connection.query_typed(sql, &[]).await.map_err(DatabaseError::from)?;
    let Some(row) = rows.first() else { return Ok(0) };
    Ok(row.try_get(0).map_err(DatabaseError::from)?)
}
