//! The settings of ownership, and of what failing connections may cost.

use std::time::Duration;

use super::PostgresStoreConfig;
use crate::{Access, Takeover};

impl PostgresStoreConfig {
    /// What the store does with the account, [`Access::Exclusive`] by default.
    ///
    /// ```
    /// # use matrix_sdk_postgres::{Access, PostgresStoreConfig};
    /// let config =
    ///     PostgresStoreConfig::new("postgres://localhost/bots", "my-bot").access(Access::ReadOnly);
    /// ```
    #[must_use]
    pub fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// What an exclusive opener does when the account has an owner that is alive,
    /// [`Takeover::Immediate`] by default.
    ///
    /// ```
    /// # use matrix_sdk_postgres::{Takeover, PostgresStoreConfig};
    /// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot")
    ///     .takeover(Takeover::RefuseIfAlive);
    /// ```
    #[must_use]
    pub fn takeover(mut self, takeover: Takeover) -> Self {
        self.takeover = takeover;
        self
    }

    /// How this owner is called in the errors of others, `matrix-sdk-postgres` by default: the host's
    /// name and the process are added. Stored in clear. Up to 255 bytes without control characters.
    ///
    /// ```
    /// # use matrix_sdk_postgres::PostgresStoreConfig;
    /// let config =
    ///     PostgresStoreConfig::new("postgres://localhost/bots", "my-bot").owner_label("blue");
    /// ```
    #[must_use]
    pub fn owner_label(mut self, label: &str) -> Self {
        label.clone_into(&mut self.owner_label);
        self
    }

    /// How often the process shows that it is alive, every 2 seconds by default.
    ///
    /// Three intervals after the last time its accounts count as free: a standby takes over, and a
    /// refusal ends. It is one small write a process, not an account, on a connection of its own and
    /// without waiting for the disk. Of several stores in a process the shortest interval counts.
    /// Make it longer for a server that sleeps when it is idle.
    ///
    /// From 10 ms to 1 day.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use matrix_sdk_postgres::PostgresStoreConfig;
    /// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot")
    ///     .heartbeat_interval(Duration::from_secs(60));
    /// ```
    #[must_use]
    pub fn heartbeat_interval(mut self, interval: Duration) -> Self {
        self.heartbeat_interval = interval;
        self
    }

    /// How long the server waits for us within a transaction, 1 second by default; then it rolls the
    /// transaction back. It bounds how long an owner that was cut off or stopped holds up the one
    /// that takes over. A write above 64 KiB gets up to 33 s more.
    ///
    /// From 10 ms to 1 day.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use matrix_sdk_postgres::PostgresStoreConfig;
    /// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot")
    ///     .transaction_idle_timeout(Duration::from_secs(5));
    /// ```
    #[must_use]
    pub fn transaction_idle_timeout(mut self, timeout: Duration) -> Self {
        self.transaction_idle_timeout = timeout;
        self
    }

    /// For how long an operation is tried again, 15 seconds by default: enough to outlast a restart of
    /// the server. The last try may take its own time. At opening, only the pauses between tries count.
    /// Then its error is returned.
    ///
    /// A login that is refused, with whatever code, is retried too: servers that start and poolers
    /// that wait for theirs refuse it for some seconds. A refused password (28P01, 28000) is retried
    /// where its source is read again for each connection
    /// ([`password_callback`](Self::password_callback), [`password_file`](Self::password_file),
    /// `passfile`), as a new one may reach us late. Opening reports at once that a server cannot be
    /// reached, and that a database does not exist.
    ///
    /// From 10 ms to 1 day.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use matrix_sdk_postgres::PostgresStoreConfig;
    /// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot")
    ///     .retry_timeout(Duration::from_secs(60));
    /// ```
    #[must_use]
    pub fn retry_timeout(mut self, timeout: Duration) -> Self {
        self.retry_timeout = timeout;
        self
    }

    /// Accepts a server that runs with `fsync` or `synchronous_commit` off, without the warning.
    ///
    /// After a crash such a server has forgotten commits that it acknowledged. For a store of keys
    /// that means ratchets that go back: messages encrypted twice with one key, and messages that
    /// can no longer be read.
    ///
    /// ```
    /// # use matrix_sdk_postgres::PostgresStoreConfig;
    /// let config = PostgresStoreConfig::new("postgres://localhost/throwaway", "my-bot")
    ///     .accept_unsafe_durability(true);
    /// ```
    #[must_use]
    pub fn accept_unsafe_durability(mut self, accept: bool) -> Self {
        self.accept_unsafe_durability = accept;
        self
    }

    /// How many bytes of rows an exclusive owner keeps in memory, 16 MiB by default; 0 for none.
    ///
    /// Nobody else changes what it owns, so it need not ask twice: room keys, devices, identities of
    /// users, tracked users and requests not sent yet are answered from memory once they were read or
    /// saved. They are kept as they are stored, sealed in an encrypted account, and wiped when they
    /// are let go. The cache of a store that is [`Access::ReadOnly`] is off.
    ///
    /// ```
    /// # use matrix_sdk_postgres::PostgresStoreConfig;
    /// let config =
    ///     PostgresStoreConfig::new("postgres://localhost/bots", "my-bot").cache_bytes(64 << 20);
    /// ```
    #[must_use]
    pub fn cache_bytes(mut self, bytes: usize) -> Self {
        self.cache_bytes = bytes;
        self
    }

    /// Of how many keys of each table an exclusive owner knows that they are there, 100 000 by
    /// default; 0 for none.
    ///
    /// What is not among them is not asked for. They are fetched once, 8 bytes each, when a table is
    /// first asked; of a table that has more, none are kept.
    ///
    /// ```
    /// # use matrix_sdk_postgres::PostgresStoreConfig;
    /// let config =
    ///     PostgresStoreConfig::new("postgres://localhost/bots", "my-bot").cache_max_keys(1_000_000);
    /// ```
    #[must_use]
    pub fn cache_max_keys(mut self, keys: usize) -> Self {
        self.cache_max_keys = keys;
        self
    }
}
