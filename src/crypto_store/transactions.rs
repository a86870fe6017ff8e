//! One transaction of many saves, and how many there were.

use std::{future::Future, sync::Arc};

use matrix_sdk_crypto::CryptoStoreError;

use super::PostgresCryptoStore;
#[cfg(doc)]
use crate::PostgresStoreConfig;
use crate::{Error, Transaction};

impl PostgresCryptoStore {
    /// Makes one transaction of everything that the future saves in this store.
    ///
    /// The SDK saves piecemeal while it works through a sync: it stores each new Olm session, already
    /// past its message, long before the room keys that the message carried. A process that dies in
    /// between loses those keys for ever, because the replayed message no longer decrypts. Wrapped in
    /// `atomically`, a sync is stored as a whole or not at all:
    ///
    /// ```no_run
    /// # use matrix_sdk_crypto::{DecryptionSettings, EncryptionSyncChanges, OlmError, OlmMachine};
    /// # use matrix_sdk_postgres::PostgresCryptoStore;
    /// # async fn example(
    /// #     store: PostgresCryptoStore,
    /// #     machine: OlmMachine,
    /// #     changes: EncryptionSyncChanges<'_>,
    /// #     settings: DecryptionSettings,
    /// # ) -> Result<(), OlmError> {
    /// let (to_device_events, room_keys) =
    ///     store.atomically(machine.receive_sync_changes(changes, &settings)).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// It is committed when the future returns `Ok`, and rolled back when it returns an error, is
    /// dropped, or takes longer than
    /// [`atomically_timeout`](PostgresStoreConfig::atomically_timeout). After a rollback of
    /// something that was saved, the SDK's memory is ahead of the database, so the store refuses
    /// writes: drop the `OlmMachine`, call `reopen()` and build a new one. Until it is dropped nothing
    /// must be sent for it: it may offer one-time keys for upload that were never stored.
    ///
    /// Within, saves wait for nothing, and reads see them. Other tasks do not see them, and their
    /// writes to this store wait. It is scoped by task: what the future spawns is not part of it, and
    /// must not be awaited if it writes. Nor may another task use the same `OlmMachine` meanwhile: it
    /// could hold a lock of the SDK's that the future needs, while its own save waits for the future.
    /// Wrap the processing, not the waiting for a homeserver, and build the `OlmMachine` before.
    ///
    /// # Errors
    ///
    /// The future's own; else what kept the transaction from being begun or committed, as
    /// [`CryptoStoreError::Backend`] with an [`Error`] in it: [`Error::AtomicallyTimeout`],
    /// [`Error::NestedAtomically`], [`Error::Database`] and others.
    pub async fn atomically<T, E: From<CryptoStoreError>>(
        &self,
        future: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        // Not the guard: closing waits for that, and what the future reads would wait for closing.
        let account = self.open_account().await.map(|account| Arc::clone(&account));
        account.map_err(CryptoStoreError::from)?.atomically(future).await
    }

    /// The transaction of the [`atomically`](Self::atomically) that the caller is in, for the
    /// application's own rows.
    ///
    /// # Errors
    ///
    /// [`Error::NotInAtomically`] outside of one, [`Error::OtherStoreInAtomically`] within another
    /// store's. [`Transaction::query`] has an example.
    pub async fn transaction(&self) -> Result<Transaction, Error> {
        let scope = self.open_account().await?.scope()?;
        scope.map(Transaction::new).ok_or(Error::NotInAtomically)
    }

    /// How many transactions were committed in the account, by any of its owners.
    ///
    /// It only rises, unless an old backup is restored. A bot that keeps the number elsewhere, and
    /// finds a smaller one in the database, holds ratchets that have gone back: it must not go on
    /// with them.
    ///
    /// # Errors
    ///
    /// [`Error::Database`], [`Error::Superseded`] and others.
    ///
    /// ```no_run
    /// # async fn example(
    /// #     store: matrix_sdk_postgres::PostgresCryptoStore,
    /// #     remembered: u64,
    /// # ) -> Result<(), Box<dyn std::error::Error>> {
    /// if store.commit_count().await? < remembered {
    ///     return Err("the database is an old backup: begin with a new device".into());
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn commit_count(&self) -> Result<u64, Error> {
        self.open_account().await?.commits().await
    }
}
