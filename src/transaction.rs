//! What crosses the wire for a transaction, or for a part of one: always one round trip.
//!
//! `BEGIN`, the statements and `COMMIT` are on the wire before the first answer is awaited. `BEGIN`
//! and `COMMIT` are simple queries. `COMMIT` of a failed transaction answers without an error, so
//! every answer is looked at.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::atomic::{AtomicBool, Ordering},
    task::Poll,
    time::Duration,
};

use deadpool_postgres::Object;
use futures_util::{
    FutureExt, TryFutureExt,
    future::{BoxFuture, MaybeDone, maybe_done},
};
use tokio::time::timeout;
use tokio_postgres::Row;

use crate::{
    DatabaseError, Error,
    batch::{Batch, CHUNK_BYTES},
    connection::{Database, Param},
    connector,
    ownership::{COUNT_COMMIT, GUARD, Ownership},
    statement::Sql,
};

/// From this size on a message may take long on its way.
const LARGE_BYTES: usize = 64 << 10;

/// What a link must carry at least, for large writes to pass.
const SLOW_LINK_BYTES_A_SECOND: usize = 128 << 10;

/// How a transaction failed.
pub(crate) enum Failure {
    /// Nothing of it took effect.
    RolledBack(Error),
    /// The answer to `COMMIT` is missing, so it may or may not have taken effect.
    Unknown(Error),
}

/// What is sent together.
pub(crate) struct Exchange<'a> {
    /// Begins a guarded transaction, in which the server waits for us this long at most.
    pub(crate) begin: Option<Duration>,
    pub(crate) batches: &'a [&'a Batch],
    /// Commits, under this id.
    pub(crate) commit: Option<[u8; 16]>,
}

/// A message on its way, with the rows that answer it.
pub(crate) type Answer<'a> = BoxFuture<'a, Result<Vec<Row>, tokio_postgres::Error>>;

