//! Steps in which another store takes the account over.

use futures_util::future::join;
use matrix_sdk_crypto::store::{CryptoStore, CryptoStoreError};
use matrix_sdk_postgres::{Error, PostgresCryptoStore};

use super::{
    harness::{Harness, Verdict, check_result, debug},
    reads::run_read,
    results::{Expected, Failure},
    steps::{End, Inner, Read, Write},
    writes::run_write,
};

impl Harness<'_> {
    pub async fn take_over(&mut self, load: bool, write: &Write) -> Verdict {
        let (former, had_failed) = (self.store.clone(), self.has_failed);
        let was_loaded = self.is_loaded;
        let (before, deferral) = (self.model.clone(), self.deferral.clone());
        self.open_another(load).await?;

        // Until the former owner detects the takeover, it may return the state at the time of the takeover.
        let read = Read::Devices { user: 0 };
        let superseded = Expected::Refused(Failure::Superseded);
        let right = before.expect(&read, was_loaded);
        check_result(&read, &[superseded, right], &run_read(&former, &read).await)?;
        let result = run_write(&former, write).await.map_err(Failure::from);
        let is_detected = match &result {
            Err(Failure::Superseded) => true,
            Err(Failure::ReopenRequired) if had_failed => false,
            // The save changes no row.
            Ok(()) if before.after(write) == before || deferral.defers(write) => false,
            _ => return Err(format!("a superseded owner has written: {result:?}")),
        };
        if !is_detected && !had_failed {
            return former.close().await.map_err(debug);
        }
        is_superseded("reopen", former.reopen().await)?;
        refuses_all(&former).await
    }

    /// The takeover commits before the scope's transaction or after it.
    pub async fn take_over_during(&mut self, steps: &[Inner]) -> Verdict {
        if self.has_failed {
            return Ok(());
        }
        let former = self.store.clone();
        let (before, own_rows) = (self.deferral.clone(), self.own_rows);
        let (environment, configuration, account) =
            (self.environment, self.configuration, self.account.clone());
        let opening = environment.open(configuration, &account);
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
        self.deferral.forget_last_seen();
        self.compare().await
    }
}

/// A store that has detected that it is superseded returns `Superseded` from every call.
async fn refuses_all(former: &PostgresCryptoStore) -> Verdict {
    for read in [Read::Account, Read::OwnDevice, Read::RoomKeys, Read::UnsentRequests] {
        check_result(
            &read,
            &[Expected::Refused(Failure::Superseded)],
            &run_read(former, &read).await,
        )?;
    }
    is_superseded("a write", run_write(former, &Write::ResetBackup).await)?;
    is_superseded("a lease", former.try_take_leased_lock(0, "lease", "holder").await)?;
    is_superseded("reopen", former.reopen().await)?;
    match former.atomically(async { Ok::<_, CryptoStoreError>(()) }).await {
        Err(error) if format!("{error:?}").contains("was taken over") => Ok(()),
        other => Err(format!("atomically on a superseded store: {other:?}")),
    }
}

fn is_superseded<T: std::fmt::Debug>(what: &str, result: Result<T, Error>) -> Verdict {
    match result.map_err(Failure::from) {
        Err(Failure::Superseded) => Ok(()),
        other => Err(format!("{what} on a superseded store: {other:?}")),
    }
}
