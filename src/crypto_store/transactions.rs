//! `atomically`: one transaction of many saves. The count of commits.

use std::future::Future;

use matrix_sdk_crypto::CryptoStoreError;

use super::PostgresCryptoStore;
#[cfg(doc)]
use crate::Timeouts;
use crate::{Error, Transaction};

impl PostgresCryptoStore {
    /// Makes one transaction of everything that the future saves in this store.
    ///
    /// A crash in the middle of a sync loses no room key without `atomically` either: saves that would be
    /// harmful alone are deferred to the sync's own save. Use it with a bare
    /// `OlmMachine`, not around the sync of a `Client`, which makes requests meanwhile. Within `atomically`, a sync is stored as a whole
    /// or not at all, with the application's own rows where [`transaction`](Self::transaction) is used:
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
    /// This commits the position too (`next_batch_token`), after which the homeserver does not send the
    /// sync's messages again. A bot that handles messages puts them into a table of its own within the same
    /// future, and handles them from there: `examples/outbox_bot.rs` is such a program.
    ///
    /// It is committed when the future returns `Ok`, and rolled back when it returns an error, is
    /// dropped, or holds the account for longer than
    /// [`Timeouts::atomically`], whether it is still polled or
    /// not. After a rollback of something that was saved, the SDK's memory is ahead of the database, so
    /// the store refuses writes: drop the `OlmMachine`, call `reopen()` and build a new one. Until it is
    /// dropped nothing must be sent for it: it may offer one-time keys for upload that were never
    /// stored.
    ///
    /// If `atomically` is dropped after its future returned `Ok`, while `COMMIT` is in flight, the commit
    /// is still completed before anything else is written. The caller does not get its outcome, but the
    /// store refuses writes if it failed.
    ///
    /// # Visibility
    ///
    /// Until the first save, other tasks write as usual, and reads are ordinary. From then on writes of
    /// other tasks to this store wait for the end, and *all* reads of this store and its clones see what
    /// was saved, in any task: the SDK spawns many of its reads. Only the sync token and custom values
    /// are hidden from other tasks until they are committed, because these tasks act on them at the
    /// homeserver. A lease is taken at once, and is not part of the transaction. Other stores see
    /// committed rows only.
    ///
    /// Tasks that the future *spawns* may read, but not save: the save would wait for the future, and if
    /// the future awaits it, both are blocked until the time limit. The SDK's own spawned tasks do not
    /// save. Nor may another task use the same `OlmMachine` meanwhile: it could hold a lock of the SDK
    /// that the future needs, while its own save waits for the future. Wrap the processing, not requests
    /// to a homeserver, and build the `OlmMachine` before.
    ///
    /// `close()` waits for the end; the future can still read and save meanwhile.
    ///
    /// # Errors
    ///
    /// The future's own error, or the reason why the transaction could not be begun or committed, as
    /// [`CryptoStoreError::Backend`] with an [`Error`] in it: [`Error::AtomicallyTimeout`],
    /// [`Error::NestedAtomically`], [`Error::TransactionControl`], [`Error::ReopenRequired`],
    /// [`Error::StoreClosed`], [`Error::Database`] and others.
    pub async fn atomically<T, E: From<CryptoStoreError>>(
        &self,
        future: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        // The operation ends here: `close()` waits for the scope's writes instead.
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

    /// The number of commits of the account, by all of its owners: the sum over its stores' lanes.
    ///
    /// It only increases, unless the database is rolled back. A bot that keeps the number elsewhere and
    /// finds a smaller one in the database has rolled-back ratchets, and must not continue with them.
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
