//! The write transaction: of a save, a group commit, a save in parts, or `atomically`.
//!
//! Saves are staged in memory until something is queried: then they are sent together with the
//! query, which sees them. The commit sends the remaining ones; if nothing was sent before, that is
//! one round trip with `BEGIN`. Dropping an uncommitted transaction closes its connection, which
//! rolls back.
//!
//! When the connection is lost, the saves are sent again on another one: nothing else can have been
//! written in between, because the lanes are held and other processes are fenced off. Not after the
//! application has seen the answer to a statement of its own.

mod commit;
mod control;
mod wire;

use std::sync::Arc;

use tokio_postgres::Row;

use self::wire::{Pipelined, PipelinedRows};
use crate::{
    Error,
    account::{
        cache::UncommittedOverlay,
        ownership::{LaneOwnership, random_id},
        write::{
            atomically::request::{Query, Text},
            batch::Batch,
            exchange::Exchange,
        },
    },
    postgres::{database::Database, transaction_connection::TransactionConnection},
};

pub(crate) struct OpenTransaction {
    database: Database,
    /// The lanes that the transaction writes in, in the order of their names; the caller holds all
    /// of them.
    lanes: Vec<Arc<LaneOwnership>>,
    connection: Option<TransactionConnection>,
    /// All saves, in order, each with the index of its lane; the first `sent` of them have been
    /// sent.
    saved: Vec<(usize, Batch)>,
    bytes: usize,
    sent: usize,
    /// The expected value of `matrix_sdk.saves` in the transaction.
    save_count: Option<usize>,
    /// The application has seen the answer to a statement of its own: the transaction cannot be
    /// repeated.
    unrepeatable: bool,
    /// Something failed: the transaction is over.
    broken: bool,
}

impl OpenTransaction {
    pub(crate) fn new(database: Database, lanes: Vec<Arc<LaneOwnership>>) -> Self {
        Self {
            database,
            lanes,
            connection: None,
            saved: Vec::new(),
            bytes: 0,
            sent: 0,
            save_count: None,
            unrepeatable: false,
            broken: false,
        }
    }

    /// Stages a save in the lane with this index; sends nothing.
    pub(crate) fn stage(&mut self, lane: usize, batch: Batch) -> Result<(), Error> {
        self.check()?;
        batch.check()?;
        self.bytes += batch.bytes();
        self.saved.push((lane, batch));
        Ok(())
    }

    /// Applies the newest save to an overlay, for reads before the commit.
    pub(crate) fn apply_last_to(&self, overlay: &UncommittedOverlay) {
        if let Some((_, batch)) = self.saved.last() {
            batch.apply_to(overlay);
        }
    }

    /// The size of the staged saves.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Sends what has been staged.
    pub(crate) async fn flush(&mut self) -> Result<(), Error> {
        self.send(Pipelined::Nothing).await.map(drop)
    }

    /// Sends the staged saves and reads, which see them, in one round trip. A read that fails
    /// affects neither the others nor the transaction.
    pub(crate) async fn query(
        &mut self,
        queries: &[Query],
    ) -> Result<Vec<Result<Vec<Row>, Error>>, Error> {
        Ok(self.send(Pipelined::Reads(queries)).await?.rows)
    }

    /// Runs a statement of the application; also returns how many rows it returned or changed.
    pub(crate) async fn run(&mut self, query: &Query) -> Result<(Vec<Row>, u64), Error> {
        self.check()?;
        if let Text::Application(sql, _) = &query.text
            && control::ends_transaction(sql)
        {
            self.broken = true;
            return Err(Error::TransactionControl);
        }
        let mut attempts = self.database.retry().attempts();
        let PipelinedRows { mut rows, row_count } = loop {
            if self.connection.is_none() {
                // Not together with BEGIN: if that were lost, the statement would be committed on
                // its own.
                if let Err(error) = self.flush().await {
                    self.broken = true;
                    return Err(error);
                }
            }
            let error = match self.send_once(&Pipelined::Application(query)).await {
                Ok(answers) => break answers,
                Err(error) => error,
            };
            // What the server has refused, it would refuse again.
            let is_refused = matches!(&error, Error::Database(error) if error.is_statement_error());
            let may_repeat = self.may_repeat(&error) && !is_refused;
            if !(may_repeat && attempts.pause("an open transaction", &error).await) {
                // The saves must not be committed without the statement.
                return Err(self.fail(error, false).await);
            }
        };
        self.unrepeatable = true;
        let rows = rows.pop().ok_or(Error::Internal("a statement has no answer"))??;
        Ok((rows, row_count))
    }

    /// Sends a keep-alive, so that `idle_in_transaction_session_timeout` does not end the
    /// transaction.
    pub(crate) fn keep_alive(&self) {
        if let Some(connection) = &self.connection {
            connection.send_keep_alive();
        }
    }

    fn check(&self) -> Result<(), Error> {
        if self.broken { Err(Error::ReopenRequired) } else { Ok(()) }
    }

    fn unsent(&self) -> Vec<&Batch> {
        self.saved.iter().skip(self.sent).map(|(_, batch)| batch).collect()
    }

    /// Sends the staged saves, and the queries after them; retries.
    async fn send(&mut self, pipelined: Pipelined<'_>) -> Result<PipelinedRows, Error> {
        self.check()?;
        let mut attempts = self.database.retry().attempts();
        loop {
            let error = match self.send_once(&pipelined).await {
                Ok(answers) => return Ok(answers),
                Err(error) => error,
            };
            // A timeout can be retried as well, because nothing was committed.
            let is_late = matches!(error, Error::StatementTimeout) && !self.unrepeatable;
            let may_repeat = is_late || self.may_repeat(&error);
            if may_repeat && attempts.pause("an open transaction", &error).await {
                continue;
            }
            return Err(self.fail(error, may_repeat).await);
        }
    }

    /// Ends the transaction if it cannot be repeated, and explains the error.
    async fn fail(&mut self, error: Error, may_repeat: bool) -> Error {
        // Without a connection nothing was sent.
        self.broken = !may_repeat && !matches!(error, Error::PoolTimeout);
        // Nothing was committed, so any unused id gives the same explanation.
        let explained = self.explain_commit(random_id(), error.clone()).await;
        explained.err().unwrap_or(error)
    }

    /// One attempt. On a new connection, it begins the transaction and sends all saves again.
    async fn send_once(&mut self, pipelined: &Pipelined<'_>) -> Result<PipelinedRows, Error> {
        let (connection, begin) = match self.connection.take() {
            Some(connection) => (connection, None),
            None => {
                (self.sent, self.save_count) = (0, None);
                let connection = self.database.connection().await?;
                (TransactionConnection::new(connection), Some(self.database.idle_timeout()))
            }
        };
        if pipelined.is_application() {
            self.save_count = Some(self.saved.len());
        }
        let batches = self.unsent();
        let exchange = Exchange { lanes: &self.lanes, begin, batches: &batches, commit: None };
        let save_count = self.save_count;
        let answers =
            wire::send(&self.database, connection.get()?, &exchange, pipelined, save_count);
        let answers = answers.await?;
        self.sent = self.saved.len();
        self.connection = Some(connection);
        Ok(answers)
    }

    /// Whether everything can be sent again on another connection.
    fn may_repeat(&self, error: &Error) -> bool {
        !self.unrepeatable && error.is_retryable()
    }
}
