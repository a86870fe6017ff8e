//! One transaction over everything that a future saves.
//!
//! The account's lane runs the transaction: from the first save on it works off the scope's requests,
//! until it has committed, was told to roll back, or the time is up. It keeps the time, so that a
//! future which is not polled any more holds nothing up. The caller's future, and whatever else reads
//! in the account meanwhile, only sends requests: one that is dropped harms nothing.

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
    runner::{Running, ScopeJob, run as run_scope},
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

/// How far a scope is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// The future ended well. Whether it is committed is the lane's business from here on.
    Committing,
    Committed,
    RolledBack,
    TimedOut,
}

impl Phase {
    /// Whether the scope can no longer be asked.
    fn is_over(self) -> bool {
        !matches!(self, Self::Open | Self::Committing)
    }
}

/// A lane that a scope writes in.
pub(crate) struct ScopeLane {
    owner: Arc<LaneOwnership>,
    running: Arc<Running>,
    /// What was saved in it, for reads that need not ask.
    overlay: Arc<UncommittedOverlay>,
    /// Tables of which other tasks see rows only when they are committed.
    seen_when_committed: &'static [&'static str],
    /// Something outside of the scope has failed in the lane meanwhile.
    fails_at_end: AtomicBool,
}

impl ScopeLane {
    pub(crate) fn new(
        owner: Arc<LaneOwnership>,
        running: Arc<Running>,
        seen_when_committed: &'static [&'static str],
    ) -> Self {
        let overlay = UncommittedOverlay::new(owner.cache.clone());
        let fails_at_end = AtomicBool::new(false);
        Self { owner, running, overlay, seen_when_committed, fails_at_end }
    }
}

/// The transaction of one `atomically`, as those see it who save and read in it.
pub(crate) struct Scope {
    /// In the order of their names.
    lanes: Vec<ScopeLane>,
    requests: mpsc::UnboundedSender<Request>,
    /// What starts the lanes' part, at the first request.
    start: Mutex<Option<Start>>,
    phase: watch::Sender<Phase>,
    has_saved: AtomicBool,
}

struct Start {
    /// Of the lanes. A scope that is over keeps none of them.
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

    /// What was saved within, in a lane.
    pub(crate) fn overlay(&self, owner: &Arc<LaneOwnership>) -> Option<&UncommittedOverlay> {
        self.lane(owner).map(|lane| &*lane.overlay)
    }

    /// Whether the caller must see a change of the scope's in what the statement reads.
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
            |table| self.lanes.iter().any(|lane| lane.seen_when_committed.contains(table));
        self.is_current() || !sql.tables().iter().any(is_hidden)
    }

    /// Runs the future in a scope and commits it when it ends well; `wrap` makes its kind of error.
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

    /// Takes a save in a lane: nothing is sent. One that was begun is taken even when its future is
    /// dropped.
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

    /// Reads on the scope's connection, seeing what it has saved. `None` when the scope has ended: then
    /// it is to be asked outside.
    pub(crate) async fn read(&self, query: Query) -> Option<Result<Vec<Row>, Error>> {
        let (answer, rows) = oneshot::channel();
        let _ = self.requests.send(Request::Read(query, answer));
        rows.await.ok()
    }

    /// Runs a statement of the application; also tells how many rows it returned or changed.
    async fn run_application(self: &Arc<Self>, query: Query) -> Result<(Vec<Row>, u64), Error> {
        self.has_saved.store(true, Ordering::Release);
        let answer = self.send(|answer| Request::Application(query, answer));
        trace::operation("EXECUTE", answer).await
    }

    async fn commit(self: &Arc<Self>) -> Result<(), Error> {
        // Also after a read that failed: what its caller has made of that must not be stored.
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
            // The lane is gone.
            self.end(Phase::RolledBack);
        }
        result
    }

    /// Sends a request to the lane; the first one makes the lane begin with the scope in its turn.
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

    /// Whether it can still be asked.
    fn is_over(&self) -> bool {
        self.phase().is_over()
    }

    fn end_reason(&self) -> Error {
        match self.phase() {
            // The lane is gone.
            Phase::Open | Phase::Committing => Error::StoreClosed,
            Phase::TimedOut => Error::AtomicallyTimeout,
            Phase::Committed | Phase::RolledBack => Error::NotInAtomically,
        }
    }

    /// Goes on from [`Phase::Open`], unless that happened already.
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

    /// Whether the store will have failed when the scope ends.
    pub(crate) fn fails_at_end(&self, owner: &Arc<LaneOwnership>) -> bool {
        self.lane(owner).is_some_and(|lane| lane.fails_at_end.load(Ordering::Acquire))
    }

    /// Something outside of the scope failed in a lane, so that nothing may be written there behind it.
    pub(crate) fn fail_at_end(&self, owner: &Arc<LaneOwnership>) {
        self.phase.send_if_modified(|phase| {
            match self.lane(owner).filter(|_| !phase.is_over()) {
                Some(lane) => lane.fails_at_end.store(true, Ordering::Release),
                None => owner.fail(),
            }
            false
        });
    }

    /// What was saved and not committed makes the caller's memory be ahead of the database. It is noted
    /// before the scope is over: the lane goes on at once.
    fn fail_without_commit(&self, phase: Phase) {
        let is_lost = matches!(phase, Phase::RolledBack | Phase::TimedOut)
            && self.has_saved.load(Ordering::Acquire);
        for lane in &self.lanes {
            if is_lost || (phase.is_over() && lane.fails_at_end.load(Ordering::Acquire)) {
                lane.owner.fail();
            }
        }
    }

    /// Returns when it can no longer be asked.
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
            // It is about to be committed.
            std::future::pending::<()>().await;
        }
    }
}

/// The caller's part in a scope. Dropped before the commit was asked for, it rolls back.
struct RollBackUnlessCommitted(Arc<Scope>);

impl Drop for RollBackUnlessCommitted {
    fn drop(&mut self) {
        self.0.advance(Phase::RolledBack);
        drop(self.0.start().take());
    }
}
