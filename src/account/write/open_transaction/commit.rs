//! Commits the transaction, and resolves a commit of unknown outcome.

use std::fmt;

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
    /// Commits, unless there is nothing to write; then updates the caches and runs what waits for
    /// the commit.
    pub(crate) async fn commit(mut self) -> Result<(), Error> {
        // Also refused after a failed read: what its caller derived from the failure must not be
        // stored.
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

    /// Checks the ownership of lanes in which a save skipped rows that were stored already: no
    /// guard has checked it.
    async fn check_skipped(&self) -> Result<(), Error> {
        for (lane_index, lane) in self.lanes.iter().enumerate() {
            if self.saved.iter().any(|(of, batch)| *of == lane_index && batch.has_skipped()) {
                lane.check_current(&self.database).await?;
            }
        }
        Ok(())
    }

    /// Sends the remaining saves, and commits the open transaction.
    async fn commit_rest(
        &self,
        connection: TransactionConnection,
        transaction: [u8; 16],
    ) -> Result<(), Error> {
        match self.commit_on(connection, false, &self.unsent(), transaction).await {
            Err(Uncommitted::NoEffect(error)) if self.may_repeat(&error) => {
                self.commit_all(transaction).await
            }
            Err(Uncommitted::NoEffect(error)) => self.explain_commit(transaction, error).await,
            Err(Uncommitted::Unresolved(error)) => Err(error),
            Ok(()) => Ok(()),
        }
    }

    /// Commits all saves in one round trip; retries a transient failure that certainly had no
    /// effect. The id stays the same in all attempts, because an earlier one may have been
    /// committed.
    async fn commit_all(&self, transaction: [u8; 16]) -> Result<(), Error> {
        let started = Instant::now();
        let batches: Vec<&Batch> = self.saved.iter().map(|(_, batch)| batch).collect();
        let commit = || async {
            let connection = self.database.connection().await.map_err(Uncommitted::NoEffect)?;
            let connection = TransactionConnection::new(connection);
            self.commit_on(connection, true, &batches, transaction).await
        };
        match self.database.retry().run("commit", Uncommitted::is_retryable, commit).await {
            Ok(()) => {}
            Err(Uncommitted::NoEffect(error)) => self.explain_commit(transaction, error).await?,
            Err(Uncommitted::Unresolved(error)) => return Err(error),
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
    ) -> Result<(), Uncommitted> {
        let begin = begins.then(|| self.database.idle_timeout());
        let exchange = Exchange { lanes: &self.lanes, begin, batches, commit: Some(transaction) };
        match exchange.send(&self.database, connection).await {
            Ok(()) => Ok(()),
            Err(failure) => self.resolve(failure, transaction).await,
        }
    }

    /// Resolves the outcome of a failed transaction: `Ok` when it was committed after all.
    async fn resolve(&self, failure: Failure, transaction: [u8; 16]) -> Result<(), Uncommitted> {
        // After a failover the server may have other rows than the cache.
        self.lanes.iter().for_each(|lane| lane.cache.clear());
        let error = match failure {
            Failure::RolledBack(error) if error.is_other_position() => {
                return Err(self.follow_fences(error).await);
            }
            Failure::RolledBack(error) | Failure::Incomplete(error) => {
                return Err(Uncommitted::NoEffect(error));
            }
            Failure::Unknown(error) => error,
        };
        warn!(%error, "a commit has an unknown outcome: resolving it with a fence");
        let mut is_committed = false;
        for lane in &self.lanes {
            let resolved = lane.resolve(&self.database, transaction).await;
            is_committed = resolved.map_err(Uncommitted::Unresolved)?;
        }
        if is_committed { Ok(()) } else { Err(Uncommitted::NoEffect(as_transient(error))) }
    }

    /// After a refusal because of a position: a fence of this owner whose answer was lost may have
    /// moved a lane. Then the transaction is sent again, from the lane's current position.
    async fn follow_fences(&self, error: Error) -> Uncommitted {
        let mut has_moved = false;
        for lane in &self.lanes {
            match lane.follow_fence(&self.database).await {
                Ok(is_fenced) => has_moved |= is_fenced,
                Err(error) => return Uncommitted::Unresolved(error),
            }
        }
        Uncommitted::NoEffect(if has_moved { as_transient(error) } else { error })
    }

    /// Explains why `transaction` was refused; `Ok` when it turns out to have been committed.
    pub(super) async fn explain_commit(
        &self,
        transaction: [u8; 16],
        error: Error,
    ) -> Result<(), Error> {
        let (mut explained, mut is_committed) = (error.clone(), false);
        // Checks every lane, because a commit moves all of them.
        for lane in &self.lanes {
            match lane.explain_commit(&self.database, transaction, error.clone()).await {
                Ok(()) => is_committed = true,
                Err(error) => explained = error,
            }
        }
        if is_committed {
            return Ok(());
        }
        // A loss found in one lane is a loss of the account.
        self.lanes.iter().try_for_each(|lane| lane.check())?;
        Err(explained)
    }
}

/// Why a transaction was not committed, as far as it is known.
enum Uncommitted {
    /// It had no effect, and never will have.
    NoEffect(Error),
    /// Its outcome could not be resolved: it must not be sent again.
    Unresolved(Error),
}

impl Uncommitted {
    fn is_retryable(&self) -> bool {
        matches!(self, Self::NoEffect(error) if error.is_retryable())
    }
}

impl fmt::Display for Uncommitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::NoEffect(error) | Self::Unresolved(error)) = self;
        error.fmt(f)
    }
}

/// A transaction that certainly had no effect can be retried, whatever its error.
fn as_transient(error: Error) -> Error {
    match error {
        error if error.is_retryable() => error,
        Error::Database(error) => error.after_unknown_outcome().into(),
        error => DatabaseError::broken(error.to_string()).into(),
    }
}
