//! Who may have an account open, and what happens when another process has.

use std::time::Duration;

use super::PostgresStoreConfig;

/// What a store does with its account, set with [`PostgresStoreConfig::access`].
///
/// ```
/// use matrix_sdk_postgres::{Access, PostgresStoreConfig};
///
/// // A dashboard beside a running bot.
/// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot")
///     .access(Access::ReadOnly);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// Owns the account, the default: from now on, writes of whoever owned it before fail with
    /// [`Error::Superseded`](crate::Error::Superseded).
    Exclusive(OwnershipSettings),

    /// Takes nothing and writes nothing; writes fail with
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

/// How an account is owned. Later versions may have more fields: end with
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

    /// How this owner is called in the errors of others, `matrix-sdk-postgres` by default: the host's
    /// name and the process are added. Stored in clear. Up to 255 bytes without control characters.
    pub label: String,

    /// How often the process shows that it is alive, every 2 seconds by default.
    ///
    /// Three intervals after the last time, its accounts count as free: an opener that waits for one takes
    /// it over, and one that refuses no longer does. It is one small write a process, not an account, on a connection of its own and
    /// without waiting for the disk. Of several stores in a process the shortest interval counts.
    /// Make it longer for a server that sleeps when it is idle.
    ///
    /// From 10 ms to 1 day.
    pub heartbeat_interval: Duration,

    /// How many bytes the cache may take, 16 MiB by default; 0 for no cache.
    ///
    /// No other process changes what the owner has read or saved, so the owner need not ask twice:
    /// room keys, devices, identities of users, tracked users and requests not sent yet are answered
    /// from memory once they were read or saved. They are kept as they are stored, sealed in an
    /// encrypted account, and wiped when they are dropped.
    ///
    /// An eighth of it is for which keys the larger tables have, at 16 bytes a key: 131 072 keys by
    /// default. A lookup of a key outside a complete set returns nothing without a query. The keys of a
    /// table are fetched once, when it is first read; of a table whose keys do not fit beside those of the
    /// others, none are kept.
    pub cache_bytes: usize,
}

impl Default for OwnershipSettings {
    fn default() -> Self {
        Self {
            takeover: Takeover::default(),
            label: "matrix-sdk-postgres".to_owned(),
            heartbeat_interval: Duration::from_secs(2),
            cache_bytes: 16 << 20,
        }
    }
}

/// What an opener does when the account has an owner that is alive: one whose
/// process renewed its heartbeat within the last three
/// [`heartbeat_interval`](OwnershipSettings::heartbeat_interval)s of its own.
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
