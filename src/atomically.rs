//! One transaction over everything that a future saves.
//!
//! The caller's task holds the account's writer lane and a connection. Saves are kept in memory
//! until something is read: then they go to the server together with the read, which sees them. The
//! commit takes the rest along. Dropping the future drops the connection, which rolls back.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use backon::Retryable;
use matrix_sdk_crypto::CryptoStoreError;
use tokio::{sync::Mutex, time::timeout};
use tokio_postgres::Row;

use crate::{
    Error,
    batch::Batch,
    connection::{Param, backoff},
    statement::Sql,
    transaction::{Exchange, Failure, Held},
    writer::{LentLane, into_error, may_pass},
};

tokio::task_local! {
    static CURRENT: Arc<Scope>;
}

/// The transaction of one task.
pub(crate) struct Scope {
    state: Mutex<State>,
    lane: LentLane,
    limit: Duration,
    has_saved: AtomicBool,
}

/// Rolled back when dropped, with its connection.
#[derive(Default)]
struct State {
    connection: Option<Held>,
    /// Sent within the transaction, to be told of the commit.
    sent: Vec<Batch>,
    /// Not sent yet.
    waiting: Vec<Batch>,
    /// Something failed: the transaction is over.
    broken: bool,
}

impl Scope {
    pub(crate) fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// Whether the scope belongs to the store that shares this flag.
    pub(crate) fn is_of(&self, failed: &Arc<AtomicBool>) -> bool {
        self.lane.shares(failed)
    }

    /// Runs the future in a scope and commits it when it ends well.
    pub(crate) async fn run<T, E: From<CryptoStoreError>>(
        lane: LentLane,
        limit: Duration,
        future: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let has_saved = AtomicBool::new(false);
        let scope = Arc::new(Self { state: Mutex::default(), lane, limit, has_saved });
        let mut unfinished = Unfinished { scope: scope.clone(), committed: false };
        let result = timeout(limit, CURRENT.scope(scope.clone(), future)).await;
        let value = result.map_err(|_| CryptoStoreError::from(Error::AtomicallyTimeout))??;
        scope.commit().await.map_err(CryptoStoreError::from)?;
        unfinished.committed = true;
        Ok(value)
    }

    /// Takes a save: nothing is sent.
    pub(crate) async fn write(&self, batch: Result<Batch, Error>) -> Result<(), Error> {
        self.has_saved.store(true, Ordering::Release);
        let mut state = self.state.lock().await;
        match batch {
            Ok(batch) if !state.broken => {
                state.waiting.push(batch);
                Ok(())
            }
            Ok(_) => Err(Error::ReopenRequired),
            Err(error) => {
                state.broken = true;
                Err(error)
            }
        }
    }

    /// Reads, seeing what the scope has saved.
    pub(crate) async fn query(
        &self,
        sql: &'static Sql,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Error> {
        let mut state = self.state.lock().await;
        if state.broken {
            return Err(Error::ReopenRequired);
        }
        if state.connection.is_none() && state.waiting.iter().all(Batch::is_empty) {
            drop(state);
            // Nothing of ours to be seen yet.
            return self.lane.database.query(sql, params).await;
        }
        let waiting = std::mem::take(&mut state.waiting);
        // Broken until the answer is here: the caller may drop us in between.
        state.broken = true;
        let (connection, rows) =
            self.exchange(state.connection.take(), &waiting, Some((sql, params)), false).await?;
        state.connection = Some(connection);
        state.sent.extend(waiting);
        state.broken = false;
        Ok(rows)
    }

    async fn commit(&self) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        if state.broken {
            return Err(Error::ReopenRequired);
        }
        let waiting = std::mem::take(&mut state.waiting);
        match state.connection.take() {
            None if waiting.iter().all(Batch::is_empty) => {}
            None => self.lane.commit(&waiting).await?,
            Some(connection) => {
                let (connection, _) = self.exchange(Some(connection), &waiting, None, true).await?;
                connection.release();
            }
        }
        for batch in state.sent.drain(..).chain(waiting) {
            batch.committed();
        }
        Ok(())
    }

    /// Sends the batches, on a new connection as the begin of the transaction. Only the begin can be
    /// tried again: later, what was sent before is gone with the connection.
    async fn exchange(
        &self,
        connection: Option<Held>,
        batches: &[Batch],
        query: Option<(&'static Sql, &[Param<'_>])>,
        commit: bool,
    ) -> Result<(Held, Vec<Row>), Error> {
        let (database, account_id) = (&self.lane.database, self.lane.account_id);
        let result = match connection {
            Some(connection) => {
                let exchange = Exchange { begin: None, batches, query, commit };
                exchange.send(database, account_id, connection).await
            }
            None => {
                let begin = || async {
                    let connection = database.connection().await;
                    let connection = Held::new(connection.map_err(Failure::RolledBack)?);
                    let exchange = Exchange { begin: Some(self.limit), batches, query, commit };
                    exchange.send(database, account_id, connection).await
                };
                begin.retry(backoff()).when(may_pass).await
            }
        };
        result.map_err(into_error)
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
            self.scope.lane.fail();
        }
    }
}
