//! Single-statement transactions.
//!
//! The defaults of a session (isolation, read-only mode, time limits) are set by others, so every
//! transaction of the crate sets its own with [`Database::begin`].

use std::time::Duration;

use futures_util::future::join3;
use tokio::time::timeout;
use tokio_postgres::{Client, Row, Statement};

use super::{Database, Param};
use crate::{
    DatabaseError, Error,
    postgres::{metrics, statement::Sql, transaction_connection::TransactionConnection},
};

/// The time limits of a transaction; `None` for none. They override the role's.
pub(crate) struct Limits {
    pub(crate) statement: Option<Duration>,
    pub(crate) lock: Option<Duration>,
    pub(crate) idle: Option<Duration>,
}

impl Limits {
    /// Sets them, within a transaction.
    pub(crate) fn set(&self) -> String {
        // Zero means no limit to the server.
        let milliseconds = |limit: Option<Duration>| {
            limit.map_or(0, |limit| limit.as_millis().clamp(1, i32::MAX as u128))
        };
        format!(
            "SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {}; \
             SET LOCAL idle_in_transaction_session_timeout = {}",
            milliseconds(self.statement),
            milliseconds(self.lock),
            milliseconds(self.idle)
        )
    }
}

/// The statements that begin a transaction that writes. READ COMMITTED: a statement that waited for a
/// lock sees the rows committed meanwhile. At `warning` the server reports a cancelled wait for a
/// synchronous standby. Statements that write require `matrix_sdk.begun`, so that none of them runs if
/// `BEGIN` was lost.
pub(crate) fn begin(limits: &Limits) -> String {
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE NOT DEFERRABLE; {}; \
         SET LOCAL client_min_messages = warning; SET LOCAL matrix_sdk.begun = 'on'",
        limits.set()
    )
}

impl Database {
    /// [`begin`] with the configured time limit of statements, and this one of an idle transaction.
    pub(crate) fn begin(&self, idle: Duration) -> String {
        let statement = Some(self.statement_timeout());
        begin(&Limits { statement, lock: None, idle: Some(idle) })
    }

    /// Runs one statement that writes, in one round trip, and retries it after a transient failure.
    /// The first attempt may take effect late: by then it must match nothing, or do the same as the
    /// retry.
    pub(crate) async fn write_autocommit(
        &self,
        sql: &'static Sql,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Error> {
        self.with_retry(sql, || self.autocommit_with_prepare(sql, params)).await
    }

    /// One attempt.
    pub(crate) async fn autocommit_with_prepare(
        &self,
        sql: &'static Sql,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Error> {
        let transaction = TransactionConnection::new(self.connection().await?);
        let connection = transaction.get()?;
        let prepared = self.prepared(connection, sql);
        let answer = self.autocommit(connection, sql, prepared.as_ref(), params);
        let answer = self.join_with_prepare(connection, [sql], answer).await;
        transaction.release_unless_spoiled(&answer);
        answer
    }

    /// Runs one read in a read-write transaction, so that no standby, which may lag behind, answers
    /// it. Not prepared, because it is sent rarely.
    pub(crate) async fn query_primary(
        &self,
        sql: &'static Sql,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Error> {
        let once = || async {
            let transaction = TransactionConnection::new(self.connection().await?);
            let answer = self.autocommit(transaction.get()?, sql, None, params).await;
            transaction.release_unless_spoiled(&answer);
            answer
        };
        self.with_retry(sql, once).await
    }

    /// Runs one statement that writes, on a connection outside of the pool.
    pub(crate) async fn write_unpooled(
        &self,
        sql: &'static Sql,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Error> {
        let connection = self.connect_unpooled().await?;
        self.autocommit(&connection, sql, None, params).await
    }

    /// Sends the statement between `BEGIN` and `COMMIT`, all at the first poll.
    pub(crate) async fn autocommit(
        &self,
        client: &Client,
        sql: &'static Sql,
        statement: Option<&Statement>,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Error> {
        let begin = self.begin(self.idle_timeout());
        let answers = join3(
            client.batch_execute(&begin),
            self.run(client, sql, statement, params),
            client.batch_execute("COMMIT"),
        );
        metrics::round_trip();
        let answers = timeout(self.statement_timeout(), answers).await;
        let (begun, rows, committed) = answers.map_err(|_| Error::StatementTimeout)?;
        let failed = |error: tokio_postgres::Error| DatabaseError::from(error);
        begun.map_err(failed)?;
        let rows = rows.map_err(failed)?;
        committed.map_err(failed)?;
        Ok(rows)
    }
}
