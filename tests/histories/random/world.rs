//! A store and its model, side by side.

use std::{pin::pin, time::Duration};

use futures_util::{future::join, poll};
use matrix_sdk_crypto::store::{CryptoStore, CryptoStoreError, types::Changes};
use matrix_sdk_postgres::PostgresCryptoStore;
use tokio::time::timeout;

use super::{
    answers::{Answer, Expected, Failure},
    asking::ask,
    deferral::Deferral,
    everything::every_read,
    leases::Leases,
    matrix::Configuration,
    model::Model,
    place::Place,
    saving::{custom_key, save},
    steps::{Read, Refusal, Step, Write},
};

/// How long a write may wait for a connection.
const PATIENCE: Duration = Duration::from_secs(1);

/// What was wrong, or nothing.
pub type Verdict = Result<(), String>;

pub struct World<'a> {
    pub place: &'a Place,
    pub configuration: Configuration,
    pub account: String,
    pub store: PostgresCryptoStore,
    pub model: Model,
    pub deferral: Deferral,
    leases: Leases,
    /// How many rows of the application's own were committed.
    pub own_rows: i64,
    /// Whether this store has loaded or saved its account, and so knows whose it is.
    pub is_loaded: bool,
    /// Whether an operation failed, so that the store accepts no more writes.
    pub has_failed: bool,
}

impl<'a> World<'a> {
    pub async fn new(place: &'a Place, configuration: Configuration, account: String) -> Self {
        let store = place.open(configuration, &account).await;
        Self {
            place,
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

    pub async fn take(&mut self, step: &Step) -> Verdict {
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
                self.place.cut().await;
                Ok(())
            }
            Step::CutDuring(write) => self.cut_during(write).await,
            Step::RefusedWrite(write, refusal) => self.refused_write(write, *refusal).await,
            Step::Race { write, read, read_first } => self.race(write, read, *read_first).await,
            Step::LateAnswer { read, write } => self.late_answer(read, write).await,
            Step::DroppedWrite(write) => self.dropped_write(write).await,
            Step::Atomically { steps, end } => self.atomically(steps, *end).await,
        }
    }

    async fn write(&mut self, write: &Write) -> Verdict {
        let result = save(&self.store, write).await.map_err(Failure::from);
        self.written(write, result)
    }

