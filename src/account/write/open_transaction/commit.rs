//! How the transaction commits, and what became of it when that is not known.

use tokio::time::Instant;
use tracing::{debug, warn};

use super::OpenTransaction;
use crate::{
    DatabaseError, Error,
    account::{
        ownership::random_id,
        write::{
            batch::Batch,
            exchange::{Exchange, Failure},
        },
    },
    postgres::transaction_connection::TransactionConnection,
};

impl OpenTransaction {
    /// Commits, unless there is nothing to write, and tells the caches and whoever waits for it.
    pub(crate) async fn commit(mut self) -> Result<(), Error> {
        // Also after a read that failed: what its caller has made of that must not be stored.
        self.lanes.iter().try_for_each(|lane| lane.check_write())?;
        self.check()?;
        match self.connection.take() {
            None if self.saved.iter().all(|(_, batch)| batch.is_empty()) => {
                self.check_skipped().await?;
            }
            None => self.commit_all(random_id()).await?,
            Some(connection) => self.commit_rest(connection, random_id()).await?,
        }
        let mut batches: Vec<Vec<Batch>> = self.lanes.iter().map(|_| Vec::new()).collect();
        for (lane, batch) in self.saved {
            batches[lane].push(batch);
        }
        for (lane, batches) in self.lanes.iter().zip(batches) {
            Batch::committed(batches, &lane.cache);
        }
        Ok(())
    }

    /// Where a save found what it would write, the lane must still be ours.
    async fn check_skipped(&self) -> Result<(), Error> {
        for (place, lane) in self.lanes.iter().enumerate() {
            if self.saved.iter().any(|(of, batch)| *of == place && batch.has_skipped()) {
                lane.check_current(&self.database).await?;
            }
        }
        Ok(())
    }

    /// Commits what is open, with the rest of the saves.
    async fn commit_rest(
        &self,
        connection: TransactionConnection,
        transaction: [u8; 16],
    ) -> Result<(), Error> {
        match self.commit_on(connection, false, &self.unsent(), transaction).await {
            Err(error) if self.may_repeat(&error) => self.commit_all(transaction).await,
            Err(error) => self.explain_commit(transaction, error).await,
            Ok(()) => Ok(()),
        }
    }

    /// Commits all saves under this id, in one round trip; tries again when it surely had no effect and
    /// the reason may pass. A transaction that was begun elsewhere keeps its id, for it may have been
    /// committed.
    async fn commit_all(&self, transaction: [u8; 16]) -> Result<(), Error> {
        let started = Instant::now();
        let batches: Vec<&Batch> = self.saved.iter().map(|(_, batch)| batch).collect();
        let commit = || async {
            let connection = TransactionConnection::new(self.database.connection().await?);
            self.commit_on(connection, true, &batches, transaction).await
        };
        let result = self.database.retry().run("commit", Error::is_retryable, commit).await;
        if let Err(error) = result {
            self.explain_commit(transaction, error).await?;
        }
        debug!(
            batches = batches.len(),
            rows = batches.iter().map(|batch| batch.rows()).sum::<usize>(),
            bytes = batches.iter().map(|batch| batch.bytes()).sum::<usize>(),
            elapsed = ?started.elapsed(),
            "committed"
        );
        Ok(())
    }

    async fn commit_on(
        &self,
        connection: TransactionConnection,
        begins: bool,
        batches: &[&Batch],
        transaction: [u8; 16],
    ) -> Result<(), Error> {
        let begin = begins.then(|| self.database.idle_timeout());
        let exchange = Exchange { lanes: &self.lanes, begin, batches, commit: Some(transaction) };
        match exchange.send(&self.database, connection).await {
            Ok(()) => Ok(()),
            Err(failure) => self.resolve(failure, transaction).await,
        }
    }

    /// What became of a failed transaction: `Ok` when it was committed all the same, an error when it
    /// was not and never will be.
    async fn resolve(&self, failure: Failure, transaction: [u8; 16]) -> Result<(), Error> {
        // Perhaps another server answers now: what readers were told may be older than what it has.
        self.lanes.iter().for_each(|lane| lane.cache.clear());
        let error = match failure {
            Failure::RolledBack(error) | Failure::Incomplete(error) => return Err(error),
            Failure::Unknown(error) => error,
        };
        warn!(%error, "a commit has an unknown outcome: asking the server");
        let mut is_committed = false;
        for lane in &self.lanes {
            is_committed = lane.resolve(&self.database, transaction).await?;
        }
        if is_committed { Ok(()) } else { Err(as_transient(error)) }
    }

    /// Explains why `transaction` was refused; `Ok` when it turns out to have been committed.
    pub(super) async fn explain_commit(
        &self,
        transaction: [u8; 16],
        error: Error,
    ) -> Result<(), Error> {
        let (mut explained, mut is_committed) = (error.clone(), false);
        // Of each lane, for a commit has moved them all.
        for lane in &self.lanes {
            match lane.explain_commit(&self.database, transaction, error.clone()).await {
                Ok(()) => is_committed = true,
                Err(error) => explained = error,
            }
        }
        if is_committed { Ok(()) } else { Err(explained) }
    }
}

/// A transaction that is known to have had no effect can be repeated, however it failed.
fn as_transient(error: Error) -> Error {
    match error {
        error if error.is_retryable() => error,
        Error::Database(error) => error.after_unknown_outcome().into(),
        error => DatabaseError::broken(error.to_string()).into(),
    }
}
