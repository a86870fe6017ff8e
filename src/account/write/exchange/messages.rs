//! The statements of a transaction, and what is recorded while they are sent.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use deadpool_postgres::Object;
use futures_util::TryFutureExt;
use tokio_postgres::Statement;

use super::{Exchange, Failure, Response};
use crate::{
    DatabaseError,
    account::{
        ownership::{COUNT_COMMIT, GUARD, LaneOwnership, Position},
        write::batch,
    },
    postgres::{
        database::{Database, Param},
        statement::Sql,
    },
};

/// The parameters of `guard` and `count_commit`.
pub(super) struct OwnershipParams {
    account_id: i64,
    token: Vec<u8>,
    names: Vec<&'static str>,
    pub(super) seen: Vec<Position>,
    commits: Vec<i64>,
    last: Vec<Option<Vec<u8>>>,
    transaction: Vec<u8>,
}

impl OwnershipParams {
    pub(super) fn new(lanes: &[Arc<LaneOwnership>], transaction: Option<[u8; 16]>) -> Self {
        let owner = lanes.first().map(|lane| &lane.owner);
        let seen: Vec<Position> = lanes.iter().map(|lane| lane.position()).collect();
        Self {
            account_id: owner.map_or(0, |owner| owner.account_id),
            token: owner.map_or_else(Vec::new, |owner| owner.token().to_vec()),
            names: lanes.iter().map(|lane| lane.name).collect(),
            commits: seen.iter().map(|position| position.commits).collect(),
            last: seen.iter().map(|position| position.last().map(<[u8]>::to_vec)).collect(),
            seen,
            transaction: transaction.unwrap_or_default().to_vec(),
        }
    }

    fn guard(&self) -> Vec<Param<'_>> {
        vec![&self.account_id, &self.token, &self.names, &self.commits, &self.last]
    }

    fn count(&self) -> Vec<Param<'_>> {
        vec![&self.account_id, &self.names, &self.commits, &self.last, &self.transaction]
    }
}

/// A statement to send.
pub(super) struct Message<'a> {
    pub(super) sql: &'static Sql,
    params: Vec<Param<'a>>,
    /// How many rows a write must report; `None` for a statement that is not a write.
    min_rows: Option<u64>,
    prepared: Option<Statement>,
}

/// The statements of a transaction, without `BEGIN` and `COMMIT`.
pub(super) fn messages<'a>(
    exchange: &Exchange<'_>,
    params: &'a OwnershipParams,
    writes: &'a [batch::Statement<'a>],
    prepared: impl Fn(&'static Sql) -> Option<Statement>,
) -> Vec<Message<'a>> {
    let message =
        |sql, params, min_rows| Message { sql, params, min_rows, prepared: prepared(sql) };
    let engine = |sql, params| message(sql, params, None);
    let guard = exchange.begin.map(|_| engine(&GUARD, params.guard()));
    let count = exchange.commit.map(|_| engine(&COUNT_COMMIT, params.count()));
    let writes = writes.iter().map(|write| {
        let columns = write.columns.iter().map(|column| column as Param<'_>);
        let params = std::iter::once(&params.account_id as Param<'_>).chain(columns).collect();
        message(write.sql, params, Some(write.min_rows))
    });
    guard.into_iter().chain(writes).chain(count).collect()
}

/// What is recorded while messages are sent and answered.
#[derive(Default)]
pub(super) struct Sent {
    /// A message failed at its first poll: it was never sent, and COMMIT must not follow it.
    has_unsent: AtomicBool,
    has_sent_commit: AtomicBool,
    /// The first write that reported too few rows.
    incomplete: OnceLock<&'static str>,
}

impl Sent {
    fn record_unsent(&self) {
        self.has_unsent.store(true, Ordering::Relaxed);
    }

    pub(super) fn simple<'a>(&'a self, connection: &'a Object, text: &'a str) -> Response<'a> {
        let answer = connection.batch_execute(text).map_ok(|()| Vec::new());
        Box::pin(answer.inspect_err(|_| self.record_unsent()))
    }

    pub(super) fn statement<'a>(
        &'a self,
        database: &'a Database,
        connection: &'a Object,
        message: &'a Message<'a>,
    ) -> Response<'a> {
        let Message { sql, params, min_rows, prepared } = message;
        let Some(min_rows) = min_rows else {
            let answer = database.run(connection, sql, prepared.as_ref(), params);
            return Box::pin(answer.inspect_err(|_| self.record_unsent()));
        };
        let answer = database.execute(connection, sql, prepared.as_ref(), params);
        let answer = answer.map_ok(move |rows| {
            if rows < *min_rows {
                let _ = self.incomplete.set(sql.name);
            }
            Vec::new()
        });
        Box::pin(answer.inspect_err(|_| self.record_unsent()))
    }

    pub(super) fn commit<'a>(&'a self, connection: &'a Object) -> Response<'a> {
        Box::pin(async {
            let may_commit = !self.has_unsent.load(Ordering::Relaxed);
            self.has_sent_commit.store(may_commit, Ordering::Relaxed);
            let end = if may_commit { "COMMIT" } else { "ROLLBACK" };
            connection.batch_execute(end).await.map(|()| Vec::new())
        })
    }

    pub(super) fn has_sent_commit(&self) -> bool {
        self.has_sent_commit.load(Ordering::Relaxed)
    }

    /// Fails when a write reported fewer rows than were staged.
    pub(super) fn check_complete(&self, commits: bool) -> Result<(), Failure> {
        match self.incomplete.get() {
            None => Ok(()),
            // COMMIT was sent before the answers arrived. After this error the store must be
            // reopened.
            Some(name) if commits => {
                Err(Failure::Incomplete(DatabaseError::incomplete(name).into()))
            }
            // A transaction without COMMIT is rolled back when its connection is closed.
            Some(name) => {
                let message = format!("{name} did not write all its rows");
                Err(Failure::RolledBack(DatabaseError::broken(message).into()))
            }
        }
    }
}
