//! Detects an `OlmMachine` that continues after a sync that it did not finish.
//!
//! Such a machine holds sessions that have decrypted messages whose content is lost, and would refuse
//! these messages when the homeserver sends them again. It is detected by its loads of the account. The
//! SDK loads the account when a machine is built, before it loads the identity; then once when the
//! machine first needs it; and again only when the machine has lost it: in a sync whose future was
//! dropped or that failed, or when the future that saved the account was dropped
//! (`OlmMachine::with_store`, `StoreTransaction::account` and `commit`).

use std::sync::Arc;

use tracing::warn;

use super::{Deferred, Saves};
use crate::{Error, account::ownership::LaneOwnership};

/// The loads of the account by the current machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Loaded {
    /// None since the identity was loaded, or the machine has lost the account without harm.
    #[default]
    Nothing,
    Account,
    /// A second load, by a machine that lost the account or by one that is being built. Also set when a
    /// second load must follow.
    AccountAgain,
}

impl Deferred {
    /// Called when the store was closed while a sync may have been in progress: the machine must not end
    /// another sync.
    pub(in crate::crypto_store) fn record_interrupted_sync(&self) {
        let mut state = self.lock();
        if state.loaded == Loaded::Account {
            state.loaded = Loaded::AccountAgain;
        }
    }

    /// Drops the rows that were deferred under this lane ownership.
    pub(in crate::crypto_store) fn clear(&self, lane: &Arc<LaneOwnership>) {
        let mut state = self.lock();
        if Arc::ptr_eq(&state.lane, lane) {
            state.rows.clear();
        }
    }
}

impl Saves {
    /// Called before the account is loaded: if a sync is unfinished then, writes are refused.
    pub(in crate::crypto_store) fn refuse_unfinished_sync(&self) {
        if self.with(|state| !state.rows.is_empty()) == Some(true) {
            self.refuse_interrupted_sync();
        }
    }

    /// Called when an account was loaded.
    pub(in crate::crypto_store) fn record_account_load(&self) {
        let mut state = self.deferred.lock();
        state.loaded = match state.loaded {
            Loaded::Nothing => Loaded::Account,
            Loaded::Account | Loaded::AccountAgain => Loaded::AccountAgain,
        };
    }

    /// Called when the identity was loaded: a new machine is being built.
    pub(in crate::crypto_store) fn record_identity_load(&self) {
        self.deferred.lock().loaded = Loaded::Nothing;
    }

    /// Returns a guard to hold while the account is saved. This is the last save of an SDK transaction,
    /// and its other saves are stored. If the future is dropped now, the machine loses the account, but
    /// no sync is interrupted. (Within `atomically` nothing is stored yet, and the guard does nothing.)
    pub(in crate::crypto_store) fn guard_account_save(&self) -> AccountSaveGuard {
        AccountSaveGuard((!self.in_scope).then(|| self.deferred.clone()))
    }

    /// Fails the save that ends a sync if the machine's former sync was interrupted.
    pub(super) fn check_machine(&self) -> Result<(), Error> {
        if self.deferred.lock().loaded != Loaded::AccountAgain {
            return Ok(());
        }
        self.refuse_interrupted_sync();
        Err(Error::ReopenRequired)
    }

    fn refuse_interrupted_sync(&self) {
        warn!("a sync was interrupted: reopen the store and build a new OlmMachine");
        self.lane.fail();
        self.deferred.clear(&self.lane);
    }
}

/// Held while the account is saved. If it is dropped unfinished, the next load of the account is
/// expected.
pub(in crate::crypto_store) struct AccountSaveGuard(Option<Arc<Deferred>>);

impl AccountSaveGuard {
    /// The save returns to the caller, which keeps the account.
    pub(in crate::crypto_store) fn finish(mut self) {
        self.0 = None;
    }
}

impl Drop for AccountSaveGuard {
    fn drop(&mut self) {
        let Some(deferred) = &self.0 else { return };
        let mut state = deferred.lock();
        if state.loaded == Loaded::Account {
            state.loaded = Loaded::Nothing;
        }
    }
}
