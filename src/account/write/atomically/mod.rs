//! One transaction over everything that a future saves.
//!
//! The lane's task runs the transaction: from the first save on it serves the scope's requests,
//! until the scope commits, rolls back or exceeds its time limit. The task enforces the limit, so
//! that a future which is no longer polled blocks nothing. The caller's future, and other reads in
//! the account, only send requests, so that dropping them does no harm.

pub(crate) mod request;
mod runner;
mod transaction;

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_postgres::Row;

pub use self::transaction::Transaction;
pub(crate) use self::{
    request::{Query, Request},
    runner::{RunningScope, ScopeJob, run as run_scope},
};
use crate::{
    Error,
    account::{
        cache::UncommittedOverlay,
        ownership::LaneOwnership,
        write::lane::{Stage, Writer},
    },
    postgres::{statement::Sql, trace},
};

tokio::task_local! {
    static CURRENT: Arc<Scope>;
}

/// The phase of a scope.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// The future returned `Ok`; the lane's task commits.
    Committing,
    Committed,
    RolledBack,
    TimedOut,
}

impl Phase {
    /// Whether the scope takes no more requests.
    fn is_over(self) -> bool {
        !matches!(self, Self::Open | Self::Committing)
    }
}

/// A lane that a scope writes in.
pub(crate) struct ScopeLane {
    owner: Arc<LaneOwnership>,
    running: Arc<RunningScope>,
    /// The scope's saves in the lane, for reads without a query.
    overlay: Arc<UncommittedOverlay>,
    /// Tables whose uncommitted rows are hidden from the reads of other tasks.
    hidden_until_commit: &'static [&'static str],
    /// An operation outside of the scope has failed in the lane: the lane fails when the scope
    /// ends.
    fails_at_end: AtomicBool,
}

impl ScopeLane {
    pub(crate) fn new(
        owner: Arc<LaneOwnership>,
        running: Arc<RunningScope>,
        hidden_until_commit: &'static [&'static str],
    ) -> Self {
        let overlay = UncommittedOverlay::new(owner.cache.clone());
        let fails_at_end = AtomicBool::new(false);
        Self { owner, running, overlay, hidden_until_commit, fails_at_end }
    }
}

/// The transaction of one `atomically`, for the tasks that save and read in it.
pub(crate) struct Scope {
    /// Ordered by name.
    lanes: Vec<ScopeLane>,
    requests: mpsc::UnboundedSender<Request>,
    /// Taken at the first request, which queues the scope in its lanes.
    start: Mutex<Option<Start>>,
    phase: watch::Sender<Phase>,
    has_saved: AtomicBool,
}

struct Start {
    /// Of the lanes. Dropped when the scope ends, because they keep the lanes open.
    writers: Vec<Writer>,
    requests: mpsc::UnboundedReceiver<Request>,
    limit: Duration,
}

impl Scope {
    /// The scope that the calling task is in.
    pub(crate) fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// Whether the calling task is in this scope.
    pub(crate) fn is_current(&self) -> bool {
        CURRENT.try_with(|current| std::ptr::eq(&**current, self)).unwrap_or(false)
    }

    /// Whether the scope writes in this lane.
    pub(crate) fn is_of(&self, owner: &Arc<LaneOwnership>) -> bool {
        self.lane_index(owner).is_some()
    }

    fn lane_index(&self, owner: &Arc<LaneOwnership>) -> Option<usize> {
        self.lanes.iter().position(|lane| Arc::ptr_eq(&lane.owner, owner))
    }

    /// The scope's overlay of a lane.
    pub(crate) fn overlay(&self, owner: &Arc<LaneOwnership>) -> Option<&UncommittedOverlay> {
        self.lane(owner).map(|lane| &*lane.overlay)
    }

    /// Whether the statement reads tables that the scope has changed, and the caller must see these
    /// changes.
    pub(crate) fn changes(&self, sql: &Sql) -> bool {
        self.has_written(sql) && self.shows(sql)
    }

