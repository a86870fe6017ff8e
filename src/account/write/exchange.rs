//! What crosses the wire for a transaction, or for a part of one: always one round trip.
//!
//! `BEGIN`, the statements and `COMMIT` are on the wire before the first answer is awaited. `BEGIN`
//! and `COMMIT` are simple queries. `COMMIT` of a failed transaction answers without an error, so
//! every answer is looked at.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
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
    account::{
        ownership::{COUNT_COMMIT, GUARD, LaneOwnership, Position},
        write::batch::{Batch, CHUNK_BYTES},
    },
    error::is_in_failed_transaction,
    postgres::{
        database::{Database, Param},
        statement::Sql,
        transaction_connection::TransactionConnection,
    },
};

/// From this size on a message may take long on its way.
const LARGE_BYTES: usize = 64 << 10;

/// What a link must carry at least, for large writes to pass.
const SLOW_LINK_BYTES_A_SECOND: usize = 128 << 10;

/// How a transaction failed.
pub(crate) enum Failure {
    /// Nothing of it took effect.
    RolledBack(Error),
    /// It may or may not have taken effect, or may still do so: only the server knows.
    Unknown(Error),
    /// It took effect, but not as a whole.
    Incomplete(Error),
}

/// What is sent together.
pub(crate) struct Exchange<'a> {
    /// Those that the transaction writes in, in the order of their names.
    pub(crate) lanes: &'a [Arc<LaneOwnership>],
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
        connection: TransactionConnection,
    ) -> Result<(), Failure> {
        let object = connection.get().map_err(Failure::RolledBack)?;
        let result = self.exchange(database, object).await;
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
        connection: &Object,
    ) -> Result<(), Failure> {
        let Some(owner) = self.lanes.first().map(|lane| &lane.owner) else { return Ok(()) };
        let (account_id, token) = (owner.account_id, owner.token());
        let (token, transaction) = (token.as_slice(), self.commit.unwrap_or_default());
        let transaction = transaction.as_slice();
        let names: Vec<&str> = self.lanes.iter().map(|lane| lane.name).collect();
        let seen: Vec<Position> = self.lanes.iter().map(|lane| lane.position()).collect();
        let commits: Vec<i64> = seen.iter().map(|position| position.commits).collect();
        let last: Vec<Option<&[u8]>> = seen.iter().map(Position::last).collect();
        let (guard, count): ([Param<'_>; 5], [Param<'_>; 5]) = (
            [&account_id, &token, &names, &commits, &last],
            [&account_id, &names, &commits, &last, &transaction],
        );
        let writes: Vec<_> = self.batches.iter().flat_map(|batch| batch.statements()).collect();

        // Of each the rows that it must report, for those that only write.
        let mut statements: Vec<(&'static Sql, Vec<Param<'_>>, Option<u64>)> = Vec::new();
        if self.begin.is_some() {
            statements.push((&GUARD, guard.to_vec(), None));
        }
        for write in &writes {
            let account = std::iter::once(&account_id as Param<'_>);
            let columns = write.columns.iter().map(|column| column as Param<'_>);
            statements.push((write.sql, account.chain(columns).collect(), Some(write.min_rows)));
        }
        if self.commit.is_some() {
            statements.push((&COUNT_COMMIT, count.to_vec(), None));
        }
        let has_names = database.has_names(connection);
        let mut prepared = Vec::with_capacity(statements.len());
        for (sql, ..) in &statements {
            // Before anything is sent: who awaited the wire in between would let COMMIT overtake him.
            let statement = database.prepare(connection, has_names, sql).await;
            prepared.push(statement.map_err(|error| Failure::RolledBack(error.into()))?);
        }

        let begin = self.begin.map(|idle| database.begin(idle));
        let size = self.batches.iter().map(|batch| batch.bytes()).sum::<usize>();
        let large = (size > LARGE_BYTES).then(|| allow(database.idle_timeout(), size));
        // What fails at its first poll was never sent, and COMMIT must not follow it.
        let (unsent, commit_sent) = (AtomicBool::new(false), AtomicBool::new(false));
        // The first write that reported too few rows.
        let incomplete = OnceLock::new();
        let note_unsent = |_: &tokio_postgres::Error| unsent.store(true, Ordering::Relaxed);
        let mut answers: Vec<Answer<'_>> = Vec::new();
        for text in begin.iter().chain(&large) {
            let answer = connection.batch_execute(text).map_ok(|()| Vec::new());
            answers.push(Box::pin(answer.inspect_err(note_unsent)));
        }
        for ((sql, params, min_rows), statement) in statements.iter().zip(&prepared) {
            let statement = statement.as_ref();
            answers.push(match min_rows {
                None => {
                    let answer = database.run(connection, sql, statement, params);
                    Box::pin(answer.inspect_err(note_unsent))
                }
                Some(min_rows) => {
                    let answer = database.execute(connection, sql, statement, params);
                    let answer = answer.map_ok(|rows| {
                        if rows < *min_rows {
                            let _ = incomplete.set(sql.name);
                        }
                        Vec::new()
                    });
                    Box::pin(answer.inspect_err(note_unsent))
                }
            });
        }
        if self.commit.is_some() {
            answers.push(Box::pin(async {
                let may_commit = !unsent.load(Ordering::Relaxed);
                commit_sent.store(may_commit, Ordering::Relaxed);
                let end = if may_commit { "COMMIT" } else { "ROLLBACK" };
                connection.batch_execute(end).await.map(|()| Vec::new())
            }));
        }

        let unreplicated = database.unreplicated_commits();
        let answers = timeout(database.time_for(self.parts()), in_order(answers));
        let Ok(answers) = database.while_preparing(connection, has_names, answers).await else {
            return Err(match self.commit {
                Some(_) => Failure::Unknown(Error::StatementTimeout),
                None => Failure::RolledBack(Error::StatementTimeout),
            });
        };
        let rows = match commit_sent.into_inner() {
            true => committed(answers)?,
            // Without its end, a transaction ends with the connection.
            false => all_answered(answers).map_err(|error| Failure::RolledBack(error.into()))?,
        };
        if self.commit.is_some() {
            if database.unreplicated_commits() != unreplicated {
                let reason = "a COMMIT did not wait for its synchronous standby";
                return Err(Failure::Unknown(DatabaseError::broken(reason).into()));
            }
            self.see_commit(&seen, &rows).map_err(Failure::Unknown)?;
        }
        match (incomplete.into_inner(), self.commit) {
            (None, _) => Ok(()),
            // Without its end, a transaction ends with the connection.
            (Some(name), None) => {
                let message = format!("{name} did not write all its rows");
                Err(Failure::RolledBack(DatabaseError::broken(message).into()))
            }
            // COMMIT left before the answers came. The error ends the use of the store.
            (Some(name), Some(_)) => {
                Err(Failure::Incomplete(DatabaseError::incomplete(name).into()))
            }
        }
    }

    /// Notes that a commit was counted in each lane, by the answer to [`COUNT_COMMIT`].
    fn see_commit(&self, seen: &[Position], rows: &[Row]) -> Result<(), Error> {
        let row = rows.last().ok_or(Error::Internal("commits were not counted"))?;
        let maintenance: Vec<i64> = row.try_get(0)?;
        for ((lane, seen), maintenance) in self.lanes.iter().zip(seen).zip(maintenance) {
            lane.move_to(Position { commits: seen.commits + 1, last: self.commit });
            lane.cache.see_maintenance(maintenance);
        }
        Ok(())
    }

    /// How many statements of the usual size it is.
    pub(crate) fn parts(&self) -> u32 {
        let size = self.batches.iter().map(|batch| batch.bytes()).sum::<usize>();
        u32::try_from(size / CHUNK_BYTES + 1).unwrap_or(u32::MAX)
    }
}

type Answers = Vec<Result<Vec<Row>, tokio_postgres::Error>>;

/// The rows of the last answer, or the first failure.
fn all_answered(answers: Answers) -> Result<Vec<Row>, DatabaseError> {
    let answers = answers.into_iter().collect::<Result<Vec<_>, _>>();
    Ok(answers.map_err(DatabaseError::from)?.pop().unwrap_or_default())
}

/// The rows of the last answer but COMMIT's, which was sent.
///
/// A failure proves a rollback only when it is the server's own word: an ERROR, behind which every
/// statement failed because the transaction had, or a refusal by one of our own functions; and when
/// COMMIT was answered. A pooler speaks in the server's name of what happened to its link, and knows
/// no more than we do of what the server does next.
fn committed(mut answers: Answers) -> Result<Vec<Row>, Failure> {
    let commit = answers.pop();
    let Some(failed) = answers.iter().position(Result::is_err) else {
        return match commit {
            Some(Err(error)) => Err(Failure::Unknown(error.into())),
            _ => Ok(answers.pop().and_then(Result::ok).unwrap_or_default()),
        };
    };
    let mut behind = answers.drain(failed..);
    let Some(Err(error)) = behind.next() else { return Ok(Vec::new()) };
    let error = DatabaseError::from(error);
    let in_failed = |answer: Result<Vec<Row>, tokio_postgres::Error>| {
        answer.is_err_and(|error| is_in_failed_transaction(&error))
    };
    // With nothing behind it, nothing bears an error out.
    let is_borne_out = behind.len() > 0 && behind.all(in_failed);
    let is_proven = error.is_own_refusal() || (error.is_statement_error() && is_borne_out);
    let outcome = match commit {
        Some(Ok(_)) if is_proven => Failure::RolledBack,
        _ => Failure::Unknown,
    };
    Err(outcome(error.into()))
}

impl Failure {
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::RolledBack(error) | Self::Unknown(error) | Self::Incomplete(error) => error,
        }
    }

    fn spoils_connection(&self) -> bool {
        match self {
            Self::RolledBack(Error::Database(error)) => error.spoils_connection(),
            Self::RolledBack(_) | Self::Unknown(_) | Self::Incomplete(_) => true,
        }
    }
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
