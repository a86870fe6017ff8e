//! How long things may take.

use std::time::Duration;

use super::PostgresStoreConfig;

/// How long things may take in an open store, set with [`PostgresStoreConfig::timeouts`]; those of
/// connections are [`PoolSettings`](crate::PoolSettings). Each is from 10 ms to 1 day. Later versions may
/// have more fields: end with `..Default::default()`.
///
/// ```
/// use std::time::Duration;
///
/// use matrix_sdk_postgres::{PostgresStoreConfig, Timeouts};
///
/// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot")
///     .timeouts(Timeouts { statement: Duration::from_secs(20), ..Default::default() });
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// How long the answer to one statement, or to one transaction, may take, 60 seconds by
    /// default; after that the operation fails with
    /// [`Error::StatementTimeout`](crate::Error::StatementTimeout).
    pub statement: Duration,

    /// How long a future may hold the account within
    /// [`atomically`](crate::PostgresCryptoStore::atomically), from its first save on, 30 seconds by
    /// default; after that it is rolled back with
    /// [`Error::AtomicallyTimeout`](crate::Error::AtomicallyTimeout), also when it is not polled any
    /// more. It bounds how long a connection and locks are held, and how long `close()` waits.
    pub atomically: Duration,

    /// How long the server waits for us within a transaction, 1 second by default; then it rolls the
    /// transaction back. It bounds how long an owner that was cut off or stopped delays the one
    /// that takes over. A write above 64 KiB gets up to 33 s more.
    pub transaction_idle: Duration,

    /// For how long after its first failure an operation is tried again, 15 seconds by default: enough
    /// to outlast a restart of the server.
    ///
    /// Within it new attempts are begun, with pauses of up to a second, and each may take its own time.
    /// So a statement that was not answered within [`statement`](Self::statement) is sent once more even
    /// where `retry` is shorter, and an operation takes at most the time of its first attempt, `retry`,
    /// and the time of its last attempt. Then the last error is returned.
    ///
    /// A login that is refused, with whatever code, is retried too: servers that start and poolers
    /// that wait for theirs refuse it for some seconds. A refused password (28P01, 28000) is retried
    /// where its source is read again for each connection
    /// ([`password_callback`](PostgresStoreConfig::password_callback),
    /// [`password_file`](PostgresStoreConfig::password_file), `passfile`), as a new one may reach us
    /// late. Opening reports at once that a server cannot be reached, and that a database does not
    /// exist.
    pub retry: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            statement: Duration::from_secs(60),
            atomically: Duration::from_secs(30),
            transaction_idle: Duration::from_secs(1),
            retry: Duration::from_secs(15),
        }
    }
}

impl PostgresStoreConfig {
    /// How long things may take in the open store: see [`Timeouts`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use matrix_sdk_postgres::{PostgresStoreConfig, Timeouts};
    /// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot")
    ///     .timeouts(Timeouts { retry: Duration::from_secs(60), ..Default::default() });
    /// ```
    #[must_use]
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }
}
