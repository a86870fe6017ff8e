//! Steps within `atomically`, and how it ends.

use matrix_sdk_crypto::store::CryptoStoreError;
use matrix_sdk_postgres::Error;
use tokio::sync::oneshot;
use tokio_postgres::types::Type;

use super::{
    deferral::ends_sync,
    harness::{Harness, Verdict, check_result},
    model::Model,
    reads::run_read,
    results::{Expected, Failure, ReadResult},
    steps::{End, Inner, Read, Write},
    writes::run_write,
};

/// How the future ended, unless it returned `Ok`.
enum Ended {
    Deliberately,
    /// A result differed from the model's.
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

/// The state as seen from within the scope.
struct Scope {
    model: Model,
    /// The same without deferred rows.
    stored: Model,
    writes: Vec<Write>,
    is_loaded: bool,
    has_written: bool,
    has_saved_account: bool,
    own_rows: i64,
    /// The connections were terminated after the application wrote rows of its own, which the store does
    /// not repeat: from then on the scope may fail.
    may_fail: bool,
}

impl Harness<'_> {
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
                self.apply_in_scope(&mut scope, step).await?;
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
        match self.environment.own_rows(&self.account).await {
            count if count == self.own_rows => Ok(()),
            count => Err(format!("{count} rows of the application, expected {}", self.own_rows)),
        }
    }

    async fn after_scope(&mut self, scope: Scope, ended: Result<(), Ended>) -> Verdict {
        match ended {
            Err(Ended::Wrong(error)) => Err(error),
            Err(Ended::Failed(Failure::ReopenRequired)) if self.has_failed => Ok(()),
            Err(Ended::Failed(_)) if scope.may_fail => self.failed().await,
            Err(Ended::Failed(failure)) => Err(format!("atomically: {failure:?}")),
            Ok(()) if self.has_failed => {
                Err("atomically succeeded on a store that requires a reopening".to_owned())
            }
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
            // The store may accept writes or not: the scope wrote only what was stored already.
            Err(Ended::Deliberately) if scope.has_written => {
                self.has_failed = self.refuses_writes().await?;
                self.reopen().await
            }
            Err(Ended::Deliberately) => Ok(()),
        }
    }

    async fn apply_in_scope(&mut self, scope: &mut Scope, step: &Inner) -> Result<(), Ended> {
        match step {
            Inner::Write(write) => self.write_in_scope(scope, write).await,
            Inner::Read(read) => self.read_in_scope(scope, read).await,
            Inner::ReadOutside(read) => {
                let (store, wanted) = (self.store.clone(), *read);
                let reading = tokio::spawn(async move { run_read(&store, &wanted).await });
                let answer = reading.await.map_err(|error| Ended::Wrong(format!("{error:?}")))?;
                let seen = match read {
                    Read::Custom(_) | Read::SyncToken => &self.model,
                    _ => &scope.model,
                };
                let expected = seen.expect(read, scope.is_loaded);
                self.check_in_scope(scope, read, expected, answer)
            }
            Inner::Cut => {
                self.environment.cut().await;
                scope.may_fail |= scope.own_rows > 0;
                Ok(())
            }
            Inner::OwnRow => self.write_own_row(scope).await,
        }
    }

    async fn write_in_scope(&mut self, scope: &mut Scope, write: &Write) -> Result<(), Ended> {
        scope.has_written = true;
        run_write(&self.store, write).await.map_err(|error| Ended::Failed(error.into()))?;
        scope.model.apply(write);
        scope.stored.apply(write);
        if ends_sync(write) {
            scope.stored = scope.model.clone();
        }
        scope.writes.push(write.clone());
        self.deferral.note_write(write);
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

    async fn read_in_scope(&mut self, scope: &mut Scope, read: &Read) -> Result<(), Ended> {
        let answer = run_read(&self.store, read).await;
        let expected = scope.model.expect(read, scope.is_loaded);
        self.check_in_scope(scope, read, expected, answer)
    }

    fn check_in_scope(
        &mut self,
        scope: &mut Scope,
        read: &Read,
        expected: Expected,
        answer: ReadResult,
    ) -> Result<(), Ended> {
        match &answer {
            Err(failure) if scope.may_fail && !expected.allows(&answer) => {
                return Err(Ended::Failed(failure.clone()));
            }
            _ => check_result(read, &[expected], &answer).map_err(Ended::Wrong)?,
        }
        self.deferral.note_read(read, &answer);
        if matches!(read, Read::Account) && scope.model.has_account() {
            scope.is_loaded = true;
            // The account that was loaded had been committed before the scope.
            self.is_loaded |= !scope.has_saved_account;
        }
        self.notice_interrupted_sync_in_scope(scope, read);
        Ok(())
    }

    /// Rows deferred before the scope are dropped, unless the scope has stored them.
    fn notice_interrupted_sync_in_scope(&mut self, scope: &mut Scope, read: &Read) {
        if matches!(read, Read::Account) && !self.deferral.is_empty() {
            self.notice_interrupted_sync();
            scope.model = scope.stored.clone();
        }
    }
}
