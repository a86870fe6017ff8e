//! What of the own account never changes, kept for reads that need the own ids and keys.

use std::sync::{Arc, RwLock, Weak};

use matrix_sdk_crypto::olm::StaticAccountData;

use crate::{Error, account::StoreLane, account::write::atomically::Scope};

/// Versions from the account's last load or save. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct StaticAccount(Arc<RwLock<Versions>>);

#[derive(Default)]
struct Versions {
    committed: Option<StaticAccountData>,
    /// Saved in a transaction that has not committed: only its reads may see it.
    uncommitted: Option<(Weak<Scope>, StaticAccountData)>,
}

impl StaticAccount {
    fn read<T>(&self, read: impl FnOnce(&Versions) -> T) -> T {
        read(&self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn write(&self, write: impl FnOnce(&mut Versions)) {
        write(&mut self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    pub(super) fn committed(&self) -> Option<StaticAccountData> {
        self.read(|known| known.committed.clone())
    }

    pub(super) fn set(&self, data: StaticAccountData) {
        self.write(|known| known.committed = Some(data));
    }

    /// Shows it to the reads of a transaction that saves the account. The first save stays.
    pub(super) fn set_within(&self, scope: &Arc<Scope>, data: StaticAccountData) {
        let scope = Arc::downgrade(scope);
        self.write(|known| match &known.uncommitted {
            Some((of, _)) if of.ptr_eq(&scope) => {}
            _ => known.uncommitted = Some((scope, data)),
        });
    }

    /// What a transaction has saved, that reads of the account see now.
    pub(super) fn within(&self, account: &StoreLane) -> Result<Option<StaticAccountData>, Error> {
        let Some(scope) = account.overlay()? else { return Ok(None) };
        Ok(self.read(|known| {
            let (of, data) = known.uncommitted.as_ref()?;
            std::ptr::eq(of.as_ptr(), Arc::as_ptr(&scope)).then(|| data.clone())
        }))
    }

    /// What reads of the account see.
    pub(super) fn seen(&self, account: &StoreLane) -> Result<Option<StaticAccountData>, Error> {
        account.lane().check()?;
        Ok(self.within(account)?.or_else(|| self.committed()))
    }
}
