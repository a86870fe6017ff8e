//! What happens within `atomically`, and how it ends.

use matrix_sdk_crypto::store::CryptoStoreError;
use matrix_sdk_postgres::Error;
use tokio::sync::oneshot;
use tokio_postgres::types::Type;

use super::{
    answers::{Answer, Expected, Failure},
    asking::ask,
    deferral::ends_sync,
    model::Model,
    saving::save,
    steps::{End, Inner, Read, Write},
    world::{Verdict, World, judge},
};

/// How the future ended, unless it ended well.
enum Ended {
    Deliberately,
    /// An answer was wrong.
    Wrong(String),
    Failed(Failure),
}

impl From<CryptoStoreError> for Ended {
    fn from(error: CryptoStoreError) -> Self {
        match error {
            CryptoStoreError::AccountUnset => Self::Failed(Failure::AccountUnset),
            CryptoStoreError::Backend(inner) => match inner.downcast::<Error>() {
                Ok(error) => Self::Failed(Failure::from(*error)),
                Err(other) => Self::Wrong(format!("{other:?}")),
            },
            other => Self::Wrong(format!("{other:?}")),
        }
    }
}

/// What is seen within.
struct Scope {
    model: Model,
    /// The same without what is deferred.
    stored: Model,
    writes: Vec<Write>,
    is_loaded: bool,
    has_written: bool,
    has_saved_account: bool,
    own_rows: i64,
    /// The connections were cut after rows of the application's own were written, which the store
    /// does not repeat: it may fail from then on.
    may_fail: bool,
}

impl World<'_> {
    pub async fn atomically(&mut self, steps: &[Inner], end: End) -> Verdict {
        let mut scope = Scope {
            model: self.model.clone(),
            stored: self.deferral.stored().clone(),
            writes: Vec::new(),
            is_loaded: self.is_loaded,
            has_written: false,
            has_saved_account: false,
            own_rows: 0,
            may_fail: false,
        };
        let store = self.store.clone();
        let (arrived, has_arrived) = oneshot::channel();
        let work = store.atomically(async {
            for step in steps {
                self.take_within(&mut scope, step).await?;
            }
            match end {
                End::Commit => Ok(()),
                End::Error => Err(Ended::Deliberately),
                End::Dropped => {
                    let _ = arrived.send(());
                    std::future::pending().await
                }
            }
        });
        let ended = tokio::select! {
            biased;
            ended = work => ended,
            Ok(()) = has_arrived => Err(Ended::Deliberately),
        };
        self.after_scope(scope, ended).await?;
        match self.place.own_rows(&self.account).await {
            count if count == self.own_rows => Ok(()),
            count => Err(format!("{count} rows of the application's, expected {}", self.own_rows)),
        }
    }

    async fn after_scope(&mut self, scope: Scope, ended: Result<(), Ended>) -> Verdict {
        match ended {
            Err(Ended::Wrong(error)) => Err(error),
            Err(Ended::Failed(Failure::ReopenRequired)) if self.has_failed => Ok(()),
            Err(Ended::Failed(_)) if scope.may_fail => self.failed().await,
            Err(Ended::Failed(failure)) => Err(format!("atomically: {failure:?}")),
            Ok(()) if self.has_failed => Err("atomically on a store that failed".to_owned()),
            Ok(()) => {
                self.model = scope.model;
                self.deferral.committed(&self.model, &scope.writes);
                self.own_rows += scope.own_rows;
                self.is_loaded = scope.is_loaded;
                Ok(())
            }
            Err(Ended::Deliberately) if scope.model != self.model || scope.own_rows > 0 => {
                self.failed().await
            }
            // It may have failed or not: what was written was there already.
            Err(Ended::Deliberately) if scope.has_written => {
                self.has_failed = self.refuses_writes().await?;
                self.reopen().await
            }
            Err(Ended::Deliberately) => Ok(()),
        }
    }

    async fn take_within(&mut self, scope: &mut Scope, step: &Inner) -> Result<(), Ended> {
        match step {
            Inner::Write(write) => self.write_within(scope, write).await,
            Inner::Read(read) => self.read_within(scope, read).await,
            Inner::ReadOutside(read) => {
                let (store, asked) = (self.store.clone(), *read);
                let asking = tokio::spawn(async move { ask(&store, &asked).await });
                let answer = asking.await.map_err(|error| Ended::Wrong(format!("{error:?}")))?;
                let seen = match read {
                    Read::Custom(_) | Read::SyncToken => &self.model,
                    _ => &scope.model,
                };
                let expected = seen.expect(read, scope.is_loaded);
                self.judge_within(scope, read, expected, answer)
            }
            Inner::Cut => {
                self.place.cut().await;
                scope.may_fail |= scope.own_rows > 0;
                Ok(())
            }
            Inner::OwnRow => self.write_own_row(scope).await,
        }
    }

    async fn write_within(&mut self, scope: &mut Scope, write: &Write) -> Result<(), Ended> {
        scope.has_written = true;
        save(&self.store, write).await.map_err(|error| Ended::Failed(error.into()))?;
        scope.model.apply(write);
        scope.stored.apply(write);
        if ends_sync(write) {
            scope.stored = scope.model.clone();
        }
        scope.writes.push(write.clone());
        self.deferral.see(write);
        if matches!(write, Write::Account(Some(_))) {
            (scope.is_loaded, scope.has_saved_account) = (true, true);
        }
        Ok(())
    }

    /// A row in a transactional outbox.
    async fn write_own_row(&mut self, scope: &mut Scope) -> Result<(), Ended> {
        let insert = "INSERT INTO faults.own_rows VALUES ($1)";
        let work = async {
            let transaction = self.store.transaction().await?;
            transaction.query(insert, &[(&self.account, Type::TEXT)]).await
        };
        work.await.map_err(|error| Ended::Failed(error.into()))?;
        scope.own_rows += 1;
        Ok(())
    }

    async fn read_within(&mut self, scope: &mut Scope, read: &Read) -> Result<(), Ended> {
        let answer = ask(&self.store, read).await;
        let expected = scope.model.expect(read, scope.is_loaded);
        self.judge_within(scope, read, expected, answer)
    }

    fn judge_within(
        &mut self,
        scope: &mut Scope,
        read: &Read,
        expected: Expected,
        answer: Answer,
    ) -> Result<(), Ended> {
        match &answer {
            Err(failure) if scope.may_fail && !expected.allows(&answer) => {
                return Err(Ended::Failed(failure.clone()));
            }
            _ => judge(read, &[expected], &answer).map_err(Ended::Wrong)?,
        }
        self.deferral.saw(read, &answer);
        if matches!(read, Read::Account) && scope.model.has_account() {
            scope.is_loaded = true;
            // What it loaded was committed before.
            self.is_loaded |= !scope.has_saved_account;
        }
        self.torn_within(scope, read);
        Ok(())
    }

    /// What was deferred before is no more, unless the transaction has taken it along.
    fn torn_within(&mut self, scope: &mut Scope, read: &Read) {
        if matches!(read, Read::Account) && !self.deferral.is_empty() {
            self.notice_torn_sync();
            scope.model = scope.stored.clone();
        }
    }
}