    /// Judges the result of a write that nothing hindered.
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
        let answer = ask(&self.store, read).await;
        let expected = self.model.expect(read, self.is_loaded);
        self.loaded(read, &answer);
        self.deferral.saw(read, &answer);
        judge(read, &[expected], &answer)
    }

    /// A sync that was dropped in its middle shows when the account is loaded: from then on the store
    /// must refuse writes.
    pub fn notice_torn_sync(&mut self) {
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

    /// A store that finds its account knows from then on whose it is.
    fn loaded(&mut self, read: &Read, answer: &Answer) {
        let found = answer.as_ref().is_ok_and(|found| !found.is_empty());
        self.is_loaded |= matches!(read, Read::Account) && found;
        if matches!(read, Read::Account) {
            self.notice_torn_sync();
        }
    }

    /// Asks everything there is to ask.
    pub async fn compare(&mut self) -> Verdict {
        for read in every_read() {
            self.read(&read).await?;
        }
        Ok(())
    }

    async fn close(&mut self) -> Verdict {
        for _ in 0..2 {
            self.store.close().await.map_err(debug)?;
        }
        for read in [Read::Account, Read::OwnDevice, Read::Devices { user: 0 }] {
            let answer = ask(&self.store, &read).await;
            judge(&read, &[Expected::Refused(Failure::Closed)], &answer)?;
        }
        let write = save(&self.store, &Write::ResetBackup).await.map_err(Failure::from);
        let nothing = self.store.atomically(async { Ok::<_, CryptoStoreError>(()) }).await;
        if write != Err(Failure::Closed) || nothing.is_ok() {
            return Err(format!("a closed store answers {write:?}, {nothing:?}"));
        }
        self.reopen().await
    }

    pub async fn reopen(&mut self) -> Verdict {
        self.store.reopen().await.map_err(debug)?;
        self.drop_deferred();
        if self.has_failed {
            self.deferral.forget_seen();
        }
        self.has_failed = false;
        Ok(())
    }

    pub async fn open_another(&mut self, load: bool) -> Verdict {
        self.store = self.place.open(self.configuration, &self.account).await;
        (self.is_loaded, self.has_failed) = (false, false);
        self.drop_deferred();
        self.deferral.forget_seen();
        if load { self.read(&Read::Account).await } else { Ok(()) }
    }

    async fn refused_write(&mut self, write: &Write, refusal: Refusal) -> Verdict {
        self.place.arm(refusal).await;
        let result = save(&self.store, write).await.map_err(Failure::from);
        self.place.disarm().await;
        if self.has_failed || !matches!(refusal, Refusal::Always { .. }) {
            return self.written(write, result);
        }
        let touches_rows = self.deferral.changes_rows(&self.model, write);
        match result {
            // Fewer rows than it would have taken.
            Ok(()) if !touches_rows || refusal != (Refusal::Always { row: 1 }) => {
                self.written(write, Ok(()))
            }
            Err(Failure::Other(error)) if error.contains("23514") => self.failed().await,
            result => Err(format!("{result:?}, refused: {refusal:?}")),
        }
    }

    /// From here on the store must refuse writes, and answer from the database.
    pub async fn failed(&mut self) -> Verdict {
        self.has_failed = true;
        self.drop_deferred();
        match self.store.set_custom_value("probe", vec![1]).await.map_err(Failure::from) {
            Err(Failure::ReopenRequired) => Ok(()),
            result => Err(format!("after a failure a write ends with {result:?}")),
        }
    }

    async fn cut_during(&mut self, write: &Write) -> Verdict {
        let (result, ()) = join(save(&self.store, write), self.place.cut()).await;
        self.written(write, result.map_err(Failure::from))
    }

    async fn race(&mut self, write: &Write, read: &Read, read_first: bool) -> Verdict {
        if self.tears(write, read) {
            return self.one_after_the_other(write, read).await;
        }
        let (saving, asking) = (save(&self.store, write), ask(&self.store, read));
        let (result, answer) = if read_first {
            let (answer, result) = join(asking, saving).await;
            (result, answer)
        } else {
            join(saving, asking).await
        };
        self.raced(write, read, result.map_err(Failure::from), answer).await
    }

    /// Whether it depends on which is first if a sync is torn.
    fn tears(&self, write: &Write, read: &Read) -> bool {
        matches!(read, Read::Account) && (self.deferral.defers(write) || !self.deferral.is_empty())
    }

    async fn one_after_the_other(&mut self, write: &Write, read: &Read) -> Verdict {
        self.write(write).await?;
        self.read(read).await
    }

    /// The answer to a read may be from before a commit that comes first; later ones may not.
    async fn late_answer(&mut self, read: &Read, write: &Write) -> Verdict {
        if self.tears(write, read) {
            return self.one_after_the_other(write, read).await;
        }
        let proxy = &self.place.proxy;
        proxy.hold_next();
        let (store, asked) = (self.store.clone(), *read);
        let mut asking = tokio::spawn(async move { ask(&store, &asked).await });
        let answered = tokio::select! {
            answer = &mut asking => {
                // From memory: there is nothing to hold back.
                proxy.release();
                Some(answer)
            }
            () = proxy.has_caught() => None,
        };
        let result = {
            let mut saving = pin!(save(&self.store, write));
            let in_time = timeout(PATIENCE, saving.as_mut()).await;
            proxy.release();
            // Should it have waited for the connection that was held, it has it now.
            match in_time {
                Ok(result) => result,
                Err(_) => saving.await,
            }
        };
        let answer = match answered {
            Some(answer) => answer,
            None => asking.await,
        };
        let result = result.map_err(Failure::from);
        self.raced(write, read, result, answer.map_err(debug)?).await
    }

    async fn raced(
        &mut self,
        write: &Write,
        read: &Read,
        result: Result<(), Failure>,
        answer: Answer,
    ) -> Verdict {
        let (before, was_loaded) = (self.model.clone(), self.is_loaded);
        self.written(write, result)?;
        // Pages are many reads, each from before or after.
        if !matches!(read, Read::Pages { .. }) {
            let expected = [
                before.expect(read, was_loaded),
                before.expect(read, self.is_loaded),
                self.model.expect(read, was_loaded),
                self.model.expect(read, self.is_loaded),
            ];
            judge(read, &expected, &answer)?;
        }
        self.loaded(read, &answer);
        // What the first read left behind must not be from before.
        self.read(read).await
    }

    /// A write that has begun is finished, and nothing later passes it.
    async fn dropped_write(&mut self, write: &Write) -> Verdict {
        let mut saving = Box::pin(save(&self.store, write));
        let begun = match poll!(&mut saving) {
            std::task::Poll::Ready(result) => result.map_err(Failure::from),
            std::task::Poll::Pending if self.has_failed => Err(Failure::ReopenRequired),
            std::task::Poll::Pending => Ok(()),
        };
        drop(saving);
        if self.deferral.defers(write) && begun.is_ok() && self.refuses_writes().await? {
            // It was dropped before its turn: the sync is torn.
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

/// Whether one of the expected answers was given.
pub fn judge(read: &Read, expected: &[Expected], answer: &Answer) -> Verdict {
    if expected.iter().any(|expected| expected.allows(answer)) {
        return Ok(());
    }
    let mut wanted: Vec<String> = expected.iter().map(|one| format!("{one:?}")).collect();
    wanted.dedup();
    Err(format!("{read:?} answers {answer:?}, expected: {}", wanted.join(" or ")))
}

pub fn debug(error: impl std::fmt::Debug) -> String {
    format!("unexpected: {error:?}")
}
