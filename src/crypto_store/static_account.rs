//! The account's ids and keys, which never change, kept for reads that need them.

use std::sync::{Arc, RwLock, Weak};

use matrix_sdk_crypto::olm::StaticAccountData;

use crate::{Error, account::StoreLane, account::write::atomically::Scope};

/// Data of the account's last load or save. Cheap to clone.
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

    /// Sets the data that reads of an open transaction see. The transaction's first save wins.
    pub(super) fn set_uncommitted(&self, scope: &Arc<Scope>, data: StaticAccountData) {
        let scope = Arc::downgrade(scope);
        self.write(|known| match &known.uncommitted {
            Some((of, _)) if of.ptr_eq(&scope) => {}
            _ => known.uncommitted = Some((scope, data)),
        });
    }

    /// The data saved by an open transaction that reads of the account see.
    pub(super) fn uncommitted(
        &self,
        account: &StoreLane,
    ) -> Result<Option<StaticAccountData>, Error> {
        let Some(scope) = account.overlay()? else { return Ok(None) };
        Ok(self.read(|known| {
            let (of, data) = known.uncommitted.as_ref()?;
            std::ptr::eq(of.as_ptr(), Arc::as_ptr(&scope)).then(|| data.clone())
        }))
    }

    /// The data that reads of the account see.
    pub(super) fn visible(&self, account: &StoreLane) -> Result<Option<StaticAccountData>, Error> {
        account.lane().check()?;
        Ok(self.uncommitted(account)?.or_else(|| self.committed()))
    }
}
