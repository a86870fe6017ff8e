//! The one transaction that writes: of a save, of saves that queued behind it, of one that comes in
//! parts, and of `atomically`.
//!
//! Saves are staged in memory until something is queried: then they go to the server together with the
//! query, which sees them. The commit takes the rest along; when nothing was sent before, that is one
//! round trip with `BEGIN`. Dropped before, the transaction drops its connection, which rolls back.
//!
//! When the connection is lost, the saves are sent again on another: nothing else can have been
//! written in between, for the lanes are held and other processes are fenced. Only the application's
//! own statements cannot be repeated.

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
    /// Those that it writes in, in the order of their names; the caller holds them all.
    lanes: Vec<Arc<LaneOwnership>>,
    connection: Option<TransactionConnection>,
    /// All saves, in order, with the place of their lane; the first `sent` are within the transaction.
    saved: Vec<(usize, Batch)>,
    bytes: usize,
    sent: usize,
    /// What the savepoints' save_count in the transaction is expected to say.
    save_count: Option<usize>,
    /// The application's own statements have run: the transaction cannot be repeated.
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

    /// Takes a save in the lane at this place: nothing is sent.
    pub(crate) fn stage(&mut self, lane: usize, batch: Batch) -> Result<(), Error> {
        self.check()?;
        batch.check()?;
        self.bytes += batch.bytes();
        self.saved.push((lane, batch));
        Ok(())
    }

    /// Shows the newest save to those who are to see it before it is committed.
    pub(crate) fn show_last(&self, overlay: &UncommittedOverlay) {
        if let Some((_, batch)) = self.saved.last() {
            batch.show(overlay);
        }
    }

    /// How much has been staged.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Sends what has been staged.
    pub(crate) async fn flush(&mut self) -> Result<(), Error> {
        self.ask(Pipelined::Nothing).await.map(drop)
    }

    /// Reads, seeing what has been staged, all in one round trip. A read that fails harms neither the
    /// others nor the transaction.
    pub(crate) async fn query(
        &mut self,
        queries: &[Query],
    ) -> Result<Vec<Result<Vec<Row>, Error>>, Error> {
        Ok(self.ask(Pipelined::Reads(queries)).await?.rows)
    }

    /// Runs a statement of the application; also tells how many rows it returned or changed.
    pub(crate) async fn run(&mut self, query: &Query) -> Result<(Vec<Row>, u64), Error> {
        self.check()?;
        if let Text::Application(sql, _) = &query.text
            && control::ends_transaction(sql)
        {
            self.broken = true;
            return Err(Error::TransactionControl);
        }
        if self.connection.is_none() {
            // Not together with BEGIN: should that be lost, it would be committed by itself.
            self.flush().await?;
        }
        self.unrepeatable = true;
        let PipelinedRows { mut rows, row_count } = self.ask(Pipelined::Application(query)).await?;
        let rows = rows.pop().ok_or(Error::Internal("a statement has no answer"))??;
        Ok((rows, row_count))
    }

    /// Shows the server that we are here.
    pub(crate) fn keep_alive(&self) {
        if let Some(connection) = &self.connection {
            connection.ping();
        }
    }

    fn check(&self) -> Result<(), Error> {
        if self.broken { Err(Error::ReopenRequired) } else { Ok(()) }
    }

    fn unsent(&self) -> Vec<&Batch> {
        self.saved.iter().skip(self.sent).map(|(_, batch)| batch).collect()
    }

    /// Sends what has been staged, and what is asked behind it.
    async fn ask(&mut self, pipelined: Pipelined<'_>) -> Result<PipelinedRows, Error> {
        self.check()?;
        let mut attempts = self.database.retry().attempts();
        loop {
            let error = match self.send(&pipelined).await {
                Ok(answers) => return Ok(answers),
                Err(error) => error,
            };
            // Also what was not answered in time: nothing of it was committed.
            let is_late = matches!(error, Error::StatementTimeout) && !self.unrepeatable;
            let may_repeat = is_late || self.may_repeat(&error);
            if may_repeat && attempts.pause("an open transaction", &error).await {
                continue;
            }
            // Without a connection nothing was sent.
            self.broken = !may_repeat && !matches!(error, Error::PoolTimeout);
            // It was never committed, so an id that no transaction has tells the same.
            let explained = self.explain_commit(random_id(), error.clone()).await;
            return Err(explained.err().unwrap_or(error));
        }
    }

    /// Sends it once; on a new connection, with everything that was saved, as the begin of the
    /// transaction.
    async fn send(&mut self, pipelined: &Pipelined<'_>) -> Result<PipelinedRows, Error> {
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
