//! Who may have an account open, and what happens when somebody else has.

use std::time::Duration;

/// What a store does with its account.
///
/// ```
/// use matrix_sdk_postgres::{Access, PostgresStoreConfig};
///
/// // A dashboard beside a running bot.
/// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot")
///     .access(Access::ReadOnly);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// Owns the account: from now on, writes of whoever owned it before fail with
    /// [`Error::Superseded`](crate::Error::Superseded).
    #[default]
    Exclusive,

    /// Takes nothing and writes nothing; writes fail with
    /// [`Error::ReadOnly`](crate::Error::ReadOnly). Neither schema nor account is created.
    ReadOnly,
}

/// What an opener does when the account has an owner that is alive: one whose
/// process renewed its heartbeat within the last three
/// [`heartbeat_interval`](crate::PostgresStoreConfig::heartbeat_interval)s of its own.
///
/// ```
/// use std::time::Duration;
///
/// use matrix_sdk_postgres::{Takeover, PostgresStoreConfig};
///
/// // A hot standby: waits until the active one ends or dies.
/// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot")
///     .takeover(Takeover::WaitUntilFree(Duration::from_secs(3600)));
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