    /// Whether one of the tables that the statement names was written to.
    pub(crate) fn has_written(&self, sql: &Sql) -> bool {
        let tables = sql.tables();
        self.lanes.iter().any(|lane| lane.overlay.has_written(&tables))
    }

    /// Whether the caller may read on the scope's connection.
    pub(crate) fn shows(&self, sql: &Sql) -> bool {
        let is_hidden =
            |table| self.lanes.iter().any(|lane| lane.hidden_until_commit.contains(table));
        self.is_current() || !sql.tables().iter().any(is_hidden)
    }

    /// Runs the future in a scope and commits it if the future returns `Ok`; `wrap` converts
    /// errors.
    pub(crate) async fn run<T, E>(
        mut lanes: Vec<(ScopeLane, Writer)>,
        limit: Duration,
        future: impl Future<Output = Result<T, E>>,
        wrap: impl Fn(Error) -> E,
    ) -> Result<T, E> {
        lanes.sort_by_key(|(lane, _)| lane.owner.name);
        let (lanes, writers): (Vec<_>, Vec<_>) = lanes.into_iter().unzip();
        lanes.iter().try_for_each(|lane| lane.owner.check_write()).map_err(&wrap)?;
        let (sender, requests) = mpsc::unbounded_channel();
        let scope = Arc::new(Self {
            lanes,
            requests: sender,
            start: Mutex::new(Some(Start { writers, requests, limit })),
            phase: watch::Sender::new(Phase::Open),
            has_saved: AtomicBool::new(false),
        });
        let _rolled_back_when_dropped = RollBackUnlessCommitted(scope.clone());
        let mut future = pin!(CURRENT.scope(scope.clone(), future));
        let value = tokio::select! {
            biased;
            () = scope.reached(|phase| phase == Phase::TimedOut) => {
                return Err(wrap(Error::AtomicallyTimeout));
            }
            output = &mut future => output?,
        };
        scope.commit().await.map_err(wrap)?;
        Ok(value)
    }

    /// Stages a save in a lane; sends nothing. The save is staged even if this future is dropped
    /// after its first poll.
    pub(crate) async fn write(
        self: &Arc<Self>,
        owner: &Arc<LaneOwnership>,
        stage: Stage,
    ) -> Result<(), Error> {
        let lane_index = self.lane_index(owner).ok_or(Error::OtherStoreInAtomically)?;
        self.has_saved.store(true, Ordering::Release);
        owner.check_write()?;
        self.send(|answer| Request::Save(lane_index, stage, answer)).await
    }

    /// Reads on the scope's connection, and sees the scope's saves. `None` when the scope has
    /// ended: the caller then reads outside of it.
    pub(crate) async fn read(&self, query: Query) -> Option<Result<Vec<Row>, Error>> {
        let (answer, rows) = oneshot::channel();
        let _ = self.requests.send(Request::Read(query, answer));
        rows.await.ok()
    }

    /// Runs a statement of the application; also returns how many rows it returned or changed.
    async fn run_application(self: &Arc<Self>, query: Query) -> Result<(Vec<Row>, u64), Error> {
        self.has_saved.store(true, Ordering::Release);
        let answer = self.send(|answer| Request::Application(query, answer));
        trace::operation("EXECUTE", answer).await
    }

    async fn commit(self: &Arc<Self>) -> Result<(), Error> {
        // Also refused after a failed read: what its caller derived from the failure must not be
        // stored.
        self.lanes.iter().try_for_each(|lane| lane.owner.check_write())?;
        if !self.advance(Phase::Committing) {
            return Err(self.end_reason());
        }
        if self.start().take().is_some() {
            // Nothing was saved.
            self.end(Phase::Committed);
            return Ok(());
        }
        let result = trace::operation("COMMIT", self.send(Request::Commit)).await;
        if !self.is_over() {
            // The lane's task has ended.
            self.end(Phase::RolledBack);
        }
        result
    }

