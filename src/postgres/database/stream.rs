//! Reads of many rows, decoded while they arrive.

use std::pin::pin;

use deadpool_postgres::Object;
use futures_util::TryStreamExt;
use tokio::time::{Instant, timeout};
use tokio_postgres::{Row, RowStream, Statement};
use tracing::debug;

use super::{Database, Param, typed};
use crate::{
    Error,
    postgres::{metrics, statement::Sql, transaction_connection::TransactionConnection},
};

impl Database {
    /// Runs a read of many rows on a connection of its own and decodes each row as it arrives, so
    /// that raw and decoded rows are never all in memory at once. Transient failures are retried
    /// from the beginning.
    pub(crate) async fn read_all<T>(
        &self,
        sql: &'static Sql,
        params: &[Param<'_>],
        decode: impl Fn(&Row) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let started = Instant::now();
        let values = self.with_retry(sql, || self.read_once(sql, params, &decode)).await?;
        debug!(statement = sql.name, rows = values.len(), elapsed = ?started.elapsed(), "read");
        Ok(values)
    }

    async fn read_once<T>(
        &self,
        sql: &'static Sql,
        params: &[Param<'_>],
        decode: impl Fn(&Row) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let late = |_| Error::StatementTimeout;
        // Closed unless all rows are read: the remaining ones would delay the next user of the
        // connection.
        let connection = TransactionConnection::new(self.connection().await?);
        let object = connection.get()?;
        let prepared = self.prepared(object, sql);
        let rows = timeout(self.limits.statement, self.stream(object, sql, prepared, params));
        metrics::round_trip();
        let rows = self.join_with_prepare(object, [sql], rows).await;
        let mut rows = pin!(rows.map_err(late)??);
        let mut values = Vec::new();
        loop {
            let row = timeout(self.limits.statement, rows.try_next()).await.map_err(late)??;
            let Some(row) = row else { break };
            values.push(decode(&row)?);
            // Yields to other tasks: rows that are ready without waiting would keep the thread
            // busy.
            tokio::task::consume_budget().await;
        }
        connection.release();
        Ok(values)
    }

    async fn stream(
        &self,
        connection: &Object,
        sql: &'static Sql,
        prepared: Option<Statement>,
        params: &[Param<'_>],
    ) -> Result<RowStream, tokio_postgres::Error> {
        match prepared {
            Some(statement) => connection.query_raw(&statement, params.iter().copied()).await,
            None => {
                let sql = self.statements.get(sql);
                connection.query_typed_raw(&sql.text, typed(sql, params)).await
            }
        }
    }
}
