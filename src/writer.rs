//! The account's one writer lane: a task that takes writes in order, from pickling to commit, and
//! finishes what it began even when the caller is gone.
//!
//! Two saves that committed in the other order would make a restart reuse Megolm indices, and a
//! caller that drops its future must neither tear a write nor let it overtake a later one.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use backon::Retryable;
use futures_util::future::BoxFuture;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tracing::{debug, warn};

use crate::{
    Error,
    batch::Batch,
    connection::{Database, backoff, is_transient},
    transaction::{Exchange, Failure, Held},
};

type Stage = Box<dyn FnOnce() -> BoxFuture<'static, Result<Batch, Error>> + Send>;

enum Job {
    Write(Stage, oneshot::Sender<Result<(), Error>>),
    Lend(oneshot::Sender<LentLane>),
    Close(oneshot::Sender<()>),
}

/// The sending end of the lane. The task ends when the last one is dropped, or on [`Self::close`].
#[derive(Debug)]
pub(crate) struct Writer {
    jobs: mpsc::UnboundedSender<Job>,
}

impl Writer {
    /// Starts the lane of one account.
    ///
    /// `failed` is shared with the readers: once an operation has failed, nothing more is written.
    pub(crate) fn start(database: Database, account_id: i64, failed: Arc<AtomicBool>) -> Self {
        let (jobs, queue) = mpsc::unbounded_channel();
        tokio::spawn(run(Arc::new(Lane { database, account_id, failed }), queue));
        Self { jobs }
    }

    /// Queues a write at the first poll, in the order of the calls, and waits for its commit.
    pub(crate) async fn write<F>(
        &self,
        stage: impl FnOnce() -> F + Send + 'static,
    ) -> Result<(), Error>
    where
        F: Future<Output = Result<Batch, Error>> + Send + 'static,
    {
        let (answer, done) = oneshot::channel();
        let stage: Stage = Box::new(move || Box::pin(stage()));
        self.jobs.send(Job::Write(stage, answer)).map_err(|_| Error::StoreClosed)?;
        // The lane is gone without an answer only when its runtime is shut down.
        done.await.map_err(|_| Error::StoreClosed)?
    }

    /// Waits for the lane's turn and takes it over: nothing else is written while it is held.
    pub(crate) async fn lend(&self) -> Result<LentLane, Error> {
        let (answer, lent) = oneshot::channel();
        self.jobs.send(Job::Lend(answer)).map_err(|_| Error::StoreClosed)?;
        let lent = lent.await.map_err(|_| Error::StoreClosed)?;
        if lent.has_failed() {
            return Err(Error::ReopenRequired);
        }
        Ok(lent)
    }

    /// Waits until everything queued before has been written, then ends the lane.
    pub(crate) async fn close(&self) {
        let (answer, done) = oneshot::channel();
        if self.jobs.send(Job::Close(answer)).is_ok() {
            let _ = done.await;
        }
    }
}

/// The lane in the hands of one caller, until it is dropped.
pub(crate) struct LentLane {
    lane: Arc<Lane>,
    /// The lane's task waits for its end.
    _returned: oneshot::Sender<()>,
}

impl std::ops::Deref for LentLane {
    type Target = Lane;

    fn deref(&self) -> &Lane {
        &self.lane
    }
}

async fn run(lane: Arc<Lane>, mut queue: mpsc::UnboundedReceiver<Job>) {
    while let Some(job) = queue.recv().await {
        match job {
            Job::Write(stage, answer) => {
                // The caller may be gone; the write is finished all the same.
                let _ = answer.send(lane.write(stage).await);
            }
            Job::Lend(answer) => {
                let (_returned, returned) = oneshot::channel();
                if answer.send(LentLane { lane: lane.clone(), _returned }).is_ok() {
                    let _ = returned.await;
                }
            }
            Job::Close(answer) => {
                let _ = answer.send(());
                return;
            }
        }
    }
}

/// What the lane writes with.
pub(crate) struct Lane {
    pub(crate) database: Database,
    pub(crate) account_id: i64,
    /// Set by any operation whose failure was handed up: what the SDK holds in memory may be ahead
    /// of the database, and a write now could make the loss permanent.
    failed: Arc<AtomicBool>,
}

impl Lane {
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }

    /// Whether this is the lane of the store that shares the flag.
    pub(crate) fn shares(&self, failed: &Arc<AtomicBool>) -> bool {
        Arc::ptr_eq(&self.failed, failed)
    }

    async fn write(&self, stage: Stage) -> Result<(), Error> {
        if self.has_failed() {
            return Err(Error::ReopenRequired);
        }
        let result = self.stage_and_commit(stage).await;
        if result.is_err() {
            self.fail();
        }
        result
    }

    async fn stage_and_commit(&self, stage: Stage) -> Result<(), Error> {
        let batch = stage().await?;
        if !batch.is_empty() {
            self.commit(std::slice::from_ref(&batch)).await?;
        }
        batch.committed();
        Ok(())
    }

    /// Commits the batches as one transaction; tries again when it surely had no effect and the
    /// reason may pass.
    pub(crate) async fn commit(&self, batches: &[Batch]) -> Result<(), Error> {
        let started = Instant::now();
        let commit = || async {
            let connection = self.database.connection().await.map_err(Failure::RolledBack)?;
            let connection = Held::new(connection);
            let begin = Some(self.database.statement_timeout());
            let exchange = Exchange { begin, batches, query: None, commit: true };
            exchange.send(&self.database, self.account_id, connection).await
        };
        let result = commit.retry(backoff()).when(may_pass).await;
        let (connection, _) = result.map_err(into_error)?;
        connection.release();
        debug!(
            rows = batches.iter().map(Batch::rows).sum::<usize>(),
            bytes = batches.iter().map(Batch::bytes).sum::<usize>(),
            elapsed = ?started.elapsed(),
            "committed"
        );
        Ok(())
    }
}

/// Whether a transaction that surely had no effect may succeed when repeated.
pub(crate) fn may_pass(failure: &Failure) -> bool {
    match failure {
        Failure::RolledBack(error) => is_transient(error),
        Failure::Unknown(_) => false,
    }
}

pub(crate) fn into_error(failure: Failure) -> Error {
    match failure {
        Failure::RolledBack(error) => error,
        Failure::Unknown(error) => {
            warn!("the answer to a COMMIT is missing: the store must be reopened");
            error
        }
    }
}
