//! Short reads on shared connections: one round trip, with retries.

use std::future::Future;

use deadpool_postgres::Object;
use futures_util::future::try_join_all;
use tokio::time::{Instant, timeout};
use tokio_postgres::Row;
use tracing::debug;

use super::{Database, Param};
use crate::{
    Error,
    postgres::{metrics, statement::Sql, trace},
};

impl Database {
    /// Runs short reads in one round trip, on a connection that other readers use as well; retries
    /// transient failures.
    pub(crate) async fn query_pipelined(
        &self,
        queries: &[(&'static Sql, Vec<Param<'_>>)],
    ) -> Result<Vec<Vec<Row>>, Error> {
        let Some((first, _)) = queries.first() else { return Ok(Vec::new()) };
        let started = Instant::now();
        let answers = self.with_retry(first, || self.query_pipelined_once(queries)).await?;
        for ((sql, _), rows) in queries.iter().zip(&answers) {
            debug!(statement = sql.name, rows = rows.len(), elapsed = ?started.elapsed(), "read");
        }
        Ok(answers)
    }

    async fn query_pipelined_once(
        &self,
        queries: &[(&'static Sql, Vec<Param<'_>>)],
    ) -> Result<Vec<Vec<Row>>, Error> {
        let shared = self.shared.join(self.timeouts(), |timeouts| self.take(timeouts)).await?;
        let connection = shared.get()?;
        let answers = queries.iter().map(|(sql, params)| self.send(connection, sql, params));
        metrics::round_trip();
        let answers = try_join_all(answers).await;
        if answers.as_ref().is_err_and(Error::invalidates_connection) {
            shared.spoil();
        }
        answers
    }

    /// Retries after a transient failure or a timeout. The query must be harmless when sent twice.
    pub(crate) async fn with_retry<T, F>(
        &self,
        sql: &'static Sql,
        query: impl FnMut() -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let retried = self.retry().run(sql.name, Error::is_retryable_or_late, query);
        trace::query(sql, retried).await
    }

    /// Sends one statement and awaits its answer, up to the statement timeout.
    async fn send(
        &self,
        connection: &Object,
        sql: &'static Sql,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Error> {
        let answer = timeout(self.limits.statement, self.run_on(connection, sql, params));
        Ok(answer.await.map_err(|_| Error::StatementTimeout)??)
    }
}
