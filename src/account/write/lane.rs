//! The account's one writer lane: a task that takes writes in order, from pickling to commit, and
//! finishes what it began even when the caller is gone.
//!
//! Two saves that committed in the other order would make a restart reuse Megolm indices, and a
//! caller that drops its future must neither tear a write nor let it overtake a later one. Saves that
//! queued while a commit was on its way share the next one.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use backon::Retryable;
use futures_util::future::BoxFuture;
use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
    time::Instant,
};
use tracing::{debug, warn};

use crate::{
    DatabaseError, Error,
    account::{
        cache::UncommittedOverlay,
        ownership::{Ownership, heartbeat::Presence, random_id},
        write::{
            atomically::{Running, ScopeJob, open::OpenTransaction, run_scope},
            batch::{Batch, CHUNK_BYTES},
            exchange::{Exchange, Failure},
        },
    },
    postgres::{database::Database, transaction_connection::TransactionConnection},
};

/// What makes a batch of a save, knowing what was saved before it and is not committed yet.
pub(crate) type Stage =
    Box<dyn FnOnce(Arc<UncommittedOverlay>) -> BoxFuture<'static, Result<Batch, Error>> + Send>;
type Done = oneshot::Sender<Result<(), Error>>;

/// A save so large that it comes in parts. Each is staged on a thread of its own.
pub(crate) type Parts = Box<dyn Iterator<Item = Part> + Send>;
pub(crate) type Part = Box<dyn FnOnce() -> Result<Batch, Error> + Send>;

enum Job {
    Write(Stage, Done),
    WriteParts(Parts, Done),
    Scope(ScopeJob),
    Close(oneshot::Sender<()>),
}

/// The sending end of the lane. The task ends when the last one is dropped, or on [`Self::close`].
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    jobs: mpsc::UnboundedSender<Job>,
    /// The lane's task ended with its runtime, and a write with it.
    has_ended: Arc<AtomicBool>,
}

impl Writer {
    /// Starts the lane of one account, which stays open until everything queued is written.
    pub(crate) fn start(lane: Lane, presence: Presence) -> Self {
        let (jobs, queue) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let closing = run(Arc::new(lane), queue).await;
            presence.release().await;
            if let Some(closed) = closing {
                let _ = closed.send(());
            }
        });
        Self { jobs, has_ended: Arc::default() }
    }

    /// Whether the lane's task is there: it ends with its runtime.
    pub(crate) fn is_running(&self) -> bool {
        !self.has_ended.load(Ordering::Acquire) && !self.jobs.is_closed()
    }

    /// Queues a write at the first poll, in the order of the calls, and waits for its commit.
    pub(crate) async fn write(&self, stage: Stage) -> Result<(), Error> {
        self.queue(|answer| Job::Write(stage, answer)).await
    }

    /// The same for one that comes in parts.
    pub(crate) async fn write_parts(&self, parts: Parts) -> Result<(), Error> {
        self.queue(|answer| Job::WriteParts(parts, answer)).await
    }

    async fn queue(&self, job: impl FnOnce(Done) -> Job) -> Result<(), Error> {
        let (answer, done) = oneshot::channel();
        self.jobs.send(job(answer)).map_err(|_| Error::StoreClosed)?;
        // The lane is gone without an answer only when its runtime is shut down.
        done.await.unwrap_or_else(|_| {
            self.has_ended.store(true, Ordering::Release);
            Err(Error::StoreClosed)
        })
    }

    /// Queues a scope. In its turn the lane works off its requests, and nothing else, until it ends.
    /// On a closed lane they are dropped.
    pub(crate) fn run_scope(&self, job: ScopeJob) {
        let _ = self.jobs.send(Job::Scope(job));
    }

    /// Waits until everything queued before has been written and the account is released.
    pub(crate) async fn close(&self) {
        let (answer, done) = oneshot::channel();
        if self.jobs.send(Job::Close(answer)).is_ok() {
            let _ = done.await;
        }
    }
}

/// Writes until the lane is closed; returns what waits for that, if anything does.
async fn run(
    lane: Arc<Lane>,
    mut queue: mpsc::UnboundedReceiver<Job>,
) -> Option<oneshot::Sender<()>> {
    let mut next = None;
    loop {
        let job = match next.take() {
            Some(job) => job,
            None => match queue.recv().await {
                Some(job) => job,
                None => return None,
            },
        };
        match job {
            Job::Write(stage, done) => next = lane.write((stage, done), &mut queue).await,
            Job::WriteParts(parts, done) => {
                let _ = done.send(lane.write_parts(parts).await);
            }
            Job::Scope(job) => run_scope(lane.clone(), job).await,
            Job::Close(closed) => return Some(closed),
        }
    }
}

/// What the lane writes with.
pub(crate) struct Lane {
    pub(crate) database: Database,
    pub(crate) owner: Arc<Ownership>,
    pub(crate) running: Arc<Running>,
}

