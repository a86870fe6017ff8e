//! Whether a store works, for probes.

use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::time::timeout;

use crate::{Error, PostgresCryptoStore, PostgresStores};

/// How a store is: see [`PostgresStores::health`].
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Health {
    /// What it can do, and what to do about it.
    pub status: HealthStatus,
    /// How long the server took to answer; `None` if it did not, or need not be asked.
    pub round_trip: Option<Duration>,
    /// The pool of connections; `None` of a store that is closed.
    pub pool: Option<PoolHealth>,
}

/// What a store can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HealthStatus {
    /// It reads and, unless it was opened read-only, writes.
    Ready,
    /// The server did not answer in time, or answered with an error. It may pass by itself.
    Unreachable,
    /// An operation has failed: `reopen()` it, with a new machine.
    ReopenRequired,
    /// `close()` was called.
    Closed,
    /// Another process has taken the account over. End this one.
    Superseded,
    /// The database was restored from a backup, or failed over to a standby that lacked commits. Stop.
    DatabaseRolledBack,
}

/// The connections of a store's pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PoolHealth {
    /// How many it may have.
    pub max_size: usize,
    /// How many it has.
    pub size: usize,
    /// How many of them are idle.
    pub available: usize,
    /// How many operations wait for one.
    pub waiting: usize,
}

impl Health {
    /// Whether the store does its work.
    pub fn is_ready(&self) -> bool {
        self.status == HealthStatus::Ready
    }
}

impl HealthStatus {
    fn of(error: &Error) -> Self {
        match error {
            Error::ReopenRequired => Self::ReopenRequired,
            Error::StoreClosed => Self::Closed,
            Error::Superseded { .. } => Self::Superseded,
            Error::DatabaseRolledBack => Self::DatabaseRolledBack,
            _ => Self::Unreachable,
        }
    }
}

impl PostgresCryptoStore {
    /// How the store is, for liveness and readiness probes: reads the account's owner from the server, in
    /// one round trip, and waits for `limit` at most. It changes nothing, except that a store which
    /// finds that its account was lost knows it from then on.
    ///
    /// [`HealthStatus::Superseded`] and [`HealthStatus::DatabaseRolledBack`] do not pass: let a liveness
    /// probe fail on them, and a readiness probe on all but [`HealthStatus::Ready`].
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn example(store: matrix_sdk_postgres::PostgresCryptoStore) {
    /// let is_ready = store.health(Duration::from_secs(2)).await.is_ready();
    /// # }
    /// ```
    pub async fn health(&self, limit: Duration) -> Health {
        let operation = match self.handle().operation() {
            Ok(operation) => operation.account(),
            Err(error) => {
                return Health { status: HealthStatus::of(&error), round_trip: None, pool: None };
            }
        };
        let pool = operation.pool_status();
        let pool = Some(PoolHealth {
            max_size: pool.max_size,
            size: pool.size,
            available: pool.available,
            waiting: pool.waiting,
        });
        let began = Instant::now();
        let status = match timeout(limit, operation.verify()).await {
            Ok(Ok(())) => HealthStatus::Ready,
            Ok(Err(error)) => HealthStatus::of(&error),
            Err(_) => HealthStatus::Unreachable,
        };
        let is_answered = matches!(status, HealthStatus::Ready | HealthStatus::ReopenRequired);
        Health { status, round_trip: is_answered.then(|| began.elapsed()), pool }
    }
}

impl PostgresStores {
    /// How the stores are, for probes: see [`PostgresCryptoStore::health`].
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn example(stores: matrix_sdk_postgres::PostgresStores) {
    /// let health = stores.health(Duration::from_secs(2)).await;
    /// println!("{:?}, {:?}", health.status, health.round_trip);
    /// # }
    /// ```
    pub async fn health(&self, limit: Duration) -> Health {
        self.crypto_store().health(limit).await
    }
}
