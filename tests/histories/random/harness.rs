//! The harness: applies each step to a store and to its model, and compares the results.

use std::{pin::pin, time::Duration};

use futures_util::{future::join, poll};
use matrix_sdk_crypto::store::{CryptoStore, CryptoStoreError, types::Changes};
use matrix_sdk_postgres::PostgresCryptoStore;
use tokio::time::timeout;

use super::{
    all_reads::all_reads,
    deferral::Deferral,
    environment::Environment,
    leases::Leases,
    matrix::Configuration,
    model::Model,
    reads::run_read,
    results::{Expected, Failure, ReadResult},
    steps::{Change, Index, Read, Refusal, Step, Write},
    writes::{custom_key, run_write},
};

/// Time limit of a write that may wait for a held connection; on expiry the connection is released.
const WRITE_WAIT_LIMIT: Duration = Duration::from_secs(1);

/// `Err` describes the first difference from the model.
pub type Verdict = Result<(), String>;

pub struct Harness<'a> {
    pub environment: &'a Environment,
    pub configuration: Configuration,
    pub account: String,
    pub store: PostgresCryptoStore,
    pub model: Model,
    pub deferral: Deferral,
    leases: Leases,
    /// Number of committed rows of the application.
    pub own_rows: i64,
    /// Whether this store has loaded or saved its account.
    pub is_loaded: bool,
    /// Whether an operation failed, so that the store refuses writes.
    pub has_failed: bool,
}

impl<'a> Harness<'a> {
    pub async fn new(
        environment: &'a Environment,
        configuration: Configuration,
        account: String,
    ) -> Self {
        let store = environment.open(configuration, &account).await;
        Self {
            environment,
            configuration,
            account,
            store,
            model: Model::default(),
            deferral: Deferral::default(),
            leases: Leases::default(),
            own_rows: 0,
            is_loaded: false,
            has_failed: false,
        }
    }

    pub async fn apply(&mut self, step: &Step) -> Verdict {
        match step {
            Step::Write(write) => self.write(write).await,
            Step::Read(read) => self.read(read).await,
            Step::Lease { key, holder, keep } => {
                self.leases.take(&self.store, *key, *holder, *keep).await
            }
            Step::Close => self.close().await,
            Step::Reopen => self.reopen().await,
            Step::Restart { load } => {
                self.store.close().await.map_err(debug)?;
                self.open_another(*load).await
            }
            Step::TakeOver { load, write } => self.take_over(*load, write).await,
            Step::TakeOverDuring { steps } => self.take_over_during(steps).await,
            Step::Cut => {
                self.environment.cut().await;
                Ok(())
            }
            Step::CutDuring(write) => self.cut_during(write).await,
            Step::RefusedWrite(write, refusal) => self.refused_write(write, *refusal).await,
            Step::Race { write, read, read_first } => self.race(write, read, *read_first).await,
            Step::LateResponse { read, write } => self.late_response(read, write).await,
            Step::DroppedWrite(write) => self.dropped_write(write).await,
            Step::Atomically { steps, end } => self.atomically(steps, *end).await,
        }
    }

    async fn write(&mut self, write: &Write) -> Verdict {
        let result = run_write(&self.store, write).await.map_err(Failure::from);
        self.written(write, result)
    }

    /// Checks the result of a write that no fault affected.
    fn written(&mut self, write: &Write, result: Result<(), Failure>) -> Verdict {
        match (result, self.has_failed) {
            (Ok(()), false) => {
                self.model.apply(write);
                self.deferral.written(&self.model, write);
                self.is_loaded |= matches!(write, Write::Account(Some(_)));
                Ok(())
            }
            (Err(Failure::ReopenRequired), true) => Ok(()),
            (result, has_failed) => Err(format!("{result:?}, failed before: {has_failed}")),
        }
    }

    async fn read(&mut self, read: &Read) -> Verdict {
        let answer = run_read(&self.store, read).await;
        let expected = self.model.expect(read, self.is_loaded);
        self.loaded(read, &answer);
        self.deferral.note_read(read, &answer);
        check_result(read, &[expected], &answer)
    }

    /// Loading the account reveals an interrupted sync: from then on the store must refuse writes.
    pub fn notice_interrupted_sync(&mut self) {
        if !self.deferral.is_empty() {
            self.has_failed = true;
            self.drop_deferred();
        }
    }

    pub fn drop_deferred(&mut self) {
        self.model = self.deferral.dropped();
    }

