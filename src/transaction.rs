//! What crosses the wire for a transaction, or for a part of one: always one round trip.
//!
//! `BEGIN`, the statements and `COMMIT` are on the wire before the first answer is awaited. `BEGIN`
//! and `COMMIT` are simple queries. `COMMIT` of a failed transaction answers without an error, so
//! every answer is looked at.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
    task::Poll,
    time::Duration,
};

use deadpool_postgres::Object;
use futures_util::{
    TryFutureExt,
    future::{BoxFuture, MaybeDone, maybe_done},
};
use tokio::time::timeout;
use tokio_postgres::Row;

use crate::{
    DatabaseError, Error,
    batch::Batch,
    connection::{Database, Param},
    statement::Sql,
};

/// How a transaction failed.
pub(crate) enum Failure {
    /// Nothing of it took effect.
    RolledBack(Error),
    /// The answer to `COMMIT` is missing, so it may or may not have taken effect.
    Unknown(Error),
}

/// What is sent together.
pub(crate) struct Exchange<'a> {
    /// Begins a transaction, in which the server waits for us this long at most.
    pub(crate) begin: Option<Duration>,
    pub(crate) batches: &'a [Batch],
    /// A read that sees the batches.
    pub(crate) query: Option<(&'static Sql, &'a [Param<'a>])>,
    pub(crate) commit: bool,
}

type Answer<'a> = BoxFuture<'a, Result<Vec<Row>, tokio_postgres::Error>>;

impl Exchange<'_> {
    /// Sends all of it and awaits the answers; returns the connection and the rows of the query. After
    /// a failure the transaction is over.
    pub(crate) async fn send(
        self,
        database: &Database,
        account_id: i64,
        connection: Held,
    ) -> Result<(Held, Vec<Row>), Failure> {
        let Some(object) = &connection.0 else {
            return Err(Failure::RolledBack(Error::StoreClosed));
        };
        let result = self.exchange(database, account_id, object).await;
        match result {
            Ok(rows) => Ok((connection, rows)),
            Err(failure) => {
                if self.commit && !failure.spoils_connection() {
                    connection.release();
                }
                Err(failure)
            }
        }
    }

    async fn exchange(
        &self,
        database: &Database,
        account_id: i64,
        connection: &Object,
    ) -> Result<Vec<Row>, Failure> {
        let batches = self.batches.iter().flat_map(|batch| batch.statements());
        let columns: Vec<_> = batches.collect();
        let mut statements: Vec<(&'static Sql, Vec<Param<'_>>)> = Vec::new();
        for (sql, columns) in &columns {
            let account = std::iter::once(&account_id as Param<'_>);
            let columns = columns.iter().map(|column| column as Param<'_>);
            statements.push((sql, account.chain(columns).collect()));
        }
        statements.extend(self.query.map(|(sql, params)| (sql, params.to_vec())));

        let mut prepared = Vec::with_capacity(statements.len());
        for (sql, _) in &statements {
            // Awaits the wire only for a statement that is new to this connection.
            let statement = database.prepare(connection, sql).await;
            prepared.push(statement.map_err(|error| Failure::RolledBack(error.into()))?);
        }

        let begin = self.begin.map(|idle| begin(database.statement_timeout(), idle));
        // A statement that cannot be encoded is never sent, and COMMIT must not pass it.
        let unsent = AtomicBool::new(false);
        let mut answers: Vec<Answer<'_>> = Vec::new();
        if let Some(begin) = &begin {
            answers.push(Box::pin(connection.batch_execute(begin).map_ok(|()| Vec::new())));
        }
        for ((sql, params), statement) in statements.iter().zip(&prepared) {
            let answer = database.run(connection, sql, statement.as_ref(), params);
            answers.push(Box::pin(answer.inspect_err(|_| unsent.store(true, Ordering::Relaxed))));
        }
        if self.commit {
            answers.push(Box::pin(async {
                let end = if unsent.load(Ordering::Relaxed) { "ROLLBACK" } else { "COMMIT" };
                connection.batch_execute(end).await.map(|()| Vec::new())
            }));
        }

        // The server's own timeout comes first; this one is for a server that does not answer.
        let limit = database.statement_timeout() * u32::try_from(answers.len()).unwrap_or(u32::MAX);
        let Ok(mut answers) = timeout(limit, in_order(answers)).await else {
            return Err(Failure::Unknown(Error::StatementTimeout));
        };
        let Some(failed) = answers.iter().position(Result::is_err) else {
            if self.commit {
                answers.pop();
            }
            return Ok(answers.pop().and_then(Result::ok).unwrap_or_default());
        };
        let committing = self.commit && failed + 1 == answers.len();
        let Err(error) = answers.swap_remove(failed) else { return Ok(Vec::new()) };
        let error = DatabaseError::from(error);
        // Without its end, a transaction ends with the connection.
        let rolled_back =
            !self.commit || (!committing && (error.is_answer() || error.is_unsendable()));
        let outcome = if rolled_back { Failure::RolledBack } else { Failure::Unknown };
        Err(outcome(error.into()))
    }
}

impl Failure {
    fn spoils_connection(&self) -> bool {
        match self {
            Self::RolledBack(Error::Database(error)) => error.spoils_connection(),
            Self::RolledBack(_) | Self::Unknown(_) => true,
        }
    }
}

/// A connection that is closed when it is dropped: back in the pool, a transaction that has not
/// ended would go on, and take in whatever is asked of it next.
pub(crate) struct Held(Option<Object>);

impl Held {
    pub(crate) fn new(connection: Object) -> Self {
        Self(Some(connection))
    }

    /// Gives the connection back to the pool: its transaction has ended.
    pub(crate) fn release(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.take().map(Object::take));
    }
}

/// The isolation level is named, because a statement that waited must see what it waited for.
fn begin(statement_timeout: Duration, idle: Duration) -> String {
    // Zero would mean no limit.
    let milliseconds = |duration: Duration| duration.as_millis().clamp(1, i32::MAX as u128);
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; \
         SET LOCAL statement_timeout = {}; SET LOCAL idle_in_transaction_session_timeout = {}",
        milliseconds(statement_timeout),
        milliseconds(idle)
    )
}

/// Polls all futures in order each time, so that their messages leave in order.
async fn in_order<T>(futures: Vec<BoxFuture<'_, T>>) -> Vec<T> {
    let mut futures: Vec<MaybeDone<_>> = futures.into_iter().map(maybe_done).collect();
    poll_fn(|context| {
        let mut pending = false;
        for future in &mut futures {
            pending |= Pin::new(future).poll(context).is_pending();
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    futures.iter_mut().filter_map(|future| Pin::new(future).take_output()).collect()
}
