//! A store that can be closed and reopened.

use std::{
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedRwLockReadGuard, RwLock},
    time::timeout,
};

use super::{
    StoreLane,
    handle::{AccountHandle, OpenAccount, Opening},
    store::{Lifecycle, StoreKind},
};
use crate::{Error, account::ownership::LaneOwnership};

/// How long closing waits for operations whose futures may no longer be polled.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// A store of an account. Valid across closing and reopening.
pub(crate) struct StoreHandle {
    account: AccountHandle,
    kind: &'static StoreKind,
    lifecycle: Arc<dyn Lifecycle>,
    /// `None` when closed.
    opened: Mutex<Option<Opened>>,
    /// The lane that was last open: a superseded store stays superseded, open or closed.
    lane: Mutex<Arc<LaneOwnership>>,
}

/// A lane that is open.
struct Opened {
    lane: Arc<StoreLane>,
    /// The store's share of the account.
    account: Arc<OpenAccount>,
    /// Locked for reading by operations, so that closing can wait for them.
    operations: Arc<RwLock<()>>,
}

/// An operation in an open lane.
pub(crate) struct Operation {
    lane: Arc<StoreLane>,
    _running: OwnedRwLockReadGuard<()>,
}

impl Operation {
    /// The lane, for work that closing need not wait for.
    pub(crate) fn account(&self) -> Arc<StoreLane> {
        self.lane.clone()
    }
}

impl Deref for Operation {
    type Target = StoreLane;

    fn deref(&self) -> &StoreLane {
        &self.lane
    }
}

impl Opened {
    fn new(lane: StoreLane, account: Arc<OpenAccount>) -> Self {
        Self { lane: Arc::new(lane), account, operations: Arc::default() }
    }

    fn begin(&self) -> Option<Operation> {
        let running = self.operations.clone().try_read_owned().ok()?;
        Some(Operation { lane: self.lane.clone(), _running: running })
    }
}

impl StoreHandle {
    /// The store of this kind in an account that has just been opened.
    pub(crate) fn new<L: Lifecycle>(
        opening: &Opening,
        kind: &'static StoreKind,
        lifecycle: impl FnOnce(&Arc<LaneOwnership>) -> Arc<L>,
    ) -> (Arc<Self>, Arc<L>) {
        let (open, account) = opening.lane(kind);
        let lane = open.lane().clone();
        let lifecycle = lifecycle(&lane);
        let store = Self {
            account: opening.handle.clone(),
            kind,
            lifecycle: lifecycle.clone(),
            opened: Mutex::new(Some(Opened::new(open, account))),
            lane: Mutex::new(lane),
        };
        (Arc::new(store), lifecycle)
    }

    /// The open lane, for one operation.
    pub(crate) fn operation(&self) -> Result<Operation, Error> {
        let operation = self.opened().as_ref().and_then(Opened::begin);
        operation.ok_or_else(|| self.lane().check().err().unwrap_or(Error::StoreClosed))
    }

    fn lane(&self) -> Arc<LaneOwnership> {
        self.lane.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn opened(&self) -> MutexGuard<'_, Option<Opened>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses new writes and finishes those that have begun. Closing the last store of an account
    /// releases the account.
    pub(crate) async fn close(self: &Arc<Self>) -> Result<(), Error> {
        self.change_state(false).await
    }

    /// Reopens a store that is closed, refuses writes, or is in the middle of a sync; does nothing
    /// for any other. Never takes the account back from another owner.
    pub(crate) async fn reopen(self: &Arc<Self>) -> Result<(), Error> {
        self.change_state(true).await
    }

    /// Closes or reopens, one change at a time. A change is finished even if its caller's future is
    /// dropped or no longer polled.
    async fn change_state(self: &Arc<Self>, opens: bool) -> Result<(), Error> {
        // Closing waits for scopes to end, so within one it would wait for itself.
        if let Ok(Some(_)) = self.operation().and_then(|account| account.scope()) {
            return Err(Error::CloseInAtomically);
        }
        let store = self.clone();
        let change = tokio::spawn(async move {
            let _lifecycle = store.account.lifecycle().await;
            match opens {
                true => store.reopen_lane().await,
                false => {
                    store.close_lane().await;
                    Ok(())
                }
            }
        });
        change.await.map_err(|error| Error::of_task(&error))?
    }

    async fn close_lane(&self) {
        let Ok(account) = self.operation().map(|operation| operation.account()) else { return };
        // Includes writes whose caller is gone. Operations can still begin, because these writes
        // may need to read.
        account.finish_writes().await;
        let Some(Opened { operations, account: share, .. }) = self.opened().take() else { return };
        // With a time limit, because a future that is not polled does not end.
        let have_ended = timeout(CLOSE_LIMIT, operations.write()).await.is_ok();
        let has_failed = account.lane().has_failed();
        account.lane().close();
        self.lifecycle.closed(account.lane(), have_ended && !has_failed);
        self.account.release_share(share).await;
    }

    async fn reopen_lane(&self) -> Result<(), Error> {
        self.account.check_lost()?;
        let can_write = self.operation().is_ok_and(|account| account.can_write());
        if can_write && self.lifecycle.can_skip_reopening() {
            self.lifecycle.reopening_skipped();
            return Ok(());
        }
        self.close_lane().await;
        let (open, account) = self.account.reopen_lane(self.kind).await?;
        let lane = open.lane().clone();
        self.lifecycle.reopened(&lane);
        *self.lane.lock().unwrap_or_else(PoisonError::into_inner) = lane;
        *self.opened() = Some(Opened::new(open, account));
        Ok(())
    }
}
