//! All stores of one account.

use std::{fmt, future::Future};

use deadpool_postgres::Pool;
#[cfg(feature = "testing")]
use tokio_postgres::types::Type;

#[cfg(feature = "testing")]
use crate::{
    account::handle::statements,
    postgres::{schema::Schema, statement::Statements},
};

use crate::{
    Error, OpenStoreError, PostgresCryptoStore, PostgresStoreConfig, Transaction,
    account::{self, handle::AccountHandle},
    crypto_store::CRYPTO_STORE,
};

/// A statement's name, its text, and its parameters' types.
#[cfg(feature = "testing")]
type StatementText = (&'static str, String, Vec<Type>);

/// One account in PostgreSQL, opened once for all of its stores.
///
/// Today that is the crypto store; others will share the same account handle. Each store has its own
/// writer lane: a large save in one delays no save in another. Cheap to clone.
///
/// The account is released when all of its stores are closed or dropped.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use matrix_sdk_postgres::{PostgresStoreConfig, PostgresStores};
///
/// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot");
/// let stores = PostgresStores::open(&config).await?;
/// let crypto_store = stores.crypto_store();
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct PostgresStores {
    crypto_store: PostgresCryptoStore,
}

impl fmt::Debug for PostgresStores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStores").finish_non_exhaustive()
    }
}

impl PostgresStores {
    /// Opens the account, creating what is missing.
    ///
    /// # Errors
    ///
    /// See [`OpenStoreError`]: each reason has a variant.
    pub async fn open(config: &PostgresStoreConfig) -> Result<Self, OpenStoreError> {
        Self::open_on(None, config).await
    }

    /// Opens the account on a pool that is shared with other accounts or with the application, as
    /// [`PostgresCryptoStore::open_with_pool`] does.
    ///
    /// # Errors
    ///
    /// See [`OpenStoreError`].
    pub async fn open_with_pool(
        pool: Pool,
        config: &PostgresStoreConfig,
    ) -> Result<Self, OpenStoreError> {
        Self::open_on(Some(pool), config).await
    }

    async fn open_on(
        pool: Option<Pool>,
        config: &PostgresStoreConfig,
    ) -> Result<Self, OpenStoreError> {
        let account = AccountHandle::open(pool, config, vec![&CRYPTO_STORE]).await?;
        Ok(Self { crypto_store: PostgresCryptoStore::of(&account) })
    }

    /// The crypto store: always the same one.
    pub fn crypto_store(&self) -> PostgresCryptoStore {
        self.crypto_store.clone()
    }

    /// Makes one transaction of everything that the future saves in any store of the account. It works
    /// as [`PostgresCryptoStore::atomically`] does for one store, except that the error can be any type
    /// that implements `From<Error>`.
    ///
    /// # Errors
    ///
    /// The future's own error, or the reason why the transaction could not be begun or committed:
    /// [`Error::AtomicallyTimeout`], [`Error::NestedAtomically`], [`Error::TransactionControl`],
    /// [`Error::ReopenRequired`], [`Error::StoreClosed`], [`Error::Database`] and others.
    ///
    /// ```no_run
    /// # use matrix_sdk_crypto::{DecryptionSettings, EncryptionSyncChanges, OlmMachine};
    /// # use matrix_sdk_postgres::PostgresStores;
    /// type BoxedError = Box<dyn std::error::Error + Send + Sync>;
    ///
    /// # async fn example(
    /// #     stores: PostgresStores,
    /// #     machine: OlmMachine,
    /// #     changes: EncryptionSyncChanges<'_>,
    /// #     settings: DecryptionSettings,
    /// # ) -> Result<(), BoxedError> {
    /// let (to_device_events, room_keys) = stores
    ///     .atomically(async {
    ///         let processed = machine.receive_sync_changes(changes, &settings).await?;
    ///         stores.transaction().await?.query("UPDATE bots SET syncs = syncs + 1", &[]).await?;
    ///         Ok::<_, BoxedError>(processed)
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    pub async fn atomically<T, E: From<Error>>(
        &self,
        future: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let crypto_store = self.crypto_store.handle().operation();
        let crypto_store = crypto_store.map(|operation| operation.account())?;
        account::atomically(&[&crypto_store], future, E::from).await
    }

    /// The transaction of the [`atomically`](Self::atomically) that the calling task is in, for the
    /// application's own rows.
    ///
    /// # Errors
    ///
    /// [`Error::NotInAtomically`] outside of one.
    pub async fn transaction(&self) -> Result<Transaction, Error> {
        self.crypto_store.transaction().await
    }

    /// The sum of the commits of the account's lanes; a transaction over several stores counts in each
    /// of them. See [`PostgresCryptoStore::commit_count`].
    ///
    /// # Errors
    ///
    /// [`Error::Database`], [`Error::Superseded`] and others.
    pub async fn commit_count(&self) -> Result<u64, Error> {
        self.crypto_store.commit_count().await
    }

    /// Closes all stores, and releases the account.
    ///
    /// # Errors
    ///
    /// [`Error::CloseInAtomically`] within [`atomically`](Self::atomically).
    pub async fn close(&self) -> Result<(), Error> {
        self.crypto_store.handle().close().await
    }

    /// Reopens all stores that are closed, refuse writes, or are in the middle of a sync.
    ///
    /// # Errors
    ///
    /// [`Error::Reopen`] with the reason why the account could not be opened, [`Error::Superseded`],
    /// [`Error::DatabaseRolledBack`] and others.
    pub async fn reopen(&self) -> Result<(), Error> {
        self.crypto_store.handle().reopen().await
    }

    /// The text of every statement of the stores, for tests of PostgreSQL's plans.
    ///
    /// # Errors
    ///
    /// [`OpenStoreError::InvalidConfig`] when the schema's name is invalid.
    #[doc(hidden)]
    #[cfg(feature = "testing")]
    pub fn statement_texts(schema: &str) -> Result<Vec<StatementText>, OpenStoreError> {
        let statements = Statements::new(Schema::new(schema)?, statements(&[&CRYPTO_STORE]));
        let texts = statements.iter();
        Ok(texts.map(|(name, sql)| (*name, sql.text.clone(), sql.types.clone())).collect())
    }
}
