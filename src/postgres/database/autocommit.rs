//! Statements with an effect that stand for themselves, each as a transaction of its own.
//!
//! What a session's defaults say of isolation, read-only mode and time limits is somebody else's
//! choice, so every transaction of the crate is begun by [`Database::begin`].

use std::time::Duration;

use futures_util::future::join3;
use tokio::time::timeout;
use tokio_postgres::{Client, Row, Statement};

use super::{Database, Param};
use crate::{
    DatabaseError, Error,
    postgres::{statement::Sql, transaction_connection::TransactionConnection},
};

impl Database {
    /// The statements that begin a transaction. A statement of it that waited for a lock sees what it
    /// waited for, the server gives up after our limits, not after the role's, and warns when somebody
    /// cancels the wait for a standby. Statements with an effect ask for the last setting, so that none
    /// of them runs when this got lost.
    pub(crate) fn begin(&self, idle: Duration) -> String {
        // Zero would mean no limit.
        let milliseconds = |duration: Duration| duration.as_millis().clamp(1, i32::MAX as u128);
        format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE NOT DEFERRABLE; \
             SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = 0; \
             SET LOCAL idle_in_transaction_session_timeout = {}; SET LOCAL client_min_messages = warning; \
             SET LOCAL matrix_sdk.begun = 'on'",
            milliseconds(self.statement_timeout()),
            milliseconds(idle)
        )
    }

    /// Runs one statement with an effect, in one round trip, and again after a transient failure: so
    /// a late first attempt of it must either find nothing to do or do the same.
    pub(crate) async fn write_autocommit(
        &self,
        sql: &'static Sql,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Error> {
        self.until_answered(sql, || self.write_autocommit_once(sql, params)).await
    }

    async fn write_autocommit_once(
        &self,
        sql: &'static Sql,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Error> {
        let held = TransactionConnection::new(self.connection().await?);
        let connection = held.get()?;
        let is_prepared = self.is_prepared(connection);
        let statement = self.prepare(connection, is_prepared, sql).await?;
        let answer = self.autocommit(connection, sql, statement.as_ref(), params);
        let answer = self.join_with_prepare(connection, is_prepared, answer).await;
        held.release_unless_spoiled(&answer);
        answer
    }

    /// Runs one read that only a server which accepts writes may answer: a standby may lag behind. It
    /// prepares nothing, for opening needs it.
    pub(crate) async fn query_primary(
        &self,
        sql: &'static Sql,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Error> {
        let once = || async {
            let held = TransactionConnection::new(self.connection().await?);
            let answer = self.autocommit(held.get()?, sql, None, params).await;
            held.release_unless_spoiled(&answer);
            answer
        };
        self.until_answered(sql, once).await
    }

    /// Runs one statement with an effect on a connection that is none of the pool's.
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
        let answers = timeout(self.statement_timeout(), answers).await;
        let (begun, rows, committed) = answers.map_err(|_| Error::StatementTimeout)?;
        let failed = |error: tokio_postgres::Error| DatabaseError::from(error);
        begun.map_err(failed)?;
        let rows = rows.map_err(failed)?;
        committed.map_err(failed)?;
        Ok(rows)
    }
}
