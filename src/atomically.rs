//! One transaction over everything that a future saves.
//!
//! The caller's task holds the account's writer lane and a connection. Saves are kept in memory
//! until something is read: then they go to the server together with the read, which sees them. The
//! commit takes the rest along. Dropping the future drops the connection, which rolls back.
//!
//! When the connection is lost, the saves are sent again on another: nobody else can have written in
//! between, for the lane is held and other processes are fenced. Only the application's own
//! statements cannot be repeated.

pub(crate) mod parts;
mod transaction;

use std::{
    any::Any,
    future::Future,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use backon::BackoffBuilder;
use tokio::{
    sync::Mutex,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_postgres::Row;

pub use self::transaction::Transaction;
use crate::{
    Error,
    batch::Batch,
    cache::Pending,
    connection::{Param, is_transient},
    ownership::{Ownership, random_id},
    statement::Sql,
    transaction::{Ask, Exchange, Failure, Held},
    writer::LentLane,
};

tokio::task_local! {
    static CURRENT: Arc<Scope>;
}

/// The transaction of one task.
pub(crate) struct Scope {
    state: Mutex<State>,
    lane: LentLane,
    /// What was saved, for reads that need not ask.
    pending: Arc<Pending>,
    /// Saves are taken one after the other.
    turn: Mutex<()>,
    has_saved: AtomicBool,
    /// What the store learnt from a save, to be forgotten with it.
    learnt: OnceLock<Box<dyn Any + Send + Sync>>,
}

/// Rolled back when dropped, with its connection.
#[derive(Default)]
struct State {
    connection: Option<Held>,
    /// Everything saved, in order; the first `sent` are within the open transaction.
    saved: Vec<Batch>,
    sent: usize,
    /// The application's own statements have run: the transaction cannot be repeated.
    unrepeatable: bool,
    /// Something failed: the transaction is over.
    broken: bool,
}

impl Scope {
    pub(crate) fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// Whether the scope belongs to the store with this owner.
    pub(crate) fn is_of(&self, owner: &Arc<Ownership>) -> bool {
        Arc::ptr_eq(&self.lane.owner, owner)
    }

    /// What was saved within.
    pub(crate) fn pending(&self) -> &Arc<Pending> {
        &self.pending
    }

    pub(crate) fn has_saved(&self) -> bool {
        self.has_saved.load(Ordering::Acquire)
    }

    /// Whether a connection is held, so that a read must not ask for another one.
    pub(crate) async fn has_begun(&self) -> bool {
        let state = self.state.lock().await;
        state.connection.is_some() || state.broken
    }

    /// Keeps what is known within, until the commit tells everybody. The first stays.
    pub(crate) fn learn(&self, what: impl Any + Send + Sync) {
        let _ = self.learnt.set(Box::new(what));
    }

    pub(crate) fn learnt<T: Any + Clone>(&self) -> Option<T> {
        self.learnt.get()?.downcast_ref().cloned()
    }

    /// Runs the future in a scope and commits it when it ends well; `wrap` makes its kind of error.
    pub(crate) async fn run<T, E>(
        lane: LentLane,
        limit: Duration,
        future: impl Future<Output = Result<T, E>>,
        wrap: impl Fn(Error) -> E,
    ) -> Result<T, E> {
        let has_saved = AtomicBool::new(false);
        let learnt = OnceLock::new();
        let pending = Pending::new(lane.owner.cache.clone());
        let (state, turn) = (Mutex::default(), Mutex::default());
        let scope = Arc::new(Self { state, lane, pending, turn, has_saved, learnt });
        let mut unfinished = Unfinished { scope: scope.clone(), committed: false };
        let result = timeout(limit, scope.attend(CURRENT.scope(scope.clone(), future))).await;
        let value = result.map_err(|_| wrap(Error::AtomicallyTimeout))??;
        scope.commit().await.map_err(wrap)?;
        unfinished.committed = true;
        Ok(value)
    }

    /// Polls the future, and shows the server now and then that we are still here: it would end the
    /// transaction of a client that is silent.
    async fn attend<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let mut pulse = interval(self.lane.database.idle_timeout() / 3);
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                output = &mut future => return output,
                _ = pulse.tick() => {
                    // Locked: the future is waiting for the server, which is not waiting for us.
                    if let Ok(state) = self.state.try_lock()
                        && let Some(connection) = &state.connection
                    {
                        connection.ping();
                    }
                }
            }
        }
    }

    /// Takes a save: nothing is sent.
    pub(crate) async fn write<F>(&self, stage: impl FnOnce(Arc<Pending>) -> F) -> Result<(), Error>
    where
        F: Future<Output = Result<Batch, Error>>,
    {
        self.has_saved.store(true, Ordering::Release);
        self.lane.owner.check_write()?;
        // What is staged is compared with what was staged before.
        let _turn = self.turn.lock().await;
        let batch = stage(self.pending.clone()).await;
        let mut state = self.state.lock().await;
        match batch {
            Ok(batch) if !state.broken => {
                self.pending.apply(batch.effects());
                state.saved.push(batch);
                Ok(())
            }
            Ok(_) => Err(Error::ReopenRequired),
            Err(error) => {
                state.broken = true;
                Err(error)
            }
        }
    }

    /// Sends what has been saved.
    async fn flush(&self) -> Result<(), Error> {
        self.ask(&mut *self.state.lock().await, None).await.map(drop)
    }

    /// Reads, seeing what the scope has saved.
    pub(crate) async fn query(
        &self,
        sql: &'static Sql,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Error> {
        let mut state = self.state.lock().await;
        if state.connection.is_none() && state.saved.iter().all(Batch::is_empty) && !state.broken {
            drop(state);
            // Nothing of ours to be seen yet.
            return self.lane.database.query(sql, params).await;
        }
        self.ask(&mut state, Some(Ask::Ours(sql, params))).await
    }

    /// Runs a statement of the application.
    async fn query_theirs(&self, ask: Ask<'_>) -> Result<Vec<Row>, Error> {
        let mut state = self.state.lock().await;
        self.has_saved.store(true, Ordering::Release);
        let result = self.ask(&mut state, Some(ask)).await;
        state.unrepeatable = true;
        result
    }

    /// Sends what has been saved, and a question behind it, if there is one.
    async fn ask(&self, state: &mut State, ask: Option<Ask<'_>>) -> Result<Vec<Row>, Error> {
        if state.broken {
            return Err(Error::ReopenRequired);
        }
        // Until the answer is here: the caller may drop us in between.
        state.broken = true;
        let mut pauses = self.lane.database.backoff().build();
        loop {
            let error = match self.send(state, ask, None).await {
                Ok(rows) => {
                    state.broken = false;
                    return Ok(rows);
                }
                Err(Failure::RolledBack(error) | Failure::Unknown(error)) => error,
            };
            match pauses.next() {
                Some(pause) if state.may_repeat(&error) => sleep(pause).await,
                _ => return Err(self.lane.owner.explain(&self.lane.database, error).await),
            }
        }
    }

    /// Sends what is not sent yet; on a new connection, everything, as the begin of the transaction.
    async fn send(
        &self,
        state: &mut State,
        ask: Option<Ask<'_>>,
        commit: Option<[u8; 16]>,
    ) -> Result<Vec<Row>, Failure> {
        let database = &self.lane.database;
        let (connection, begin) = match state.connection.take() {
            Some(connection) => (connection, None),
            None => {
                state.sent = 0;
                let connection = database.connection().await.map_err(Failure::RolledBack)?;
                (Held::new(connection), Some(database.idle_timeout()))
            }
        };
        let batches: Vec<&Batch> = state.saved.iter().skip(state.sent).collect();
        let exchange = Exchange { begin, batches: &batches, ask, commit };
        let (connection, rows) = exchange.send(database, &self.lane.owner, connection).await?;
        state.sent = state.saved.len();
        state.connection = Some(connection);
        Ok(rows)
    }

    async fn commit(&self) -> Result<(), Error> {
        // Also after a read that failed, for the SDK may have taken it for an undecryptable message.
        self.lane.owner.check_write()?;
        let mut state = self.state.lock().await;
        if state.broken {
            return Err(Error::ReopenRequired);
        }
        if state.connection.is_some() {
            let transaction = random_id();
            let committed = match self.send(&mut state, None, Some(transaction)).await {
                Ok(_) => {
                    if let Some(connection) = state.connection.take() {
                        connection.release();
                    }
                    Ok(())
                }
                Err(failure) => self.lane.settle(failure, transaction).await,
            };
            match committed {
                Err(error) if state.may_repeat(&error) => self.commit_anew(&state).await?,
                Err(error) => {
                    let database = &self.lane.database;
                    self.lane.owner.explain_commit(database, transaction, error).await?;
                }
                Ok(()) => {}
            }
        } else {
            self.commit_anew(&state).await?;
        }
        Batch::committed(std::mem::take(&mut state.saved), &self.lane.owner.cache);
        Ok(())
    }

    /// Commits everything as a transaction of its own.
    async fn commit_anew(&self, state: &State) -> Result<(), Error> {
        self.lane.commit(&state.saved.iter().collect::<Vec<_>>()).await
    }
}

impl State {
    fn may_repeat(&self, error: &Error) -> bool {
        !self.unrepeatable && is_transient(error)
    }
}

/// Marks the store as failed when a scope that saved something was not committed: the SDK's memory
/// is then ahead of the database.
struct Unfinished {
    scope: Arc<Scope>,
    committed: bool,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.committed && self.scope.has_saved.load(Ordering::Acquire) {
            self.scope.lane.owner.fail();
        }
    }
}
