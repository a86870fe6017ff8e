//! Claims the account's row and its cipher at open, and holds what an open account consists of.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use deadpool_postgres::Object;
use matrix_sdk_store_encryption::StoreCipher;
use tokio_postgres::{
    Row,
    error::SqlState,
    types::{ToSql, Type},
};

use crate::{
    DatabaseError, Error, OpenStoreError, PostgresStoreConfig,
    batch::{Batch, Cell},
    codec::Codec,
    connection::{Database, Param},
    migrations,
    schema::Schema,
    secret::Secret,
    statement::Sql,
    writer::Writer,
};

/// The oldest server that the tests pass on.
const OLDEST_SERVER: i32 = 13;

/// Later minors change the form of a sealed cipher, so the writer's is recorded.
const MINOR: i16 = match i16::from_str_radix(env!("CARGO_PKG_VERSION_MINOR"), 10) {
    Ok(minor) => minor,
    Err(_) => i16::MAX,
};

/// One statement tells all that opening needs, when the schema is there.
const PROBE: &str = "
SELECT current_setting('server_version_num')::int4 / 10000, m.version, m.compatible_with,
       a.id, a.secret_kind, a.cipher, a.cipher_written_by
FROM (SELECT coalesce(max(version), 0) AS version, max(compatible_with) AS compatible_with
      FROM {schema}.schema_migrations) m
LEFT JOIN {schema}.accounts a ON a.name = $1";

const INSERT: &str = "
INSERT INTO {schema}.accounts (name, secret_kind, cipher, cipher_written_by)
VALUES ($1, $2, $3, $4) ON CONFLICT (name) DO NOTHING";

/// An account that is open: where its rows are, how they are sealed, and who writes them.
pub(crate) struct OpenAccount {
    pub(crate) codec: Arc<Codec>,
    database: Database,
    id: i64,
    writer: Writer,
    failed: Arc<AtomicBool>,
}

impl OpenAccount {
    /// Brings the schema up to date, finds or creates the account, and opens its cipher.
    pub(crate) async fn open(
        database: Database,
        config: &PostgresStoreConfig,
    ) -> Result<Self, OpenStoreError> {
        let (id, codec) = claim(&database, config).await?;
        let failed = Arc::new(AtomicBool::new(false));
        let writer = Writer::start(database.clone(), id, failed.clone());
        Ok(Self { codec: Arc::new(codec), database, id, writer, failed })
    }

