//! Sends a transaction, or a part of one, always in one round trip.
//!
//! `BEGIN`, the statements and `COMMIT` are sent before the first answer is awaited. `BEGIN` and
//! `COMMIT` are simple queries. `COMMIT` of a failed transaction returns no error, so every answer
//! is checked.

mod messages;
mod outcome;

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use deadpool_postgres::Object;
use futures_util::future::{BoxFuture, MaybeDone, maybe_done};
use tokio::time::timeout;
use tokio_postgres::Row;

use self::messages::{OwnershipParams, Sent, messages};
pub(crate) use self::outcome::Failure;
use crate::{
    DatabaseError, Error,
    account::{
        ownership::{LaneOwnership, Moment, Position},
        write::batch::{Batch, CHUNK_BYTES},
    },
    postgres::{database::Database, metrics, transaction_connection::TransactionConnection},
};

/// From this size on, sending a message may take long.
const LARGE_BYTES: usize = 64 << 10;

/// The minimum bandwidth of a link, for the time limit of large writes.
const SLOW_LINK_BYTES_A_SECOND: usize = 128 << 10;

/// What is sent together.
pub(crate) struct Exchange<'a> {
    /// The lanes that the transaction writes in, in the order of their names.
    pub(crate) lanes: &'a [Arc<LaneOwnership>],
    /// Begins a guarded transaction, with this idle limit.
    pub(crate) begin: Option<Duration>,
    pub(crate) batches: &'a [&'a Batch],
    /// Commits, under this id.
    pub(crate) commit: Option<[u8; 16]>,
}

/// A message that is sent when polled; returns the rows of its answer.
pub(crate) type Response<'a> = BoxFuture<'a, Result<Vec<Row>, tokio_postgres::Error>>;

impl Exchange<'_> {
    /// Sends all of it and awaits the answers. Returns the connection to the pool if the
    /// transaction has ended on it.
    pub(crate) async fn send(
        self,
        database: &Database,
        connection: TransactionConnection,
    ) -> Result<(), Failure> {
        let object = connection.get().map_err(Failure::RolledBack)?;
        let result = self.exchange(database, object).await;
        if self.commit.is_some() && !result.as_ref().is_err_and(Failure::invalidates_connection) {
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
        let params = OwnershipParams::new(self.lanes, self.commit);
        let writes: Vec<_> = self.batches.iter().flat_map(|batch| batch.statements()).collect();
        let prepared = |sql| database.prepared(connection, sql);
        let messages = messages(self, &params, &writes, prepared);
        let size = self.batches.iter().map(|batch| batch.bytes()).sum::<usize>();
        let large =
            (size > LARGE_BYTES).then(|| extend_idle_timeout(database.idle_timeout(), size));
        let begin = self.begin.map(|idle| database.begin(idle));
        let first: Vec<String> = begin.into_iter().chain(large).collect();

        let (sent, unreplicated) = (Sent::default(), database.unreplicated_commits());
        let sent_at = Moment::now();
        let mut answers: Vec<Response<'_>> = Vec::new();
        answers.extend(first.iter().map(|text| sent.simple(connection, text)));
        let statements = messages.iter();
        answers.extend(statements.map(|message| sent.statement(database, connection, message)));
        answers.extend(self.commit.map(|_| sent.commit(connection)));
        metrics::round_trip();
        let answers = timeout(database.response_timeout(self.parts()), in_order(answers));
        let statements = messages.iter().map(|message| message.sql);
        let answers = database.join_with_prepare(connection, statements, answers).await;

        let answers = answers.map_err(|_| match self.commit {
            Some(_) => Failure::Unknown(Error::StatementTimeout),
            None => Failure::RolledBack(Error::StatementTimeout),
        })?;
        let answers = answers.into_iter().map(|answer| answer.map_err(DatabaseError::from));
        let rows = outcome::last_rows(answers.collect(), sent.has_sent_commit())?;
        if self.commit.is_some() {
            if database.unreplicated_commits() != unreplicated {
                let reason = "a COMMIT did not wait for its synchronous standby";
                return Err(Failure::Unknown(DatabaseError::broken(reason).into()));
            }
            self.record_commit(&params.seen, &rows, sent_at).map_err(Failure::Unknown)?;
        }
        sent.check_complete(self.commit.is_some())
    }

    /// Records the new position of each lane, by the answer to `count_commit`.
    fn record_commit(&self, seen: &[Position], rows: &[Row], sent_at: Moment) -> Result<(), Error> {
        let row = rows.last().ok_or(Error::Internal("commits were not counted"))?;
        let maintenance: Vec<i64> = row.try_get(0)?;
        for ((lane, seen), maintenance) in self.lanes.iter().zip(seen).zip(maintenance) {
            lane.move_to(Position { commits: seen.commits + 1, last: self.commit });
            lane.owner.prove(sent_at);
            lane.cache.set_maintenance(maintenance);
        }
        Ok(())
    }

    /// The size in statements of [`CHUNK_BYTES`], for time limits.
    pub(crate) fn parts(&self) -> u32 {
        let size = self.batches.iter().map(|batch| batch.bytes()).sum::<usize>();
        u32::try_from(size / CHUNK_BYTES + 1).unwrap_or(u32::MAX)
    }
}

/// The server counts a transaction as idle while a message is still arriving, so the limit grows by
/// the time that a slow link takes for a chunk.
fn extend_idle_timeout(idle: Duration, bytes: usize) -> String {
    let seconds = bytes.min(CHUNK_BYTES) / SLOW_LINK_BYTES_A_SECOND;
    let idle = idle + Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX) + 1);
    format!("SET LOCAL idle_in_transaction_session_timeout = {}", idle.as_millis())
}

/// Polls all futures in order each time, so that their messages are sent in order.
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
