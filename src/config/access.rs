//! Who may have an account open, and what happens when somebody else has.

use std::time::Duration;

/// What a store does with its account.
///
/// ```
/// use matrix_sdk_postgres::{Access, PostgresStoreConfig};
///
/// // A dashboard beside a running bot.
/// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot")
///     .access(Access::Observe);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// Owns the account: from now on, writes of whoever owned it before fail with
    /// [`Error::Superseded`](crate::Error::Superseded).
    #[default]
    Exclusive,

    /// Takes nothing and writes nothing; writes fail with
    /// [`Error::ObserveOnly`](crate::Error::ObserveOnly). Neither schema nor account is created.
    Observe,
}

/// What an opener does when the account has an owner that is alive: one whose
/// process renewed its heartbeat within the last three
/// [`heartbeat_interval`](crate::PostgresStoreConfig::heartbeat_interval)s of its own.
///
/// ```
/// use std::time::Duration;
///
/// use matrix_sdk_postgres::{OnOwner, PostgresStoreConfig};
///
/// // A hot standby: waits until the active one ends or dies.
/// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot")
///     .on_owner(OnOwner::WaitUntilFree(Duration::from_secs(3600)));
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnOwner {
    /// Takes the account over: the newest wins.
    #[default]
    TakeOver,

    /// Fails with [`OpenStoreError::OwnerAlive`](crate::OpenStoreError::OwnerAlive), which names the
    /// owner.
    RefuseIfAlive,

    /// Waits until the owner has closed its store or is no longer alive, for this long at most; then
    /// fails as [`OnOwner::RefuseIfAlive`] does. From zero to `Duration::MAX`, which waits for ever.
    WaitUntilFree(Duration),
}
