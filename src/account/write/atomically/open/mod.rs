//! A transaction that stays open over several saves: of `atomically`, and of a save in parts.
//!
//! Saves are kept in memory until something is read: then they go to the server together with the
//! read, which sees them. The commit takes the rest along. Dropped before, it drops the connection,
//! which rolls back.
//!
//! When the connection is lost, the saves are sent again on another: nothing else can have been
//! written in between, for the lane is held and other processes are fenced. Only the application's
//! own statements cannot be repeated.

mod control;
mod wire;

use std::sync::Arc;

use backon::BackoffBuilder;
use tokio::time::{Instant, sleep};
use tokio_postgres::Row;

use self::wire::Asked;
use super::request::{Query, Text};
use crate::{
    Error,
    account::{
        cache::UncommittedOverlay,
        ownership::random_id,
        write::{
            batch::Batch,
            exchange::{Exchange, Failure},
            lane::Lane,
        },
    },
    postgres::transaction_connection::TransactionConnection,
};

pub(crate) struct OpenTransaction {
    lane: Arc<Lane>,
    connection: Option<TransactionConnection>,
    /// Everything saved, in order; the first `sent` are within the open transaction.
    saved: Vec<Batch>,
    sent: usize,
    /// What the savepoints' witness in the transaction is expected to say.
    witness: Option<usize>,
    /// The application's own statements have run: the transaction cannot be repeated.
    unrepeatable: bool,
    /// Something failed: the transaction is over.
    broken: bool,
}

impl OpenTransaction {
    pub(crate) fn new(lane: Arc<Lane>) -> Self {
        Self {
            lane,
            connection: None,
            saved: Vec::new(),
            sent: 0,
            witness: None,
            unrepeatable: false,
            broken: false,
        }
    }

    /// Takes a save, which the overlay shows from now on: nothing is sent.
    pub(crate) fn push(&mut self, batch: Batch, overlay: &UncommittedOverlay) -> Result<(), Error> {
        self.check()?;
        batch.show(overlay);
        self.saved.push(batch);
        Ok(())
    }

    /// Sends what has been saved.
    pub(crate) async fn flush(&mut self) -> Result<(), Error> {
        self.ask(Asked::Nothing).await.map(drop)
    }

    /// Reads, seeing what has been saved, all in one round trip. A read that fails harms neither the
    /// others nor the transaction.
    pub(crate) async fn read(
        &mut self,
        queries: &[Query],
    ) -> Result<Vec<Result<Vec<Row>, Error>>, Error> {
        self.ask(Asked::Reads(queries)).await
    }

    /// Runs a statement of the application.
    pub(crate) async fn run(&mut self, query: &Query) -> Result<Vec<Row>, Error> {
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
        let mut answers = self.ask(Asked::Application(query)).await?;
        answers.pop().unwrap_or_else(|| Ok(Vec::new()))
    }

    /// Shows the server that we are here.
    pub(crate) fn keep_alive(&self) {
        if let Some(connection) = &self.connection {
            connection.ping();
        }
    }

    pub(crate) async fn commit(mut self) -> Result<(), Error> {
        // Also after a read that failed, for the SDK may have taken it for an undecryptable message.
        self.lane.owner.check_write()?;
        self.check()?;
        let batches: Vec<&Batch> = self.saved.iter().collect();
        match self.connection.take() {
            None => self.lane.commit(&batches).await?,
            Some(connection) => {
                let transaction = random_id();
                match self.commit_on(connection, transaction).await {
                    Err(error) if self.may_repeat(&error) => {
                        self.lane.commit_as(transaction, &batches).await?;
                    }
                    Err(error) => {
                        let Lane { owner, database, .. } = &*self.lane;
                        owner.explain_commit(database, transaction, error).await?;
                    }
                    Ok(()) => {}
                }
            }
        }
        Batch::committed(self.saved, &self.lane.owner.cache);
        Ok(())
    }

    async fn commit_on(
        &self,
        connection: TransactionConnection,
        transaction: [u8; 16],
    ) -> Result<(), Error> {
        let batches: Vec<&Batch> = self.saved.iter().skip(self.sent).collect();
        let exchange = Exchange { begin: None, batches: &batches, commit: Some(transaction) };
        match exchange.send(&self.lane.database, &self.lane.owner, connection).await {
            Ok(()) => Ok(()),
            Err(failure) => self.lane.settle(failure, transaction).await,
        }
    }

    fn check(&self) -> Result<(), Error> {
        if self.broken { Err(Error::ReopenRequired) } else { Ok(()) }
    }

    /// Sends what has been saved, and what is asked behind it.
    async fn ask(&mut self, asked: Asked<'_>) -> Result<Vec<Result<Vec<Row>, Error>>, Error> {
        self.check()?;
        let started = Instant::now();
        let mut pauses = self.lane.database.backoff().build();
        loop {
            let error = match self.send(&asked).await {
                Ok(answers) => return Ok(answers),
                Err(error) => error,
            };
            // Also what was not answered in time: nothing of it was committed.
            let is_late = matches!(error, Error::StatementTimeout) && !self.unrepeatable;
            let may_repeat = is_late || self.may_repeat(&error);
            let is_early = started.elapsed() < self.lane.database.retry_timeout();
            match pauses.next() {
                Some(pause) if may_repeat && is_early => sleep(pause).await,
                _ => {
                    // Without a connection nothing was sent.
                    self.broken = !may_repeat && !matches!(error, Error::PoolTimeout);
                    return Err(self.explain(error).await);
                }
            }
        }
    }

    /// Sends it once; on a new connection, with everything that was saved, as the begin of the
    /// transaction.
    async fn send(&mut self, asked: &Asked<'_>) -> Result<Vec<Result<Vec<Row>, Error>>, Error> {
        let (database, owner) = (&self.lane.database, &self.lane.owner);
        let (connection, begin) = match self.connection.take() {
            Some(connection) => (connection, None),
            None => {
                (self.sent, self.witness) = (0, None);
                (
                    TransactionConnection::new(database.connection().await?),
                    Some(database.idle_timeout()),
                )
            }
        };
        let batches: Vec<&Batch> = self.saved.iter().skip(self.sent).collect();
        if asked.is_application() {
            self.witness = Some(self.saved.len());
        }
        let exchange = Exchange { begin, batches: &batches, commit: None };
        let answers =
            wire::send(database, owner, connection.get()?, &exchange, asked, self.witness).await;
        let answers = answers?;
        self.sent = self.saved.len();
        self.connection = Some(connection);
        Ok(answers)
    }

    /// Whether everything can be sent again on another connection.
    fn may_repeat(&self, error: &Error) -> bool {
        !self.unrepeatable && error.is_transient()
    }

    async fn explain(&self, error: Error) -> Error {
        // It was never committed, so an id that no transaction has tells the same.
        let Lane { owner, database, .. } = &*self.lane;
        let explained = owner.explain_commit(database, random_id(), error.clone()).await;
        explained.err().unwrap_or(error)
    }
}

impl From<Failure> for Error {
    /// Without its commit, a transaction is rolled back with its connection.
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::RolledBack(error) | Failure::Unknown(error) | Failure::Incomplete(error) => {
                error
            }
        }
    }
}
