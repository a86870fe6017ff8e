//! Whether an `OlmMachine` goes on after a sync that it did not finish.
//!
//! Such a machine holds sessions that have seen messages whose content is lost, and would refuse these
//! messages when they come again. The SDK loads the account when a machine is built, before it loads the
//! identity; then once when the machine first needs it; and again only when it has lost it, in a sync
//! whose future was dropped or that failed (`OlmMachine::with_store`, `StoreTransaction::account`).

use tracing::warn;

use super::Saves;
use crate::Error;

/// What the machine has loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Loaded {
    /// No account since the identity.
    #[default]
    Nothing,
    Account,
    /// A second time: by a machine that lost it, or by one that is being built.
    AccountAgain,
}

impl Saves {
    /// Called when the account is loaded. If a sync is in its middle, nothing may be stored any more.
    pub(in crate::crypto_store) fn see_account_loaded(&self) {
        let mut state = self.deferred.lock();
        state.loaded = match state.loaded {
            Loaded::Nothing => Loaded::Account,
            Loaded::Account | Loaded::AccountAgain => Loaded::AccountAgain,
        };
        drop(state);
        if self.with(|state| !state.rows.is_empty()) == Some(true) {
            self.refuse_torn_sync();
        }
    }

    /// Called when the identity is loaded: a new machine is being built.
    pub(in crate::crypto_store) fn see_identity_loaded(&self) {
        self.deferred.lock().loaded = Loaded::Nothing;
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
        self.deferred.clear();
    }
}
