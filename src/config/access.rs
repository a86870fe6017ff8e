//! Exclusive or read-only access, and takeover of an account that another process owns.

use std::time::Duration;

use super::PostgresStoreConfig;

/// What a store does with its account, set with [`PostgresStoreConfig::access`].
///
/// ```
/// use matrix_sdk_postgres::{Access, PostgresStoreConfig};
///
/// // A dashboard next to a running bot.
/// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot")
///     .access(Access::ReadOnly);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// Owns the account, the default: once it is open, writes of the former owner fail with
    /// [`Error::Superseded`](crate::Error::Superseded). For some seconds the former owner may
    /// still send messages with indices that it had reserved; they are readable.
    Exclusive(OwnershipSettings),

    /// Does not take the account over, and writes nothing; writes fail with
    /// [`Error::ReadOnly`](crate::Error::ReadOnly). Neither schema nor account is created, and nothing
    /// is cached.
    ReadOnly,
}

impl Default for Access {
    fn default() -> Self {
        Self::Exclusive(OwnershipSettings::default())
    }
}

impl From<OwnershipSettings> for Access {
    fn from(settings: OwnershipSettings) -> Self {
        Self::Exclusive(settings)
    }
}

/// Settings of an account's owner. Later versions may have more fields: end with
/// `..Default::default()`.
///
/// ```
/// use matrix_sdk_postgres::{OwnershipSettings, PostgresStoreConfig, Takeover};
///
/// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot").access(
///     OwnershipSettings {
///         takeover: Takeover::RefuseIfAlive,
///         label: "blue".to_owned(),
///         ..Default::default()
///     },
/// );
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnershipSettings {
    /// What opening does when the account has an owner that is alive, [`Takeover::Immediate`] by
    /// default.
    pub takeover: Takeover,

    /// Name of this owner in other processes' errors, `matrix-sdk-postgres` by default: the host's name
    /// and the process id are added. Stored in clear text. Up to 255 bytes without control characters.
    pub label: String,

    /// A name that at most one process has at a time, such as that of a StatefulSet's pod, or of a systemd
    /// unit with the host's name; none by default. A process that opens the account under the name of its
    /// former owner does not wait for that owner's heartbeat to expire: something else guarantees that the
    /// former process has ended. A store that is open in the same process is alive. Of no use with
    /// [`Takeover::Immediate`], which waits for no heartbeat.
    ///
    /// Without it, the account of a process that was killed is free at once only for a process of the
    /// same host and PID namespace that sees all processes, on Linux. Never give the name to two processes
    /// that may run at once: the later one takes the account over, as with [`Takeover::Immediate`]. Stored in
    /// clear text. 1 to 255 bytes without control characters.
    ///
    /// ```
    /// use matrix_sdk_postgres::{OwnershipSettings, PostgresStoreConfig, Takeover};
    ///
    /// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot").access(
    ///     OwnershipSettings {
    ///         takeover: Takeover::RefuseIfAlive,
    ///         ..OwnershipSettings::default().instance("bot-0")
    ///     },
    /// );
    /// ```
    pub instance: Option<String>,

    /// How often the process renews its heartbeat, every 2 seconds by default.
    ///
    /// Three intervals after its last heartbeat, the process counts as dead:
    /// [`Takeover::WaitUntilFree`] takes its accounts over, and [`Takeover::RefuseIfAlive`] no longer
    /// refuses. A heartbeat is one small write for each process, server and schema, not for each account, on a
    /// dedicated connection, and does not wait for the disk. If stores that share it set different
    /// intervals, the shortest is used. Use a longer one for a server that suspends when it is idle.
    ///
    /// From 10 ms to 1 day.
    pub heartbeat_interval: Duration,

    /// Maximum size of this account's cache in bytes, 16 MiB by default; 0 disables it.
    ///
    /// Only the owner changes the account's rows, so a row that was read or saved needs no second query:
    /// room keys, devices, identities of users, tracked users and requests not sent yet are served from
    /// memory. Rows are cached as they are stored, sealed in an encrypted account, and wiped when they
    /// are dropped.
    ///
    /// An eighth of it holds the key sets of the larger tables, at 16 bytes a key: 131 072 keys by
    /// default. A lookup of a key outside a complete set returns nothing without a query. The key set of
    /// a table is fetched once, when the table is first read; one that does not fit next to the others
    /// is not kept at all.
    pub cache_bytes: usize,
}

impl Default for OwnershipSettings {
    fn default() -> Self {
        Self {
            takeover: Takeover::default(),
            label: "matrix-sdk-postgres".to_owned(),
            instance: None,
            heartbeat_interval: Duration::from_secs(2),
            cache_bytes: 16 << 20,
        }
    }
}

impl OwnershipSettings {
    /// Sets [`instance`](Self::instance).
    #[must_use]
    pub fn instance(mut self, name: impl Into<String>) -> Self {
        self.instance = Some(name.into());
        self
    }
}

/// What opening does when the account has an owner that is alive: one whose process renewed its
/// heartbeat within the last three of its own
/// [`heartbeat_interval`](OwnershipSettings::heartbeat_interval)s. An owner that has certainly ended is
/// not alive: the opener sees that its process is gone, on the same host and in the same PID namespace
/// of Linux, or has its [`instance`](OwnershipSettings::instance).
///
/// ```
/// use std::time::Duration;
///
/// use matrix_sdk_postgres::{OwnershipSettings, PostgresStoreConfig, Takeover};
///
/// // A hot standby: waits until the active one ends or dies.
/// let takeover = Takeover::WaitUntilFree(Duration::from_secs(3600));
/// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot")
///     .access(OwnershipSettings { takeover, ..Default::default() });
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Takeover {
    /// Takes the account over: the newest wins.
    #[default]
    Immediate,

    /// Fails with [`OpenStoreError::OwnerAlive`](crate::OpenStoreError::OwnerAlive), which names the
    /// owner.
    RefuseIfAlive,

    /// Waits until the owner has closed its store or is no longer alive, for this long at most; then
    /// fails as [`Takeover::RefuseIfAlive`] does. From zero to `Duration::MAX`, which waits for ever.
    WaitUntilFree(Duration),
}

impl PostgresStoreConfig {
    /// What the store does with the account: [`Access::ReadOnly`], or [`OwnershipSettings`] for
    /// [`Access::Exclusive`], the default.
    ///
    /// ```
    /// # use matrix_sdk_postgres::{Access, OwnershipSettings, PostgresStoreConfig, Takeover};
    /// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot");
    /// let dashboard = config.clone().access(Access::ReadOnly);
    /// let bot = config.access(OwnershipSettings {
    ///     takeover: Takeover::RefuseIfAlive,
    ///     ..Default::default()
    /// });
    /// ```
    #[must_use]
    pub fn access(mut self, access: impl Into<Access>) -> Self {
        self.access = access.into();
        self
    }
}
