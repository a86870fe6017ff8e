//! Whether an `OlmMachine` goes on after a sync that it did not finish.
//!
//! Such a machine holds sessions that have seen messages whose content is lost, and would refuse these
//! messages when they come again. The SDK loads the account when a machine is built, before it loads the
//! identity; then once when the machine first needs it; and again only when it has lost it: in a sync
//! whose future was dropped or that failed, or when it saved the account and was dropped meanwhile
//! (`OlmMachine::with_store`, `StoreTransaction::account` and `commit`).

use std::sync::Arc;

use tracing::warn;

use super::{Deferred, Saves};
use crate::{Error, account::ownership::LaneOwnership};

/// What the machine has loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Loaded {
    /// No account since the identity, or none that it has lost.
    #[default]
    Nothing,
    Account,
    /// A second time, by a machine that lost it or by one that is being built; or it will have to be.
    AccountAgain,
}

impl Deferred {
    /// A sync may have been in its middle when the store was closed: the machine ends no sync any more.
    pub(in crate::crypto_store) fn record_torn_sync(&self) {
        let mut state = self.lock();
        if state.loaded == Loaded::Account {
            state.loaded = Loaded::AccountAgain;
        }
    }

    /// Drops what is deferred in this opening.
    pub(in crate::crypto_store) fn clear(&self, opening: &Arc<LaneOwnership>) {
        let mut state = self.lock();
        if Arc::ptr_eq(&state.opening, opening) {
            state.rows.clear();
        }
    }
}

impl Saves {
    /// Called before the account is loaded. If a sync is in its middle, nothing may be stored any more.
    pub(in crate::crypto_store) fn end_sync_in_its_middle(&self) {
        if self.with(|state| !state.rows.is_empty()) == Some(true) {
            self.refuse_torn_sync();
        }
    }

    /// Called when the account was loaded, and there is one.
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

    /// To be held while the account is saved: that ends a transaction of the SDK's, of which all else has
    /// been stored. Dropped meanwhile, it has torn nothing, and has lost the account. (Within `atomically`
    /// nothing has been stored.)
    pub(in crate::crypto_store) fn saving_account(&self) -> SavingAccount {
        SavingAccount((!self.within).then(|| self.deferred.clone()))
    }

    /// Refuses the save that ends a sync of a machine that has torn another.
    pub(super) fn check_machine(&self) -> Result<(), Error> {
        if self.deferred.lock().loaded != Loaded::AccountAgain {
            return Ok(());
        }
        self.refuse_torn_sync();
        Err(Error::ReopenRequired)
    }

    fn refuse_torn_sync(&self) {
        warn!("a sync was dropped in its middle: reopen the store and build a new OlmMachine");
        self.opening.fail();
        self.deferred.clear(&self.opening);
    }
}

/// The account is being saved.
pub(in crate::crypto_store) struct SavingAccount(Option<Arc<Deferred>>);

impl SavingAccount {
    /// The caller learns of it, and keeps the account.
    pub(in crate::crypto_store) fn end(mut self) {
        self.0 = None;
    }
}

impl Drop for SavingAccount {
    fn drop(&mut self) {
        let Some(deferred) = &self.0 else { return };
        let mut state = deferred.lock();
        if state.loaded == Loaded::Account {
            state.loaded = Loaded::Nothing;
        }
    }
}
