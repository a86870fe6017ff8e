//! Another store takes the account over.

use futures_util::future::join;
use matrix_sdk_crypto::store::{CryptoStore, CryptoStoreError};
use matrix_sdk_postgres::{Error, PostgresCryptoStore};

use super::{
    answers::{Expected, Failure},
    asking::ask,
    saving::save,
    steps::{End, Inner, Read, Write},
    world::{Verdict, World, debug, judge},
};

impl World<'_> {
    pub async fn take_over(&mut self, load: bool, write: &Write) -> Verdict {
        let (former, had_failed) = (self.store.clone(), self.has_failed);
        let was_loaded = self.is_loaded;
        let (before, deferral) = (self.model.clone(), self.deferral.clone());
        self.open_another(load).await?;

        // Before it knows, it may answer what was right when it was taken over, and it was just now.
        let read = Read::Devices { user: 0 };
        let superseded = Expected::Refused(Failure::Superseded);
        let right = before.expect(&read, was_loaded);
        judge(&read, &[superseded, right], &ask(&former, &read).await)?;
        let result = save(&former, write).await.map_err(Failure::from);
        let has_learnt = match &result {
            Err(Failure::Superseded) => true,
            Err(Failure::ReopenRequired) if had_failed => false,
            // There was nothing to write.
            Ok(()) if before.after(write) == before || deferral.defers(write) => false,
            _ => return Err(format!("a former owner writes: {result:?}")),
        };
        if !has_learnt && !had_failed {
            return former.close().await.map_err(debug);
        }
        is_superseded("reopen", former.reopen().await)?;
        refuses_all(&former).await
    }

    /// Ownership moves between transactions: the takeover comes before the whole or after it.
    pub async fn take_over_during(&mut self, steps: &[Inner]) -> Verdict {
        if self.has_failed {
            return Ok(());
        }
        let former = self.store.clone();
        let (before, own_rows) = (self.deferral.clone(), self.own_rows);
        let (place, configuration, account) =
            (self.place, self.configuration, self.account.clone());
        let opening = place.open(configuration, &account);
        let (verdict, opened) = join(self.atomically(steps, End::Commit), opening).await;
        self.store = opened;
        (self.is_loaded, self.has_failed) = (false, false);
        match verdict {
            Ok(()) => {}
            Err(error) if error.contains("Superseded") => {
                (self.deferral, self.own_rows) = (before, own_rows);
                refuses_all(&former).await?;
            }
            Err(error) => return Err(error),
        }
        self.drop_deferred();
        self.deferral.forget_seen();
        self.compare().await
    }
}

/// A store that knows that it was superseded says so to every call.
async fn refuses_all(former: &PostgresCryptoStore) -> Verdict {
    for read in [Read::Account, Read::OwnDevice, Read::RoomKeys, Read::UnsentRequests] {
        judge(&read, &[Expected::Refused(Failure::Superseded)], &ask(former, &read).await)?;
    }
    is_superseded("a write", save(former, &Write::ResetBackup).await)?;
    is_superseded("a lease", former.try_take_leased_lock(0, "lease", "holder").await)?;
    is_superseded("reopen", former.reopen().await)?;
    match former.atomically(async { Ok::<_, CryptoStoreError>(()) }).await {
        Err(error) if format!("{error:?}").contains("Superseded") => Ok(()),
        other => Err(format!("atomically on a superseded store: {other:?}")),
    }
}

fn is_superseded<T: std::fmt::Debug>(what: &str, result: Result<T, Error>) -> Verdict {
    match result.map_err(Failure::from) {
        Err(Failure::Superseded) => Ok(()),
        other => Err(format!("{what} on a superseded store: {other:?}")),
    }
}