impl Lane {
    /// Writes this one, and those that wait behind it, as one transaction. Returns the job that ended
    /// the row.
    async fn write(
        &self,
        first: (Stage, Done),
        queue: &mut mpsc::UnboundedReceiver<Job>,
    ) -> Option<Job> {
        let (mut batches, mut callers, mut bytes, mut next) = (Vec::new(), Vec::new(), 0, None);
        let mut write = Some(first);
        let overlay = UncommittedOverlay::new(self.owner.cache.clone());
        while let Some((stage, done)) = write.take() {
            if let Some(before) = batches.last() {
                Batch::show(before, &overlay);
            }
            match self.stage(stage, overlay.clone()).await {
                Ok(batch) => {
                    bytes += batch.bytes();
                    batches.push(batch);
                    callers.push(done);
                }
                // The callers may be gone; what they asked for is finished all the same.
                Err(error) => drop(done.send(Err(error))),
            }
            if bytes < CHUNK_BYTES {
                match queue.try_recv() {
                    Ok(Job::Write(stage, done)) => write = Some((stage, done)),
                    other => next = other.ok(),
                }
            }
        }
        let result = self.commit(&batches.iter().collect::<Vec<_>>()).await;
        match &result {
            Ok(()) => Batch::committed(batches, &self.owner.cache),
            Err(_) => self.owner.fail(),
        }
        for done in callers {
            let _ = done.send(result.clone());
        }
        next
    }

    /// Writes the parts as one transaction: the server takes one while the next is staged.
    async fn write_parts(self: &Arc<Self>, parts: Parts) -> Result<(), Error> {
        self.owner.check_write()?;
        let write = async {
            let overlay = UncommittedOverlay::new(self.owner.cache.clone());
            let mut transaction = OpenTransaction::new(self.clone());
            let mut parts = parts.map(spawn_blocking);
            let mut next = parts.next();
            while let Some(part) = next.take() {
                transaction.push(part.await.map_err(|_| Error::StoreClosed)??, &overlay)?;
                // The last one goes with the commit.
                next = parts.next();
                if next.is_some() {
                    transaction.flush().await?;
                }
            }
            transaction.commit().await
        };
        write.await.inspect_err(|_| self.owner.fail())
    }

    pub(crate) async fn stage(
        &self,
        stage: Stage,
        overlay: Arc<UncommittedOverlay>,
    ) -> Result<Batch, Error> {
        self.owner.check_write()?;
        let batch = stage(overlay).await.inspect_err(|_| self.owner.fail())?;
        // A failure meanwhile has dropped deferred saves that this one was to take along.
        self.owner.check_write()?;
        Ok(batch)
    }

    /// Commits the batches as one transaction, unless there is nothing to write.
    pub(crate) async fn commit(&self, batches: &[&Batch]) -> Result<(), Error> {
        if batches.iter().all(|batch| batch.is_empty()) {
            return match batches.iter().any(|batch| batch.has_skipped()) {
                true => self.owner.check_current(&self.database).await,
                false => Ok(()),
            };
        }
        self.commit_as(random_id(), batches).await
    }

    /// Commits under this id; tries again when it surely had no effect and the reason may pass. A
    /// transaction that was begun elsewhere keeps its id, for it may have been committed.
    pub(crate) async fn commit_as(
        &self,
        transaction: [u8; 16],
        batches: &[&Batch],
    ) -> Result<(), Error> {
        let started = Instant::now();
        let commit = || async {
            let connection = TransactionConnection::new(self.database.connection().await?);
            let begin = Some(self.database.idle_timeout());
            let exchange = Exchange { begin, batches, commit: Some(transaction) };
            match exchange.send(&self.database, &self.owner, connection).await {
                Ok(()) => Ok(()),
                Err(failure) => self.settle(failure, transaction).await,
            }
        };
        let may_pass = |error: &Error| {
            error.is_transient() && started.elapsed() < self.database.retry_timeout()
        };
        let result = commit.retry(self.database.backoff()).when(may_pass).await;
        if let Err(error) = result {
            self.owner.explain_commit(&self.database, transaction, error).await?;
        }
        debug!(
            batches = batches.len(),
            rows = batches.iter().map(|batch| batch.rows()).sum::<usize>(),
            bytes = batches.iter().map(|batch| batch.bytes()).sum::<usize>(),
            elapsed = ?started.elapsed(),
            "committed"
        );
        Ok(())
    }

    /// What became of a failed transaction: `Ok` when it was committed all the same, an error when it
    /// was not and never will be.
    pub(crate) async fn settle(
        &self,
        failure: Failure,
        transaction: [u8; 16],
    ) -> Result<(), Error> {
        // Perhaps another server answers now: what readers were told may be older than what it has.
        self.owner.cache.clear();
        match failure {
            Failure::RolledBack(error) | Failure::Incomplete(error) => Err(error),
            Failure::Unknown(error) => {
                warn!(%error, "a commit has an unknown outcome: asking the server");
                match self.owner.resolve(&self.database, transaction).await {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(as_transient(error)),
                    Err(error) => Err(error),
                }
            }
        }
    }
}

/// A transaction that is known to have had no effect can be repeated, however it failed.
fn as_transient(error: Error) -> Error {
    match error {
        error if error.is_transient() => error,
        Error::Database(error) => error.after_unknown_outcome().into(),
        error => DatabaseError::broken(error.to_string()).into(),
    }
}
