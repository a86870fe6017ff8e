//! Time limits.

use std::time::Duration;

use super::PostgresStoreConfig;

/// Time limits of an open store, set with [`PostgresStoreConfig::timeouts`]; those of connections are
/// in [`PoolSettings`](crate::PoolSettings). Each is from 10 ms to 1 day. Later versions may
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
    /// default; after that the transaction is rolled back with
    /// [`Error::AtomicallyTimeout`](crate::Error::AtomicallyTimeout), even if the future is no longer
    /// polled. It bounds how long a connection and locks are held, and how long `close()` waits.
    pub atomically: Duration,

    /// `idle_in_transaction_session_timeout` of the store's transactions, 1 second by default:
    /// PostgreSQL rolls a transaction back when its client sends nothing for longer. It bounds how long
    /// an owner that lost its network or was stopped delays a takeover. A write above 64 KiB gets up to
    /// 33 s more.
    pub transaction_idle: Duration,

    /// For how long after its first failure an operation is retried, 15 seconds by default: enough to
    /// outlast a restart of the server.
    ///
    /// New attempts start within this time, with pauses of up to a second; each attempt has its own time
    /// limit. So a statement that was not answered within [`statement`](Self::statement) is sent once
    /// more even if `retry` is shorter, and an operation takes at most the time of its first attempt,
    /// `retry`, and the time of its last attempt. Then the last error is returned.
    ///
    /// A refused login is retried too, whatever its SQLSTATE: while a server starts, it and the poolers
    /// before it refuse logins for some seconds. A refused password (28P01, 28000) is retried
    /// only if its source is read again for each connection
    /// ([`password_callback`](PostgresStoreConfig::password_callback),
    /// [`password_file`](PostgresStoreConfig::password_file), `passfile`), as a rotated password may
    /// arrive late. Opening returns at once when the server cannot be reached or the database does not
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
    /// Sets the time limits of the open store: see [`Timeouts`].
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
