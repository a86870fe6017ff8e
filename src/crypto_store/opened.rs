//! The account between opening and closing.

use std::{
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
    pub(super) fn open_account(&self) -> Result<Operation, Error> {
        let operation = self.opened().as_ref().and_then(Opened::begin);
        operation.ok_or_else(|| self.owner().check().err().unwrap_or(Error::StoreClosed))
    }

    fn opened(&self) -> MutexGuard<'_, Option<Opened>> {
        self.inner.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn close_account(&self) -> Result<(), Error> {
        // Another that closes or reopens may not be polled any more.
        let _turn = timeout(CLOSE_LIMIT, self.inner.turn.lock()).await;
        self.shut().await
    }

    async fn shut(&self) -> Result<(), Error> {
        let Ok(closing) = self.open_account().map(|operation| operation.account()) else {
            return Ok(());
        };
        if closing.scope().is_ok_and(|scope| scope.is_some()) {
            return Err(Error::CloseInAtomically);
        }
        // Also writes whose caller is gone. What they read meanwhile must not wait for us.
        closing.finish_writes().await;
        // Meanwhile another may have closed it, and even opened it again.
        let opened = self.opened().take_if(|opened| Arc::ptr_eq(&opened.account, &closing));
        if let Some(Opened { account, operations }) = opened {
            // Futures that nobody polls do not end.
            let _ = timeout(CLOSE_LIMIT, operations.write()).await;
            account.close().await;
            self.inner.deferred.clear();
            if self.inner.foreign_pool.is_none() {
                account.close_pool();
            }
        }
        Ok(())
    }

    /// Opens a closed store, one that refuses writes, and one in the middle of a sync; does nothing for
    /// a store in order. What somebody else has taken over it does not take back.
    pub(super) async fn reopen_account(&self) -> Result<(), Error> {
        self.owner().check()?;
        let _turn = self.inner.turn.lock().await;
        let is_in_order = self.open_account().is_ok_and(|account| account.can_write());
        if is_in_order && self.inner.deferred.is_empty() {
            return Ok(());
        }
        self.shut().await?;
        let Inner { config, foreign_pool, .. } = &*self.inner;
        let former = self.owner();
        let account = open_account(foreign_pool.as_ref(), config, Some(&former)).await;
        let account = account.map_err(|error| match error {
            OpenStoreError::Store(error @ (Error::Superseded { .. } | Error::Rewound)) => error,
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
