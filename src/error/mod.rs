//! The crate's errors, and what to do about each.
//!
//! No message, `Debug` output or source of these errors holds a row, a key, a passphrase or a
//! password: of a PostgreSQL error, the SQLSTATE, the table and the constraint are kept, and the primary
//! message only where it cannot quote data.

mod database;
mod open;
mod predicates;
#[cfg(test)]
mod tests;

use std::{fmt, time::SystemTime};

pub(crate) use self::predicates::{
    has_io_cause, is_permission_denied_by_driver, refuses_credentials, refuses_entry, refuses_login,
};
pub use self::{database::DatabaseError, open::OpenStoreError};

/// An error of an open store.
///
/// A [`CryptoStoreError::Backend`](matrix_sdk_crypto::CryptoStoreError::Backend) that an `OlmMachine` returns can be downcast to it:
///
/// ```
/// use matrix_sdk_crypto::CryptoStoreError;
/// use matrix_sdk_postgres::Error;
///
/// fn must_reopen(error: &CryptoStoreError) -> bool {
///     match error {
///         CryptoStoreError::Backend(inner) => {
///             // `Superseded` and `DatabaseRolledBack`, for example, are permanent: end the bot.
///             inner.downcast_ref::<Error>().is_none_or(|error| !error.is_permanent())
///         }
///         _ => false,
///     }
/// }
/// # assert!(must_reopen(&CryptoStoreError::from(Error::ReopenRequired)));
/// ```
#[derive(Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store was closed with `close()`; `reopen()` opens it again.
    #[error("the store is closed: call reopen() before using it again")]
    StoreClosed,

    /// An earlier operation failed, so the SDK's memory may be ahead of the database, and a write
    /// now could make the loss permanent. Drop the `OlmMachine`, call `reopen()` (or open a new
    /// store) and build a new machine.
    #[error(
        "an earlier operation failed, so this store accepts no more writes: drop the OlmMachine, \
         reopen the store and build a new machine"
    )]
    ReopenRequired,

    /// Another process, or another store of this one, has taken the account over. Nothing was
    /// written, and this store cannot be used any more; `reopen()` does not take the account back. End
    /// the bot, or at least do not restart it automatically.
    #[error("the account was taken over by {by}: end this process, and do not restart it at once")]
    Superseded {
        /// The new owner: its label, host and process.
        by: String,
        /// When it took over, by the server's clock. If it is a copy of this process, with the same token:
        /// when that was noticed, by this process's clock.
        since: SystemTime,
    },

    /// The database has fewer commits than this store has made in it: it was restored from a backup,
    /// or failed over to a standby that had not received them. Nothing was written. Its ratchets are
    /// rolled back: begin with a new device.
    #[error(
        "the database was rolled back and lacks commits of this store, so its ratchets are old: begin \
         with a new device"
    )]
    DatabaseRolledBack,

    /// The store was opened with [`Access::ReadOnly`](crate::Access::ReadOnly), which writes nothing.
    #[error("the store was opened read-only: open it with Access::Exclusive to write")]
    ReadOnly,

    /// No account has been loaded or saved yet, and the operation needs one. An `OlmMachine` loads
    /// or creates it when it is built.
    #[error("no Olm account is loaded: build an OlmMachine on this store first")]
    AccountUnset,

    /// A row cannot be decoded: it was damaged, moved from another row, or written by a newer
    /// version. Nothing was changed. Restore the row from a backup, or delete it if its loss is
    /// acceptable.
    #[error("a row of table {table} cannot be read ({reason}): restore it from a backup")]
    CorruptRow {
        /// The table that holds the row.
        table: &'static str,
        /// Which step failed; never data.
        reason: &'static str,
    },

    /// A value cannot be serialised or sealed. Nothing was written.
    #[error("a value for table {table} cannot be encoded; please report it")]
    Encode {
        /// The table the value was meant for.
        table: &'static str,
    },

    /// The database answered with an error, or the connection broke.
    #[error("the database failed: {0}")]
    Database(#[from] DatabaseError),

    /// All connections of the pool stayed busy for the whole
    /// [`wait_timeout`](crate::PoolSettings::wait_timeout), or no new one could be made in time. Raise
    /// [`max_size`](crate::PoolSettings::max_size), or find out what holds the connections.
    #[error(
        "no database connection became free within PoolSettings::wait_timeout: raise \
         PoolSettings::max_size, or look for what holds the connections"
    )]
    PoolTimeout,

    /// The database did not answer within [`Timeouts::statement`](crate::Timeouts::statement).
    #[error(
        "the database did not answer within Timeouts::statement: look for locks and load, or raise it"
    )]
    StatementTimeout,

    /// The future given to [`atomically`](crate::PostgresCryptoStore::atomically) held the account for
    /// longer than [`Timeouts::atomically`](crate::Timeouts::atomically), perhaps because it was no longer
    /// polled. Nothing was written. Wrap the processing only, not requests to a homeserver.
    #[error(
        "the future of atomically() exceeded its timeout and was rolled back: do less in it, or raise \
         Timeouts::atomically"
    )]
    AtomicallyTimeout,

    /// `atomically` was called within `atomically`. Nothing was written.
    #[error("atomically() cannot be nested: wrap the outer future only")]
    NestedAtomically,

    /// The transaction's handle was requested or used outside of its
    /// [`atomically`](crate::PostgresCryptoStore::atomically).
    #[error(
        "there is no transaction outside of atomically(): call transaction() within its future"
    )]
    NotInAtomically,

    /// A statement given to a [`Transaction`](crate::Transaction) would have ended the
    /// transaction, or went back to a savepoint from before a save of the store. Nothing is
    /// committed. Leave `COMMIT` and `ROLLBACK` to
    /// [`atomically`](crate::PostgresCryptoStore::atomically), and save nothing between `SAVEPOINT`
    /// and `ROLLBACK TO SAVEPOINT`.
    #[error(
        "a statement of the application ends the transaction or undoes saves of the store: leave \
         COMMIT and ROLLBACK to atomically(), and save nothing between SAVEPOINT and ROLLBACK TO"
    )]
    TransactionControl,

    /// `close()` or `reopen()` was called within
    /// [`atomically`](crate::PostgresCryptoStore::atomically) of the same store, where it would wait for
    /// itself. Nothing was done. Call it before or after.
    #[error(
        "a store cannot be closed or reopened within its own atomically(): do it before or after"
    )]
    CloseInAtomically,

    /// Another store was used within `atomically`: its writes cannot be part of the transaction, and
    /// would not be rolled back with it. Use it before or after.
    #[error("another store cannot be used within atomically(): use it before or after")]
    OtherStoreInAtomically,

    /// A bug in this crate, or in something between it and the server. Report it.
    #[error("internal error: {0}; please report it")]
    Internal(&'static str),

    /// `reopen()` could not open the store.
    #[error(transparent)]
    Reopen(Box<OpenStoreError>),
}

/// The text: a `main` prints the error that it returns with `Debug`.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error {
    /// The error for a task of the store that ended without a result: its runtime was shut down, or it
    /// panicked.
    pub(crate) fn of_task(error: &tokio::task::JoinError) -> Self {
        match error.is_panic() {
            true => Self::Internal("a task panicked"),
            false => Self::StoreClosed,
        }
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database(error.into())
    }
}