    /// Whether the store refuses writes.
    pub async fn refuses_writes(&self) -> Result<bool, String> {
        match self.store.save_changes(Changes::default()).await.map_err(Failure::from) {
            Ok(()) => Ok(false),
            Err(Failure::ReopenRequired) => Ok(true),
            Err(error) => Err(format!("an empty save ends with {error:?}")),
        }
    }

    /// Updates the state after the account was loaded.
    fn loaded(&mut self, read: &Read, answer: &ReadResult) {
        let found = answer.as_ref().is_ok_and(|found| !found.is_empty());
        self.is_loaded |= matches!(read, Read::Account) && found;
        if matches!(read, Read::Account) {
            self.notice_interrupted_sync();
        }
    }

    /// Compares the results of all reads.
    pub async fn compare(&mut self) -> Verdict {
        for read in all_reads() {
            self.read(&read).await?;
        }
        Ok(())
    }

    async fn close(&mut self) -> Verdict {
        for _ in 0..2 {
            self.store.close().await.map_err(debug)?;
        }
        for read in [Read::Account, Read::OwnDevice, Read::Devices { user: 0 }] {
            let answer = run_read(&self.store, &read).await;
            check_result(&read, &[Expected::Refused(Failure::Closed)], &answer)?;
        }
        let write = run_write(&self.store, &Write::ResetBackup).await.map_err(Failure::from);
        let nothing = self.store.atomically(async { Ok::<_, CryptoStoreError>(()) }).await;
        if write != Err(Failure::Closed) || nothing.is_ok() {
            return Err(format!("a closed store returned {write:?}, {nothing:?}"));
        }
        self.reopen().await
    }

    pub async fn reopen(&mut self) -> Verdict {
        self.store.reopen().await.map_err(debug)?;
        self.drop_deferred();
        if self.has_failed {
            self.deferral.forget_last_seen();
        }
        self.has_failed = false;
        Ok(())
    }

    pub async fn open_another(&mut self, load: bool) -> Verdict {
        self.store = self.environment.open(self.configuration, &self.account).await;
        (self.is_loaded, self.has_failed) = (false, false);
        self.drop_deferred();
        self.deferral.forget_last_seen();
        if load { self.read(&Read::Account).await } else { Ok(()) }
    }

    async fn refused_write(&mut self, write: &Write, refusal: Refusal) -> Verdict {
        self.environment.arm(refusal).await;
        let result = run_write(&self.store, write).await.map_err(Failure::from);
        self.environment.disarm().await;
        if self.has_failed || !matches!(refusal, Refusal::Always { .. }) {
            return self.written(write, result);
        }
        let touches_rows = self.deferral.changes_rows(&self.model, write);
        match result {
            // The write has fewer rows than the first one that would be refused.
            Ok(()) if !touches_rows || refusal != (Refusal::Always { row: 1 }) => {
                self.written(write, Ok(()))
            }
            Err(Failure::Other(error)) if error.contains("23514") => self.failed().await,
            result => Err(format!("{result:?}, refused: {refusal:?}")),
        }
    }

    /// From here on the store must refuse writes, and read from the database.
    pub async fn failed(&mut self) -> Verdict {
        self.has_failed = true;
        self.drop_deferred();
        match self.store.set_custom_value("probe", vec![1]).await.map_err(Failure::from) {
            Err(Failure::ReopenRequired) => Ok(()),
            result => Err(format!("after a failure a write ends with {result:?}")),
        }
    }

    async fn cut_during(&mut self, write: &Write) -> Verdict {
        let (result, ()) = join(run_write(&self.store, write), self.environment.cut()).await;
        self.written(write, result.map_err(Failure::from))
    }

    async fn race(&mut self, write: &Write, read: &Read, read_first: bool) -> Verdict {
        if self.depends_on_order(write, read) {
            return self.write_then_read(write, read).await;
        }
        let (writing, reading) = (run_write(&self.store, write), run_read(&self.store, read));
        let (result, answer) = if read_first {
            let (answer, result) = join(reading, writing).await;
            (result, answer)
        } else {
            join(writing, reading).await
        };
        self.raced(write, read, result.map_err(Failure::from), answer).await
    }

    /// Whether the order of the two decides if a sync is interrupted.
    fn depends_on_order(&self, write: &Write, read: &Read) -> bool {
        matches!(read, Read::Account) && (self.deferral.defers(write) || !self.deferral.is_empty())
    }

    async fn write_then_read(&mut self, write: &Write, read: &Read) -> Verdict {
        self.write(write).await?;
        self.read(read).await
    }