    /// Sends a request to the lane; the first one queues the scope in its lanes.
    async fn send<T>(
        self: &Arc<Self>,
        request: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Request,
    ) -> Result<T, Error> {
        if let Some(Start { writers, requests, limit }) = self.start().take()
            && let [first, others @ ..] = writers.as_slice()
        {
            let (scope, others) = (self.clone(), others.to_vec());
            first.run_scope(ScopeJob { scope, others, requests, limit });
        }
        let (answer, result) = oneshot::channel();
        let _ = self.requests.send(request(answer));
        result.await.unwrap_or_else(|_| Err(self.end_reason()))
    }

    fn start(&self) -> MutexGuard<'_, Option<Start>> {
        self.start.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Whether the scope takes no more requests.
    fn is_over(&self) -> bool {
        self.phase().is_over()
    }

    fn end_reason(&self) -> Error {
        match self.phase() {
            // The lane's task has ended.
            Phase::Open | Phase::Committing => Error::StoreClosed,
            Phase::TimedOut => Error::AtomicallyTimeout,
            Phase::Committed | Phase::RolledBack => Error::NotInAtomically,
        }
    }

    /// Leaves [`Phase::Open`]; `false` if that has happened already.
    fn advance(&self, to: Phase) -> bool {
        self.phase.send_if_modified(|phase| {
            let is_open = *phase == Phase::Open;
            if is_open {
                self.fail_without_commit(to);
                *phase = to;
            }
            is_open
        })
    }

    fn end(&self, how: Phase) {
        self.phase.send_modify(|phase| {
            self.fail_without_commit(how);
            *phase = how;
        });
    }

    fn lane(&self, owner: &Arc<LaneOwnership>) -> Option<&ScopeLane> {
        self.lanes.iter().find(|lane| Arc::ptr_eq(&lane.owner, owner))
    }

    /// Whether the lane will fail when the scope ends.
    pub(crate) fn fails_at_end(&self, owner: &Arc<LaneOwnership>) -> bool {
        self.lane(owner).is_some_and(|lane| lane.fails_at_end.load(Ordering::Acquire))
    }

    /// Records that an operation outside of the scope failed in a lane, so that nothing may be
    /// written there after the scope.
    pub(crate) fn fail_at_end(&self, owner: &Arc<LaneOwnership>) {
        self.phase.send_if_modified(|phase| {
            match self.lane(owner).filter(|_| !phase.is_over()) {
                Some(lane) => lane.fails_at_end.store(true, Ordering::Release),
                None => owner.fail(),
            }
            false
        });
    }

    /// Fails the lanes if saves were not committed, because the caller's memory is then ahead of
    /// the database. Runs before the phase changes, because the lane takes its next job at once.
    fn fail_without_commit(&self, phase: Phase) {
        let is_lost = matches!(phase, Phase::RolledBack | Phase::TimedOut)
            && self.has_saved.load(Ordering::Acquire);
        for lane in &self.lanes {
            if is_lost || (phase.is_over() && lane.fails_at_end.load(Ordering::Acquire)) {
                lane.owner.fail();
            }
        }
    }

    /// Returns when the scope has ended.
    pub(crate) async fn ended(&self) {
        self.reached(Phase::is_over).await;
    }

    async fn reached(&self, is: impl Fn(Phase) -> bool) {
        // The sender is in `self`.
        let _ = self.phase.subscribe().wait_for(|phase| is(*phase)).await;
    }

    /// Returns when the scope has ended without a commit: by its caller, or by the time limit.
    async fn abandoned(&self, limit: Duration) {
        let rolled_back = self.reached(|phase| phase == Phase::RolledBack);
        if timeout(limit, rolled_back).await.is_err() && !self.advance(Phase::TimedOut) {
            // The commit has begun, and is no longer abandoned.
            std::future::pending::<()>().await;
        }
    }
}

/// Rolls the scope back when the caller's future is dropped before it requested the commit.
struct RollBackUnlessCommitted(Arc<Scope>);

impl Drop for RollBackUnlessCommitted {
    fn drop(&mut self) {
        self.0.advance(Phase::RolledBack);
        drop(self.0.start().take());
    }
}
