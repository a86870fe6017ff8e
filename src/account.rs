//! Claims the account's row and its cipher at open, and holds what an open account consists of.

mod claim;
mod read;

use std::{
    future::Future,
    sync::{Arc, Once},
    time::Duration,
};

use backon::Retryable;
use deadpool_postgres::Object;
use matrix_sdk_crypto::CryptoStoreError;
use tokio::task::spawn_blocking;
use tokio_postgres::{
    Row,
    error::SqlState,
    types::{ToSql, Type},
};
use tracing::warn;

pub(crate) use self::read::Group;
use crate::{
    Access, DatabaseError, Error, OpenStoreError, PostgresStoreConfig,
    atomically::{Scope, parts},
    batch::{Batch, Cell},
    cache::{Cache, Pending, Place},
    codec::{Codec, SealedCipher},
    connection::{Database, Param, is_transient},
    migrations,
    ownership::{Ownership, Tokens},
    presence::Presence,
    schema::Schema,
    statement::Sql,
    writer::{Lane, Writer},
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

/// An account that is open: where its rows are, how they are sealed, and who writes them.
pub(crate) struct OpenAccount {
    pub(crate) codec: Arc<Codec>,
    database: Database,
    owner: Arc<Ownership>,
    /// `None` for an observer.
    writer: Option<Writer>,
    presence: Option<Presence>,
    atomically_timeout: Duration,
}

/// What a write is staged with.
pub(crate) struct Staging {
    pub(crate) codec: Arc<Codec>,
    pending: Arc<Pending>,
}

impl Staging {
    /// Whether this write finds the row as it is, as far as that is known without a question.
    pub(crate) fn finds(&self, place: &Place, key: &[u8], is: impl FnOnce(&[u8]) -> bool) -> bool {
        self.pending.stored(place, key).is_some_and(|row| is(&row.data))
    }
}

impl OpenAccount {
    /// Brings the schema up to date, finds or creates the account, opens its cipher, and takes the
    /// account over; `former` is what this store owned before it was reopened.
    pub(crate) async fn open(
        database: Database,
        config: &PostgresStoreConfig,
        former: Option<&Ownership>,
    ) -> Result<Self, OpenStoreError> {
        // Of a shared pool, a connection that has died unnoticed is no reason to fail.
        let find = || find(&database, config);
        let (id, codec) = find.retry(database.backoff()).when(may_pass).await?;
        let (owner, presence) = match config.access {
            Access::Observe => {
                (Arc::new(Ownership::new(id, false, Tokens::default(), Cache::new(0, 0))), None)
            }
            Access::Exclusive | Access::Shared => {
                let (owner, presence) = claim::claim(&database, config, id, former).await?;
                (owner, Some(presence))
            }
        };
        let lane = Lane { database: database.clone(), owner: owner.clone() };
        let writer = presence.is_some().then(|| Writer::start(lane));
        let atomically_timeout = config.atomically_timeout;
        Ok(Self { codec: Arc::new(codec), database, owner, writer, presence, atomically_timeout })
    }

    pub(crate) fn owner(&self) -> &Arc<Ownership> {
        &self.owner
    }

    /// Runs a write that stands for itself, even within [`Self::atomically`]. Its last two parameters
    /// are for the guard, which it calls.
    pub(crate) async fn write_apart(
        &self,
        sql: &'static Sql,
        params: &[Param<'_>],
    ) -> Result<Option<Row>, Error> {
        self.writer()?;
        self.owner.check()?;
        let (token, seen) = (self.owner.token(), self.owner.seen());
        let token = token.as_slice();
        let mut params = self.with_id(params);
        params.extend([&token as Param<'_>, &seen]);
        match self.database.query_alone(sql, &params).await {
            Ok(mut rows) => Ok(rows.pop()),
            Err(error) => Err(self.owner.explain(&self.database, error).await),
        }
    }

    fn writer(&self) -> Result<&Writer, Error> {
        self.writer.as_ref().ok_or(Error::ObserveOnly)
    }

    /// How many transactions were committed in the account.
    pub(crate) async fn commits(&self) -> Result<u64, Error> {
        self.owner.check()?;
        Ok(self.owner.commits(&self.database).await?.unsigned_abs())
    }

    /// Queues a write in the account's lane and waits for its commit.
    pub(crate) async fn write<F>(
        &self,
        stage: impl FnOnce(Staging) -> F + Send + 'static,
    ) -> Result<(), Error>
    where
        F: Future<Output = Result<Batch, Error>> + Send + 'static,
    {
        let codec = self.codec.clone();
        self.stage(move |pending| stage(Staging { codec, pending })).await
    }

    /// Writes one row of a statement that needs no values, and that the cache knows nothing of.
    pub(crate) async fn apply<const N: usize>(
        &self,
        sql: &'static Sql,
        key: [Cell; N],
    ) -> Result<(), Error> {
        let mut batch = Batch::default();
        batch.put(sql, key, []);
        self.write(|_| std::future::ready(Ok(batch))).await
    }

    async fn stage<F>(
        &self,
        stage: impl FnOnce(Arc<Pending>) -> F + Send + 'static,
    ) -> Result<(), Error>
    where
        F: Future<Output = Result<Batch, Error>> + Send + 'static,
    {
        let writer = self.writer()?;
        match self.scope()? {
            Some(scope) => scope.write(stage).await,
            None => writer.write(stage).await,
        }
    }

    /// Writes what comes in parts as one transaction: the server takes one while the next is staged.
    pub(crate) async fn write_parts<P>(
        &self,
        parts: impl Iterator<Item = P> + Send + 'static,
    ) -> Result<(), Error>
    where
        P: FnOnce() -> Result<Batch, Error> + Send + 'static,
    {
        let writer = self.writer()?;
        if let Some(scope) = self.scope()? {
            // Nothing is sent within, so there is nothing to stage ahead of.
            for part in parts {
                let staged = async { spawn_blocking(part).await.map_err(|_| Error::StoreClosed)? };
                scope.write(|_| staged).await?;
            }
            return Ok(());
        }
        // It is finished even when the caller is gone.
        let writing = tokio::spawn(parts::write(writer.lend(), parts));
        writing.await.map_err(|_| Error::StoreClosed)?
    }

    /// Runs a future all of whose writes become one transaction.
    pub(crate) async fn atomically<T, E: From<CryptoStoreError>>(
        &self,
        future: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        if Scope::current().is_some() {
            return Err(CryptoStoreError::from(Error::NestedAtomically).into());
        }
        let writer = self.writer().map_err(CryptoStoreError::from)?;
        let lane = writer.lend().await.map_err(CryptoStoreError::from)?;
        let wrap = |error| CryptoStoreError::from(error).into();
        Scope::run(lane, self.atomically_timeout, future, wrap).await
    }

    /// The transaction that the calling task is in.
    pub(crate) fn scope(&self) -> Result<Option<Arc<Scope>>, Error> {
        match Scope::current() {
            Some(scope) if !scope.is_of(&self.owner) => Err(Error::OtherStoreInAtomically),
            scope => Ok(scope),
        }
    }

    /// Whether an operation failed and the account must be opened again before it is written to.
    pub(crate) fn has_failed(&self) -> bool {
        self.owner.has_failed()
    }

    /// Waits for the writes in flight, and lets go of the account.
    pub(crate) async fn close(&self) {
        if let Some(writer) = &self.writer {
            writer.close().await;
        }
        if let Some(presence) = &self.presence {
            presence.release().await;
        }
        self.owner.cache.close();
    }

    pub(crate) fn close_pool(&self) {
        self.database.close_pool();
    }
}

/// Whether it is worth another try; a server that cannot be reached is reported at once.
fn may_pass(error: &OpenStoreError) -> bool {
    matches!(error, OpenStoreError::Store(error) if is_transient(error))
}

async fn find(
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
