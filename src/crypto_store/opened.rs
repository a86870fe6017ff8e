//! The account between opening and closing.

use std::{
    future::Future,
    ops::Deref,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedRwLockReadGuard, RwLock},
    time::timeout,
};

use super::store::{Inner, PostgresCryptoStore, open_account};
use crate::{Error, OpenStoreError, account::OpenAccount};

/// How long closing waits for what may not be polled any more.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// An account that is open.
pub(super) struct Opened {
    account: Arc<OpenAccount>,
    /// Operations hold it for reading, so that closing can wait for them.
    operations: Arc<RwLock<()>>,
}

impl Opened {
    pub(super) fn new(account: OpenAccount) -> Self {
        Self { account: Arc::new(account), operations: Arc::default() }
    }

    fn begin(&self) -> Option<Operation> {
        let running = self.operations.clone().try_read_owned().ok()?;
        Some(Operation { account: self.account.clone(), _running: running })
    }
}

/// An operation in an open account.
pub(super) struct Operation {
    account: Arc<OpenAccount>,
    _running: OwnedRwLockReadGuard<()>,
}

impl Operation {
    /// The account, for what closing need not wait for.
    pub(super) fn account(&self) -> Arc<OpenAccount> {
        self.account.clone()
    }
}

impl Deref for Operation {
    type Target = OpenAccount;

    fn deref(&self) -> &OpenAccount {
        &self.account
    }
}

impl PostgresCryptoStore {
    /// The open account, for one operation.
    pub(super) fn operation(&self) -> Result<Operation, Error> {
        let operation = self.opened().as_ref().and_then(Opened::begin);
        operation.ok_or_else(|| self.owner().check().err().unwrap_or(Error::StoreClosed))
    }

    /// The same for a read of which the SDK swallows a failure in the middle of a sync.
    pub(super) fn operation_of_sync(&self) -> Result<Operation, Error> {
        self.operation().inspect_err(|_| self.inner.deferred.see_torn())
    }

    fn opened(&self) -> MutexGuard<'_, Option<Opened>> {
        self.inner.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn close_account(&self) -> Result<(), Error> {
        self.check_outside()?;
        let store = self.clone();
        self.in_turn(async move { store.shut().await }).await
    }

    /// Opens a closed store, one that refuses writes, and one in the middle of a sync; does nothing for
    /// a store in order. What somebody else has taken over it does not take back.
    pub(super) async fn reopen_account(&self) -> Result<(), Error> {
        self.check_outside()?;
        let store = self.clone();
        self.in_turn(async move { store.open_again().await }).await
    }

    /// Closing waits for the end of scopes, so it cannot be asked for within one.
    fn check_outside(&self) -> Result<(), Error> {
        match self.operation().and_then(|account| account.scope()) {
            Ok(Some(_)) => Err(Error::CloseInAtomically),
            _ => Ok(()),
        }
    }

    /// Closes or opens, one after the other, and also when the caller is gone or not polled any more.
    async fn in_turn(
        &self,
        change: impl Future<Output = Result<(), Error>> + Send + 'static,
    ) -> Result<(), Error> {
        let inner = self.inner.clone();
        let change = tokio::spawn(async move {
            let _turn = inner.turn.lock().await;
            change.await
        });
        change.await.map_err(|_| Error::StoreClosed)?
    }

    async fn shut(&self) -> Result<(), Error> {
        let Ok(account) = self.operation().map(|operation| operation.account()) else {
            return Ok(());
        };
        // Also writes whose caller is gone. What they read meanwhile must not wait for us.
        account.finish_writes().await;
        let Some(Opened { operations, .. }) = self.opened().take() else { return Ok(()) };
        // Futures that nobody polls do not end.
        let have_ended = timeout(CLOSE_LIMIT, operations.write()).await.is_ok();
        account.close().await;
        if !have_ended || account.owner().has_failed() || !self.inner.deferred.is_empty() {
            self.inner.deferred.see_torn();
        }
        self.inner.deferred.clear(account.owner());
        if self.inner.foreign_pool.is_none() {
            account.close_pool();
        }
        Ok(())
    }

    async fn open_again(&self) -> Result<(), Error> {
        self.owner().check()?;
        let is_in_order = self.operation().is_ok_and(|account| account.can_write());
        if is_in_order && self.inner.deferred.is_empty() {
            return Ok(());
        }
        self.shut().await?;
        let Inner { config, foreign_pool, .. } = &*self.inner;
        let former = self.owner();
        let account = open_account(foreign_pool.as_ref(), config, Some(&former)).await;
        let account = account.map_err(|error| match error {
            OpenStoreError::Store(
                error @ (Error::Superseded { .. } | Error::DatabaseRolledBack),
            ) => error,
            error => Error::Reopen(Box::new(error)),
        });
        let account = account.inspect_err(|error| former.lose(error))?;
        let owner = account.owner().clone();
        self.inner.deferred.reopened(owner.clone());
        *self.inner.owner.lock().unwrap_or_else(PoisonError::into_inner) = owner;
        *self.opened() = Some(Opened::new(account));
        Ok(())
    }
}