    /// Reads rows with one statement, whose `$1` is the account.
    pub(crate) async fn query(
        &self,
        sql: &'static Sql,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Error> {
        let params: Vec<Param<'_>> =
            std::iter::once(&self.id as Param<'_>).chain(params.iter().copied()).collect();
        let result = self.database.query(sql, &params).await;
        if result.is_err() {
            // The SDK swallows a failed read in the middle of a sync and saves its token: without
            // this, the message that needed the row would be lost.
            self.failed.store(true, Ordering::Release);
        }
        result
    }

    /// Reads one row or none.
    pub(crate) async fn query_opt(
        &self,
        sql: &'static Sql,
        params: &[Param<'_>],
    ) -> Result<Option<Row>, Error> {
        Ok(self.query(sql, params).await?.pop())
    }

    /// Queues a write in the account's lane and waits for its commit.
    pub(crate) async fn write<F>(
        &self,
        stage: impl FnOnce(Arc<Codec>) -> F + Send + 'static,
    ) -> Result<(), Error>
    where
        F: Future<Output = Result<Batch, Error>> + Send + 'static,
    {
        let codec = self.codec.clone();
        self.writer.write(move || stage(codec)).await
    }

    /// Writes one row of a statement that needs no values.
    pub(crate) async fn apply<const N: usize>(
        &self,
        sql: &'static Sql,
        key: [Cell; N],
    ) -> Result<(), Error> {
        let mut batch = Batch::default();
        batch.put(sql, key, []);
        self.writer.write(|| std::future::ready(Ok(batch))).await
    }

    /// Whether an operation failed and the account must be opened again before it is written to.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Waits for the writes in flight.
    pub(crate) async fn close(&self) {
        self.writer.close().await;
    }

    pub(crate) fn close_pool(&self) {
        self.database.close_pool();
    }
}

/// The account's row as the probe finds it.
struct Stored {
    id: i64,
    secret_kind: i16,
    cipher: Option<Vec<u8>>,
    written_by: i16,
}

async fn claim(
    database: &Database,
    config: &PostgresStoreConfig,
) -> Result<(i64, Codec), OpenStoreError> {
    let schema = database.statements().schema();
    let mut connection = database.connect().await?;
    let name = &config.account;
    let stored = match probe(&mut connection, schema, config).await? {
        Some(stored) => stored,
        None => {
            // Derived before the row exists, so that nobody ever sees a half-made account.
            let (kind, cipher) = create_cipher(name, config.secret.clone()).await?;
            let params: [(&(dyn ToSql + Sync), Type); 4] = [
                (name, Type::TEXT),
                (&kind, Type::INT2),
                (&cipher, Type::BYTEA),
                (&MINOR, Type::INT2),
            ];
            connection
                .execute_typed(&schema.qualify(INSERT), &params)
                .await
                .map_err(|error| explain(error.into(), "creating the account"))?;
            // Another process may have been first: what counts is what is there.
            probe(&mut connection, schema, config).await?.ok_or_else(|| {
                OpenStoreError::from(DatabaseError::broken("the account's row has disappeared"))
            })?
        }
    };
    drop(connection);
    let id = stored.id;
    Ok((id, open_cipher(name, stored, config.secret.clone()).await?))
}

/// Checks server and schema, migrates if that is needed and allowed, and looks the account up.
async fn probe(
    connection: &mut Object,
    schema: &Schema,
    config: &PostgresStoreConfig,
) -> Result<Option<Stored>, OpenStoreError> {
    for migrated in [false, true] {
        let (server, version, compatible_with, stored) =
            match look(connection, schema, &config.account).await {
                Ok(found) => found,
                Err(error) if is_missing(&error) => (server_version(connection).await?, 0, 0, None),
                Err(error) => return Err(explain(error, "reading the schema's tables")),
            };
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
        if migrated || !config.run_migrations {
            return Err(OpenStoreError::MigrationsPending { found, required });
        }
        migrations::run(connection, schema).await?;
    }
    Ok(None)
}

type Found = (i32, i32, i32, Option<Stored>);

async fn look(connection: &Object, schema: &Schema, name: &str) -> Result<Found, DatabaseError> {
    let rows = connection.query_typed(&schema.qualify(PROBE), &[(&name, Type::TEXT)]).await?;
    let Some(row) = rows.first() else { return Ok((0, 0, 0, None)) };
    let stored = match row.try_get::<_, Option<i64>>(3)? {
        Some(id) => Some(Stored {
            id,
            secret_kind: row.try_get(4)?,
            cipher: row.try_get(5)?,
            written_by: row.try_get(6)?,
        }),
        None => None,
    };
    let compatible_with: Option<i32> = row.try_get(2)?;
    Ok((row.try_get(0)?, row.try_get(1)?, compatible_with.unwrap_or(0), stored))
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

fn explain(source: DatabaseError, what: &'static str) -> OpenStoreError {
    if source.has_code(&SqlState::INSUFFICIENT_PRIVILEGE) {
        return OpenStoreError::PermissionDenied { what, source };
    }
    source.into()
}

const PLAIN: i16 = 0;
const PASSPHRASE: i16 = 1;
const KEY: i16 = 2;

/// Makes a new cipher and seals it with the secret. Slow with a passphrase, so off the async threads.
async fn create_cipher(
    account: &str,
    secret: Option<Secret>,
) -> Result<(i16, Option<Vec<u8>>), OpenStoreError> {
    let Some(secret) = secret else { return Ok((PLAIN, None)) };
    let unusable = || OpenStoreError::Cipher { account: account.to_owned() };
    let sealed = tokio::task::spawn_blocking(move || {
        let cipher = StoreCipher::new()?;
        match &secret {
            Secret::Passphrase(passphrase) => Ok((PASSPHRASE, cipher.export(passphrase)?)),
            Secret::Key(key) => {
                // An array for 0.18, a slice for 0.19: this is both.
                let key: &[u8; 32] = key;
                Ok((KEY, cipher.export_with_key(key)?))
            }
        }
    });
    let sealed: Result<_, matrix_sdk_store_encryption::Error> =
        sealed.await.map_err(|_| unusable())?;
    sealed.map(|(kind, cipher)| (kind, Some(cipher))).map_err(|_| unusable())
}

/// Opens the stored cipher, or says why the given secret does not fit.
async fn open_cipher(
    account: &str,
    stored: Stored,
    secret: Option<Secret>,
) -> Result<Codec, OpenStoreError> {
    use matrix_sdk_store_encryption::Error as CipherError;
    let account = account.to_owned();
    let (secret, sealed) = match (secret, stored.secret_kind, stored.cipher) {
        (None, PLAIN, _) => return Ok(Codec::Plain),
        (Some(_), PLAIN, _) => return Err(OpenStoreError::PlainWithSecret { account }),
        (None, _, _) => return Err(OpenStoreError::EncryptedWithoutSecret { account }),
        (Some(Secret::Key(_)), PASSPHRASE, _) => {
            return Err(OpenStoreError::KeyInsteadOfPassphrase { account });
        }
        (Some(Secret::Passphrase(_)), KEY, _) => {
            return Err(OpenStoreError::PassphraseInsteadOfKey { account });
        }
        (Some(secret), _, Some(sealed)) => (secret, sealed),
        (Some(_), _, None) => return Err(OpenStoreError::Cipher { account }),
    };
    let kind = stored.secret_kind;
    let opened = tokio::task::spawn_blocking(move || match &secret {
        Secret::Passphrase(passphrase) => StoreCipher::import(passphrase, &sealed),
        Secret::Key(key) => {
            let key: &[u8; 32] = key;
            StoreCipher::import_with_key(key, &sealed)
        }
    });
    match opened.await {
        Ok(Ok(cipher)) => Ok(Codec::Sealed(Box::new(cipher))),
        Ok(Err(CipherError::Encryption(_))) if kind == KEY => {
            Err(OpenStoreError::WrongKey { account })
        }
        Ok(Err(CipherError::Encryption(_))) => Err(OpenStoreError::WrongPassphrase { account }),
        Ok(Err(_)) if stored.written_by > MINOR => {
            Err(OpenStoreError::CipherTooNew { account, written_by: stored.written_by })
        }
        _ => Err(OpenStoreError::Cipher { account }),
    }
}
