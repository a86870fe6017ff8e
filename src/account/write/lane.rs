//! The writer lane of a store: a task that takes writes in order, from staging to commit, and
//! finishes a write that has begun even if its caller is gone.
//!
//! Saves that are committed in another order than they were requested would overwrite newer rows
//! with older ones, and a caller that drops its future must neither tear a write nor reorder it.
//! Saves that were queued during a commit share the next one (group commit).

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use futures_util::future::BoxFuture;
use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
};

use crate::{
    Error,
    account::{
        cache::UncommittedOverlay,
        ownership::{LaneOwnership, heartbeat::Presence},
        write::{
            atomically::{ScopeJob, run_scope},
            batch::{Batch, CHUNK_BYTES},
            open_transaction::OpenTransaction,
        },
    },
    postgres::{database::Database, trace},
};

/// Stages a save as a batch. The overlay has the earlier saves that are not committed yet.
pub(crate) type Stage =
    Box<dyn FnOnce(Arc<UncommittedOverlay>) -> BoxFuture<'static, Result<Batch, Error>> + Send>;
type Done = oneshot::Sender<Result<(), Error>>;

/// A large save in parts, each staged on a blocking thread.
pub(crate) type Parts = Box<dyn Iterator<Item = Part> + Send>;
pub(crate) type Part = Box<dyn FnOnce() -> Result<Batch, Error> + Send>;

enum Job {
    Write(Stage, Done),
    WriteParts(Parts, Done),
    Scope(ScopeJob),
    Reserve(oneshot::Sender<LaneReservation>),
    Close(oneshot::Sender<()>),
}

/// A reserved lane: it takes no other job until this is dropped.
pub(crate) struct LaneReservation {
    _held: oneshot::Sender<()>,
}

/// The sending end of the lane. The task ends when the last one is dropped, or on [`Self::close`].
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    jobs: mpsc::UnboundedSender<Job>,
    owner: Arc<LaneOwnership>,
    /// Set when the lane ends because it was closed.
    is_closing: Arc<AtomicBool>,
}

impl Writer {
    /// Starts a lane, which stays open until everything queued is written.
    pub(crate) fn start(lane: Lane, presence: Arc<Presence>) -> Self {
        let (jobs, queue) = mpsc::unbounded_channel();
        let (owner, is_closing) = (lane.owner.clone(), Arc::<AtomicBool>::default());
        let is_closed = is_closing.clone();
        tokio::spawn(async move {
            let closing = run(Arc::new(lane), queue, &is_closed).await;
            // The account is released only after its last lane has ended.
            drop(presence);
            if let Some(closed) = closing {
                let _ = closed.send(());
            }
        });
        Self { jobs, owner, is_closing }
    }

    /// Whether the lane's task is running: it ends with its runtime.
    pub(crate) fn is_running(&self) -> bool {
        !self.jobs.is_closed()
    }

    /// Queues a write at the first poll, in the order of the calls, and waits for its commit.
    pub(crate) async fn write(&self, stage: Stage) -> Result<(), Error> {
        self.queue(|answer| Job::Write(stage, answer)).await
    }

    /// The same for a save in parts.
    pub(crate) async fn write_parts(&self, parts: Parts) -> Result<(), Error> {
        self.queue(|answer| Job::WriteParts(parts, answer)).await
    }

    async fn queue(&self, job: impl FnOnce(Done) -> Job) -> Result<(), Error> {
        let (answer, done) = oneshot::channel();
        self.jobs.send(job(answer)).map_err(|_| Error::StoreClosed)?;
        let committed = async {
            done.await.unwrap_or_else(|_| {
                // Otherwise the runtime was shut down, perhaps in the middle of the write.
                if !self.is_closing.load(Ordering::Acquire) {
                    self.owner.fail();
                }
                Err(Error::StoreClosed)
            })
        };
        trace::operation("COMMIT", committed).await
    }

    /// Queues a scope. When it is next, the lane serves only its requests until the scope ends. On
    /// a closed lane the requests are dropped.
    pub(crate) fn run_scope(&self, job: ScopeJob) {
        let _ = self.jobs.send(Job::Scope(job));
    }

