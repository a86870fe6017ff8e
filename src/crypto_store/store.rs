//! The public type of the crypto store: opening it, and its open account.

use std::{fmt, sync::Arc};

use deadpool_postgres::Pool;
use matrix_sdk_crypto::olm::StaticAccountData;

use super::{
    account_data, backups, custom_values,
    deferred::{Deferred, Saves},
    devices, encrypted_rooms, identities, inbound_group_sessions, key_requests, message_hashes,
    olm_sessions, outbound_group_sessions, room_key_bundles, secrets, size,
    static_account::StaticAccount,
    sync_tokens, tracked_users, withheld,
};
use crate::{
    Error, OpenStoreError, PostgresStoreConfig,
    account::{
        StoreLane,
        handle::{AccountHandle, Opening},
        store::StoreKind,
        store_handle::{Operation, StoreHandle},
    },
    postgres::migrations::Migration,
};

/// A [`CryptoStore`](matrix_sdk_crypto::store::CryptoStore) that keeps one account's keys in
/// PostgreSQL.
///
/// Cheap to clone: clones are the same store. Writes are executed in the order of the calls; queued writes share a
/// commit, and most sent messages need none. A write that was begun is finished even when its future is dropped.
///
/// # When an operation fails
///
/// Transient failures (a restarting server, a deadlock) are retried inside the store for some seconds.
/// Once an error has been returned, the SDK's memory and the database may differ, and the SDK does not
/// always notice: in the middle of a sync it takes a failed read for an undecryptable
/// message. So from then on the store refuses writes with [`Error::ReopenRequired`]: drop the
/// `OlmMachine`, call `reopen()`, build a new machine and go on from the stored position.
///
/// # The stored position
///
/// [`next_batch_token`](matrix_sdk_crypto::store::CryptoStore::next_batch_token) is the `next_batch` of the last
/// sync whose keys are committed: the machine saves it with them. Begin each `/sync` with it, after a start
/// and after `reopen()`. The homeserver does not send again what came before it, so messages that were
/// received with those keys, and not handled, are lost in a crash, unless they were committed in the same
/// transaction: see [`atomically`](Self::atomically).
///
/// # Ownership, syncs and closing
///
/// - The store belongs to the tokio runtime on which it was opened: its writer is a task there.
/// - One account, one owner: opening takes the account over, and writes of the former owner fail with
///   [`Error::Superseded`], unless [`PostgresStoreConfig::access`] is set otherwise.
/// - A crash in the middle of a sync loses no key. Saves that would be harmful without the rest of the
///   sync are deferred to the save that carries the sync token: an Olm session that has only received,
///   and the deletion of a key request that was answered. Until then reads see them, and nothing is
///   written.
/// - A sync whose future is dropped before its end, or that fails because the store is closed meanwhile,
///   leaves the `OlmMachine` with sessions that have decrypted messages whose content is lost. The next
///   sync of such a machine fails with [`Error::ReopenRequired`], so that the token is not stored and the
///   homeserver sends the messages again, to a new machine. The store detects this by `load_account`,
///   which a machine calls again when it has lost its account; applications need not call it.
/// - Calls of `close` and `reopen` run one after the other, and are completed even when their futures are
///   dropped. `close` finishes the writes that were begun; for other operations in progress it waits for
///   5 s at most, as their futures may not be polled any more. End the tasks of an old machine before a
///   new one is built: the store cannot distinguish them.
/// - `get_size` estimates the account's share of the store's tables, indexes included, from what `ANALYZE`
///   last counted; it reads none of the account's rows.
/// - Backup versions are distinguished, as in upstream's `MemoryStore`: a session counts as backed up
///   in the version that holds it, and one saved again without being backed up is to be uploaded
///   again. `reset_backup_state` makes all sessions need an upload, without a write to each.
#[derive(Clone)]
pub struct PostgresCryptoStore {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    store: Arc<StoreHandle>,
    static_account: StaticAccount,
    pub(super) deferred: Arc<Deferred>,
}

impl fmt::Debug for PostgresCryptoStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresCryptoStore").finish_non_exhaustive()
    }
}

impl PostgresCryptoStore {
    /// Opens the store of `account` in the database at `url`, creating what is missing. With a
    /// passphrase, identifying data is hashed and content is sealed.
    ///
    /// The account's name identifies the account, as a path does for SQLite: two bots in one database
    /// need two names. It is stored in clear text.
    ///
    /// # Errors
    ///
    /// See [`OpenStoreError`]: each reason has a variant.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), matrix_sdk_postgres::OpenStoreError> {
    /// use matrix_sdk_postgres::PostgresCryptoStore;
    ///
    /// let store =
    ///     PostgresCryptoStore::open("postgres://bot@localhost/bots", "my-bot", Some("a passphrase"))
    ///         .await?;
    /// # Ok(()) }
    /// ```
    pub async fn open(
        url: impl Into<String>,
        account: impl Into<String>,
        passphrase: Option<&str>,
    ) -> Result<Self, OpenStoreError> {
        let config = PostgresStoreConfig::new(url, account).passphrase(passphrase);
        Self::open_with_config(&config).await
    }