impl Exchange<'_> {
    /// Sends all of it and awaits the answers. The connection goes back to the pool when the
    /// transaction has ended on it.
    pub(crate) async fn send(
        self,
        database: &Database,
        owner: &Ownership,
        connection: Held,
    ) -> Result<(), Failure> {
        let Some(object) = &connection.0 else {
            return Err(Failure::RolledBack(Error::StoreClosed));
        };
        let result = self.exchange(database, owner, object).await;
        if self.commit.is_some() && !result.as_ref().is_err_and(Failure::spoils_connection) {
            connection.release();
        }
        result
    }

    /// Sends all of it at the first poll, and awaits the answers. After a failure the transaction is
    /// over.
    pub(crate) async fn exchange(
        &self,
        database: &Database,
        owner: &Ownership,
        connection: &Object,
    ) -> Result<(), Failure> {
        let account_id = owner.account_id;
        let (token, seen) = (owner.token(), owner.seen());
        let (token, transaction) = (token.as_slice(), self.commit.unwrap_or_default());
        let (guard, count): ([Param<'_>; 3], [Param<'_>; 2]) =
            ([&account_id, &token, &seen], [&account_id, &transaction.as_slice()]);
        let columns: Vec<_> = self.batches.iter().flat_map(|batch| batch.statements()).collect();

        let mut statements: Vec<(&'static Sql, Vec<Param<'_>>)> = Vec::new();
        if self.begin.is_some() {
            statements.push((&GUARD, guard.to_vec()));
        }
        for (sql, columns) in &columns {
            let account = std::iter::once(&account_id as Param<'_>);
            let columns = columns.iter().map(|column| column as Param<'_>);
            statements.push((sql, account.chain(columns).collect()));
        }
        if self.commit.is_some() {
            statements.push((&COUNT_COMMIT, count.to_vec()));
        }
        let has_names = database.has_names(connection);
        let mut prepared = Vec::with_capacity(statements.len());
        for (sql, _) in &statements {
            // Before anything is sent: who awaited the wire in between would let COMMIT overtake him.
            let statement = database.prepare(connection, has_names, sql).await;
            prepared.push(statement.map_err(|error| Failure::RolledBack(error.into()))?);
        }

        let begin = self.begin.map(|idle| begin(database.statement_timeout(), idle));
        let size = self.batches.iter().map(|batch| batch.bytes()).sum::<usize>();
        let large = (size > LARGE_BYTES).then(|| allow(database.idle_timeout(), size));
        // A statement that cannot be encoded is never sent, and COMMIT must not pass it.
        let unsent = AtomicBool::new(false);
        let mut answers: Vec<Answer<'_>> = Vec::new();
        if let Some(begin) = &begin {
            answers.push(Box::pin(connection.batch_execute(begin).map_ok(|()| Vec::new())));
        }
        if let Some(large) = &large {
            answers.push(Box::pin(connection.batch_execute(large).map_ok(|()| Vec::new())));
        }
        for ((sql, params), statement) in statements.iter().zip(&prepared) {
            let answer = database.run(connection, sql, statement.as_ref(), params);
            answers.push(Box::pin(answer.inspect_err(|_| unsent.store(true, Ordering::Relaxed))));
        }
        if self.commit.is_some() {
            answers.push(Box::pin(async {
                let end = if unsent.load(Ordering::Relaxed) { "ROLLBACK" } else { "COMMIT" };
                connection.batch_execute(end).await.map(|()| Vec::new())
            }));
        }

        let doubts = connector::doubtful_commits();
        let answers = timeout(database.time_for(self.parts()), in_order(answers));
        let Ok(answers) = database.while_preparing(connection, has_names, answers).await else {
            return Err(match self.commit {
                Some(_) => Failure::Unknown(Error::StatementTimeout),
                None => Failure::RolledBack(Error::StatementTimeout),
            });
        };
        let rows = self.look_at(answers)?;
        if self.commit.is_some() {
            count_commit(owner, rows.last())?;
            if connector::doubtful_commits() != doubts {
                let doubt = "a COMMIT did not wait for its synchronous standby";
                return Err(Failure::Unknown(DatabaseError::broken(doubt).into()));
            }
        }
        Ok(())
    }

    /// How many statements of the usual size it is.
    pub(crate) fn parts(&self) -> u32 {
        let size = self.batches.iter().map(|batch| batch.bytes()).sum::<usize>();
        u32::try_from(size / CHUNK_BYTES + 1).unwrap_or(u32::MAX)
    }

    /// The rows of the last answer but COMMIT's, or the first failure.
    fn look_at(
        &self,
        mut answers: Vec<Result<Vec<Row>, tokio_postgres::Error>>,
    ) -> Result<Vec<Row>, Failure> {
        let Some(failed) = answers.iter().position(Result::is_err) else {
            if self.commit.is_some() {
                answers.pop();
            }
            return Ok(answers.pop().and_then(Result::ok).unwrap_or_default());
        };
        let committing = self.commit.is_some() && failed + 1 == answers.len();
        let Err(error) = answers.swap_remove(failed) else { return Ok(Vec::new()) };
        let error = DatabaseError::from(error);
        // Without its end, a transaction ends with the connection.
        let rolled_back =
            self.commit.is_none() || (!committing && (error.is_answer() || error.is_unsendable()));
        let outcome = if rolled_back { Failure::RolledBack } else { Failure::Unknown };
        Err(outcome(error.into()))
    }
}

/// Looks at the row of [`COUNT_COMMIT`]: without it the statements ran outside of a transaction, and
/// did nothing.
fn count_commit(owner: &Ownership, row: Option<&Row>) -> Result<(), Failure> {
    let lost = || Failure::RolledBack(DatabaseError::broken("a BEGIN was lost").into());
    let row = row.ok_or_else(lost)?;
    let unreadable = |error: tokio_postgres::Error| Failure::Unknown(error.into());
    owner.see(row.try_get(0).map_err(unreadable)?);
    owner.cache.see_maintenance(row.try_get(1).map_err(unreadable)?);
    Ok(())
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

    pub(crate) fn get(&self) -> Result<&Object, Error> {
        self.0.as_ref().ok_or(Error::StoreClosed)
    }

    /// Sends a statement whose answer nobody awaits, so that the server knows we are here.
    pub(crate) fn ping(&self) {
        if let Some(connection) = &self.0 {
            // Sent at the first poll; an answer that nobody takes is passed over.
            let _ = pin!(connection.simple_query("")).as_mut().now_or_never();
        }
    }

    /// Gives the connection back to the pool: no transaction is open on it.
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

/// To the server a transaction is idle while a message is still on its way, so a large one gets the
/// time that a slow link takes for a chunk.
fn allow(idle: Duration, bytes: usize) -> String {
    let seconds = bytes.min(CHUNK_BYTES) / SLOW_LINK_BYTES_A_SECOND;
    let idle = idle + Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX) + 1);
    format!("SET LOCAL idle_in_transaction_session_timeout = {}", idle.as_millis())
}

/// Polls all futures in order each time, so that their messages leave in order.
pub(crate) async fn in_order<T>(futures: Vec<BoxFuture<'_, T>>) -> Vec<T> {
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