    /// Queues a reservation for the scope of another lane, and waits for it; `None` when the lane
    /// is closed.
    pub(crate) async fn reserve(&self) -> Option<LaneReservation> {
        let (answer, reservation) = oneshot::channel();
        self.jobs.send(Job::Reserve(answer)).ok()?;
        reservation.await.ok()
    }

    /// Waits until everything queued before has been written.
    pub(crate) async fn close(&self) {
        let (answer, done) = oneshot::channel();
        if self.jobs.send(Job::Close(answer)).is_ok() {
            let _ = done.await;
        }
    }
}

/// Runs jobs until the lane is closed; returns the sender that reports this, if any. Each job is boxed, so
/// that an idle lane does not hold the kilobytes that a write needs.
async fn run(
    lane: Arc<Lane>,
    mut queue: mpsc::UnboundedReceiver<Job>,
    is_closing: &AtomicBool,
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
            Job::Write(stage, done) => {
                next = Box::pin(lane.write((stage, done), &mut queue)).await;
            }
            Job::WriteParts(parts, done) => {
                let _ = done.send(Box::pin(lane.write_parts(parts)).await);
            }
            Job::Scope(job) => Box::pin(run_scope(&lane.database, job)).await,
            Job::Reserve(answer) => {
                let (held, dropped) = oneshot::channel();
                if answer.send(LaneReservation { _held: held }).is_ok() {
                    let _ = dropped.await;
                }
            }
            Job::Close(closed) => {
                is_closing.store(true, Ordering::Release);
                return Some(closed);
            }
        }
    }
}

/// The database and the ownership of a lane.
pub(crate) struct Lane {
    pub(crate) database: Database,
    pub(crate) owner: Arc<LaneOwnership>,
}

impl Lane {
    fn transaction(&self) -> OpenTransaction {
        OpenTransaction::new(self.database.clone(), vec![self.owner.clone()])
    }

    /// Group commit: writes this save and those queued behind it as one transaction. Returns the
    /// next job, which cannot join.
    async fn write(
        &self,
        first: (Stage, Done),
        queue: &mut mpsc::UnboundedReceiver<Job>,
    ) -> Option<Job> {
        let (mut callers, mut next, mut write) = (Vec::new(), None, Some(first));
        let overlay = UncommittedOverlay::new(self.owner.cache.clone());
        let mut transaction = self.transaction();
        while let Some((stage, done)) = write.take() {
            // Only later saves of the group need the overlay, and most commits have a single save.
            transaction.apply_last_to(&overlay);
            let staged = self::stage(&self.owner, stage, overlay.clone()).await;
            match staged.and_then(|batch| transaction.stage(0, batch)) {
                Ok(()) => callers.push(done),
                // The caller may be gone.
                Err(error) => drop(done.send(Err(error))),
            }
            if transaction.bytes() < CHUNK_BYTES {
                match queue.try_recv() {
                    Ok(Job::Write(stage, done)) => write = Some((stage, done)),
                    other => next = other.ok(),
                }
            }
        }
        if callers.is_empty() {
            return next;
        }
        let result = transaction.commit().await;
        if result.is_err() {
            self.owner.fail();
        }
        for done in callers {
            let _ = done.send(result.clone());
        }
        next
    }

    /// Writes the parts as one transaction: each is sent while the next is staged.
    async fn write_parts(&self, parts: Parts) -> Result<(), Error> {
        self.owner.check_write()?;
        let write = async {
            let mut transaction = self.transaction();
            let mut parts = parts.map(spawn_blocking);
            let mut next = parts.next();
            while let Some(part) = next.take() {
                let batch = part.await.map_err(|error| Error::of_task(&error))??;
                transaction.stage(0, batch)?;
                // The last one is sent with the commit.
                next = parts.next();
                if next.is_some() {
                    transaction.flush().await?;
                }
            }
            transaction.commit().await
        };
        write.await.inspect_err(|_| self.owner.fail())
    }
}

/// Stages a save in its lane.
pub(crate) async fn stage(
    owner: &LaneOwnership,
    stage: Stage,
    overlay: Arc<UncommittedOverlay>,
) -> Result<Batch, Error> {
    owner.check_write()?;
    let batch = stage(overlay).await.inspect_err(|_| owner.fail())?;
    // A failure meanwhile has dropped deferred saves that this one was to include.
    owner.check_write()?;
    Ok(batch)
}