    /// Opens the store with a key instead of a passphrase: faster to open, as no key is derived from a
    /// passphrase.
    ///
    /// # Errors
    ///
    /// See [`OpenStoreError`].
    ///
    /// ```no_run
    /// # async fn example(key: [u8; 32]) -> Result<(), matrix_sdk_postgres::OpenStoreError> {
    /// use matrix_sdk_postgres::PostgresCryptoStore;
    ///
    /// let store =
    ///     PostgresCryptoStore::open_with_key("postgres://localhost/bots", "my-bot", Some(&key))
    ///         .await?;
    /// # Ok(()) }
    /// ```
    pub async fn open_with_key(
        url: impl Into<String>,
        account: impl Into<String>,
        key: Option<&[u8; 32]>,
    ) -> Result<Self, OpenStoreError> {
        Self::open_with_config(&PostgresStoreConfig::new(url, account).key(key)).await
    }

    /// Opens the store with the settings of a configuration.
    ///
    /// # Errors
    ///
    /// See [`OpenStoreError`].
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), matrix_sdk_postgres::OpenStoreError> {
    /// use matrix_sdk_postgres::{PostgresCryptoStore, PostgresStoreConfig};
    ///
    /// let config = PostgresStoreConfig::from_env("my-bot")?.schema("staging");
    /// let store = PostgresCryptoStore::open_with_config(&config).await?;
    /// # Ok(()) }
    /// ```
    pub async fn open_with_config(config: &PostgresStoreConfig) -> Result<Self, OpenStoreError> {
        Self::open_on(None, config).await
    }

    /// Opens the store on a pool that is shared with other stores or with the application.
    ///
    /// The connection settings of `config` (URL, password, [`PoolSettings`](crate::PoolSettings)) are
    /// ignored. On a pool that [`build_pool`](PostgresStoreConfig::build_pool) made, statements are
    /// prepared as its settings say. On any other pool they are sent typed and unnamed, one round trip each,
    /// so that it may be behind any pooler. Closing the store does not close the pool.
    ///
    /// # Errors
    ///
    /// See [`OpenStoreError`].
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), matrix_sdk_postgres::OpenStoreError> {
    /// use matrix_sdk_postgres::{PostgresCryptoStore, PostgresStoreConfig};
    ///
    /// let config = PostgresStoreConfig::new("postgres://localhost/bots", "alice-bot");
    /// let pool = config.build_pool()?;
    /// for name in ["alice-bot", "bob-bot"] {
    ///     let config = config.clone().account(name);
    ///     let store = PostgresCryptoStore::open_with_pool(pool.clone(), &config).await?;
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn open_with_pool(
        pool: Pool,
        config: &PostgresStoreConfig,
    ) -> Result<Self, OpenStoreError> {
        Self::open_on(Some(pool), config).await
    }

    async fn open_on(
        foreign_pool: Option<Pool>,
        config: &PostgresStoreConfig,
    ) -> Result<Self, OpenStoreError> {
        let account = AccountHandle::open(foreign_pool, config, vec![&CRYPTO_STORE]).await?;
        Ok(Self::of(&account))
    }

    /// The crypto store of an account that has just been opened.
    pub(crate) fn of(account: &Opening) -> Self {
        let (store, deferred) = StoreHandle::new(account, &CRYPTO_STORE, Deferred::new);
        let static_account = StaticAccount::default();
        Self { inner: Arc::new(Inner { store, static_account, deferred }) }
    }

    pub(crate) fn handle(&self) -> &Arc<StoreHandle> {
        &self.inner.store
    }

    /// The open account, for one operation.
    pub(super) fn operation(&self) -> Result<Operation, Error> {
        self.inner.store.operation()
    }

    /// As [`operation`](Self::operation), for reads whose failure the SDK ignores in the middle of a sync:
    /// a failure counts as an interrupted sync.
    pub(super) fn operation_of_sync(&self) -> Result<Operation, Error> {
        self.operation().inspect_err(|_| self.inner.deferred.record_interrupted_sync())
    }

    pub(super) fn static_account(&self) -> &StaticAccount {
        &self.inner.static_account
    }

    /// The account's ids and keys, if the account was loaded or saved.
    pub(super) fn own(&self, account: &StoreLane) -> Result<Option<StaticAccountData>, Error> {
        self.inner.static_account.visible(account)
    }

    /// The deferred saves.
    pub(super) fn saves(&self, account: &StoreLane) -> Result<Saves, Error> {
        Saves::of(&self.inner.deferred, account)
    }

    /// Required by upstream's test suite.
    #[doc(hidden)]
    #[cfg(feature = "testing")]
    pub fn get_static_account(&self) -> Option<StaticAccountData> {
        self.inner.static_account.committed()
    }
}

pub(crate) static CRYPTO_STORE: StoreKind = StoreKind {
    name: "crypto_store",
    migrations: &[Migration {
        version: 1,
        compatible_with: 1,
        name: "initial",
        sql: include_str!("../../migrations/crypto_store/0001_initial.sql"),
    }],
    statements: &[
        account_data::STATEMENTS,
        backups::STATEMENTS,
        custom_values::STATEMENTS,
        devices::STATEMENTS,
        encrypted_rooms::STATEMENTS,
        identities::STATEMENTS,
        inbound_group_sessions::STATEMENTS,
        key_requests::STATEMENTS,
        message_hashes::STATEMENTS,
        olm_sessions::STATEMENTS,
        outbound_group_sessions::STATEMENTS,
        room_key_bundles::STATEMENTS,
        secrets::STATEMENTS,
        size::STATEMENTS,
        sync_tokens::STATEMENTS,
        tracked_users::STATEMENTS,
        withheld::STATEMENTS,
    ],
    // Other tasks act on these values at the homeserver.
    hidden_until_commit: &["sync_tokens", "custom_values"],
};
