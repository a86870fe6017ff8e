//! Finds the account's row at open, or makes it, on a server and a schema that are fit for it.

mod probe;

use backon::Retryable;
use deadpool_postgres::Object;
use tokio_postgres::{
    error::SqlState,
    types::{ToSql, Type},
};
use tracing::info;

use self::probe::probe;
use crate::{
    Access, DatabaseError, OpenStoreError, PostgresStoreConfig,
    codec::{Codec, SealedCipher},
    connection::{Database, is_transient},
    schema::Schema,
};

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
