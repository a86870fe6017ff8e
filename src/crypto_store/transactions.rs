//! One transaction of many saves, and how many there were.

use std::future::Future;

use matrix_sdk_crypto::CryptoStoreError;

use super::PostgresCryptoStore;
#[cfg(doc)]
use crate::Timeouts;
use crate::{Error, Transaction};

impl PostgresCryptoStore {
    /// Makes one transaction of everything that the future saves in this store.
    ///
    /// A crash in the middle of a sync loses no room key without it, too: what would do harm alone is
    /// stored with the sync's own save. Wrapped in `atomically`, a sync is stored as a whole or not at
    /// all, with rows of the application's own where [`transaction`](Self::transaction) is used:
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
    /// dropped, or holds the account for longer than
    /// [`Timeouts::atomically`], whether it is still polled or
    /// not. After a rollback of something that was saved, the SDK's memory is ahead of the database, so
    /// the store refuses writes: drop the `OlmMachine`, call `reopen()` and build a new one. Until it is
    /// dropped nothing must be sent for it: it may offer one-time keys for upload that were never
    /// stored.
    ///
    /// When `atomically` is dropped after its future has ended well, while `COMMIT` is on its way, the
    /// commit is finished all the same, before anything else is written. Whether it took effect the
    /// caller does not learn, only that the store refuses writes if it did not.
    ///
    /// # What is seen, and by whom
    ///
    /// Until the first save the account is free: others write, and reads are ordinary. From then on
    /// other tasks' writes to this store wait for the end, and *all* reads of this store and its
    /// clones see what was saved, in whatever task they are: the SDK spawns many of its reads. Only the
    /// sync token and custom values are shown to no other task before they are committed, because
    /// others act on them at the homeserver; a lease is taken at once, and is no part of the
    /// transaction. Other stores see what is committed.
    ///
    /// What the future *spawns* may read, but not save: the save would wait for the future, and if the
    /// future waits for it, both stand still until the time limit. Nothing that the SDK spawns saves.
    /// Nor may another task use the same `OlmMachine` meanwhile: it could hold a lock of the SDK's that
    /// the future needs, while its own save waits for the future. Wrap the processing, not the waiting
    /// for a homeserver, and build the `OlmMachine` before.
    ///
    /// `close()` waits for the end, and what the future reads and saves goes on meanwhile.
    ///
    /// # Errors
    ///
    /// The future's own; else what kept the transaction from being begun or committed, as
    /// [`CryptoStoreError::Backend`] with an [`Error`] in it: [`Error::AtomicallyTimeout`],
    /// [`Error::NestedAtomically`], [`Error::TransactionControl`], [`Error::ReopenRequired`],
    /// [`Error::StoreClosed`], [`Error::Database`] and others.
    pub async fn atomically<T, E: From<CryptoStoreError>>(
        &self,
        future: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        // Closing waits for its writes, and meanwhile for no operation.
        let account = self.operation().map(|operation| operation.account());
        let account = account.map_err(CryptoStoreError::from)?;
        account.atomically(future, |error| CryptoStoreError::from(error).into()).await
    }

    /// The transaction of the [`atomically`](Self::atomically) that the calling task is in, for the
    /// application's own rows. It ends with its `atomically`, not with the handle.
    ///
    /// # Errors
    ///
    /// [`Error::NotInAtomically`] outside of one, [`Error::OtherStoreInAtomically`] within another
    /// store's. [`Transaction::query`] has an example.
    pub async fn transaction(&self) -> Result<Transaction, Error> {
        let scope = self.operation()?.scope()?;
        scope.map(Transaction::new).ok_or(Error::NotInAtomically)
    }

    /// How many commits the account has, by any of its owners: the sum over its stores' lanes.
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
        self.operation()?.commits().await
    }
}
