//! Settings of the connection pool.

use std::time::Duration;

use super::PostgresStoreConfig;

/// Settings of the connection pool that [`PostgresStoreConfig::build_pool`] builds, or a store that is
/// opened without one; set with [`PostgresStoreConfig::pool`]. Later versions may have more fields: end
/// with `..Default::default()`.
///
/// A store that is opened with [`open_with_pool`](crate::PostgresCryptoStore::open_with_pool) uses that
/// pool as it was built, and ignores these settings.
///
/// ```
/// use std::time::Duration;
///
/// use matrix_sdk_postgres::{PoolSettings, PostgresStoreConfig};
///
/// let config = PostgresStoreConfig::new("postgres://db1,db2/bots", "my-bot").pool(PoolSettings {
///     max_size: 2,
///     connect_timeout: Some(Duration::from_secs(4)),
///     ..Default::default()
/// });
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSettings {
    /// How many connections the pool may open, 8 by default; they are opened when needed.
    ///
    /// From 1 to 10 000. Keep the sum over all processes below the server's `max_connections`.
    pub max_size: usize,

    /// How long an operation waits for a free connection, 30 seconds by default; after that it
    /// fails with [`Error::PoolTimeout`](crate::Error::PoolTimeout).
    ///
    /// From 10 ms to 1 day.
    pub wait_timeout: Duration,

    /// How long making a connection may take: name resolution, TCP, TLS, the password's source and
    /// login together, over all hosts of the connection string. With `None`, the default, it is the
    /// connection string's `connect_timeout`, else 10 seconds.
    ///
    /// Each address that is still to be tried gets an equal part of the time that is left, so that a
    /// dead first server leaves time for the second. When it runs out, opening fails with
    /// [`OpenStoreError::Connect`](crate::OpenStoreError::Connect).
    ///
    /// From 10 ms to 1 day.
    pub connect_timeout: Option<Duration>,

    /// How old a connection may grow before it is replaced, 30 minutes by default; `None` for no
    /// limit.
    ///
    /// New connections follow a changed DNS entry, a moved primary and a rotated password. A
    /// connection in use is never closed.
    ///
    /// From 1 ms to 365 days.
    pub max_connection_age: Option<Duration>,

    /// How long a connection may be idle before it is replaced instead of used again, 10
    /// minutes by default; `None` for no limit.
    ///
    /// Whenever a connection is taken, all that are idle or old for too long are closed. Keep it below the idle
    /// timeout of firewalls and poolers on the way.
    ///
    /// From 1 ms to 365 days.
    pub max_connection_idle: Option<Duration>,

    /// Whether statements are prepared by name, `true` by default.
    ///
    /// `false` sends typed, unnamed statements: some tenths slower, but correct behind every
    /// pooler in transaction mode. pgbouncer before 1.21 needs it.
    pub prepared_statements: bool,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            max_size: 8,
            wait_timeout: Duration::from_secs(30),
            connect_timeout: None,
            max_connection_age: Some(Duration::from_secs(30 * 60)),
            max_connection_idle: Some(Duration::from_secs(10 * 60)),
            prepared_statements: true,
        }
    }
}

impl PostgresStoreConfig {
    /// Sets the settings of the connection pool: see [`PoolSettings`].
    ///
    /// ```
    /// # use matrix_sdk_postgres::{PoolSettings, PostgresStoreConfig};
    /// let config = PostgresStoreConfig::new("postgres://pgbouncer:6432/bots", "my-bot")
    ///     .pool(PoolSettings { prepared_statements: false, ..Default::default() });
    /// ```
    #[must_use]
    pub fn pool(mut self, settings: PoolSettings) -> Self {
        self.pool = settings;
        self
    }
}