    /// The read may return the state before a commit that overtakes it; later reads may not.
    async fn late_response(&mut self, read: &Read, write: &Write) -> Verdict {
        if self.depends_on_order(write, read) {
            return self.write_then_read(write, read).await;
        }
        let proxy = &self.environment.proxy;
        proxy.hold_next();
        let (store, wanted) = (self.store.clone(), *read);
        let mut reading = tokio::spawn(async move { run_read(&store, &wanted).await });
        let early = tokio::select! {
            answer = &mut reading => {
                // Answered from the cache: there is no response to hold.
                proxy.release();
                Some(answer)
            }
            () = proxy.has_caught() => None,
        };
        let result = {
            let mut writing = pin!(run_write(&self.store, write));
            let in_time = timeout(WRITE_WAIT_LIMIT, writing.as_mut()).await;
            proxy.release();
            // If the write waited for the held connection, it gets that now.
            match in_time {
                Ok(result) => result,
                Err(_) => writing.await,
            }
        };
        let answer = match early {
            Some(answer) => answer,
            None => reading.await,
        };
        let result = result.map_err(Failure::from);
        self.raced(write, read, result, answer.map_err(debug)?).await
    }

    async fn raced(
        &mut self,
        write: &Write,
        read: &Read,
        result: Result<(), Failure>,
        answer: ReadResult,
    ) -> Verdict {
        let (before, was_loaded) = (self.model.clone(), self.is_loaded);
        self.written(write, result)?;
        // Pages are several reads, each of which may precede or follow the write.
        if !matches!(read, Read::Pages { .. }) {
            let expected = [
                before.expect(read, was_loaded),
                before.expect(read, self.is_loaded),
                self.model.expect(read, was_loaded),
                self.model.expect(read, self.is_loaded),
            ];
            check_result(read, &expected, &answer)?;
        }
        self.loaded(read, &answer);
        // The first read must not have left stale rows in the cache.
        self.read(read).await?;
        match *read {
            Read::OlmSessions { sender } => self.save_again(write, sender).await,
            _ => Ok(()),
        }
    }

    /// After a read that may have returned the form before the write, the store takes the session for one
    /// that another owner has changed, and defers no save of it until it has stored it again.
    async fn save_again(&mut self, write: &Write, sender: Index) -> Verdict {
        let Write::Changes(changes) = write else { return Ok(()) };
        let of_sender = changes.iter().filter(
            |change| matches!(change, Change::OlmSession { sender: of, .. } if *of == sender),
        );
        let mut again: Vec<Change> = of_sender.cloned().collect();
        if again.is_empty() {
            return Ok(());
        }
        // With a token a save is never deferred.
        again.push(Change::SyncToken(0));
        self.write(&Write::Changes(again)).await
    }

    /// A write that has begun is finished, and no later one overtakes it.
    async fn dropped_write(&mut self, write: &Write) -> Verdict {
        let mut writing = Box::pin(run_write(&self.store, write));
        let begun = match poll!(&mut writing) {
            std::task::Poll::Ready(result) => result.map_err(Failure::from),
            std::task::Poll::Pending if self.has_failed => Err(Failure::ReopenRequired),
            std::task::Poll::Pending => Ok(()),
        };
        drop(writing);
        if self.deferral.defers(write) && begun.is_ok() && self.refuses_writes().await? {
            // Dropped while it was queued: the sync is interrupted.
            self.failed().await?;
        } else {
            self.written(write, begun)?;
        }
        let later = Write::SetCustom { key: 0, value: 0 };
        self.write(&later).await?;
        let key = custom_key(0);
        let value = self.store.get_custom_value(&key).await.map_err(debug)?;
        let overtaken = value.as_deref() != Some(b"value 0") && !self.has_failed;
        if overtaken { Err(format!("{key} is {value:?}")) } else { Ok(()) }
    }
}

/// Checks that the result is one of those expected.
pub fn check_result(read: &Read, expected: &[Expected], result: &ReadResult) -> Verdict {
    if expected.iter().any(|expected| expected.allows(result)) {
        return Ok(());
    }
    let mut wanted: Vec<String> = expected.iter().map(|one| format!("{one:?}")).collect();
    wanted.dedup();
    Err(format!("{read:?} returned {result:?}, expected: {}", wanted.join(" or ")))
}

pub fn debug(error: impl std::fmt::Debug) -> String {
    format!("unexpected: {error:?}")
}
