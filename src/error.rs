//! What can go wrong, and what to do about it.
//!
//! No message, `Debug` output or source of these errors holds a row, a key, a passphrase or a
//! password: of what PostgreSQL says, the SQLSTATE, the table and the constraint are kept, and the
//! primary message only where it cannot quote data.

mod database;

use std::time::SystemTime;

use matrix_sdk_crypto::CryptoStoreError;

pub use self::database::DatabaseError;

/// An error of an open store.
///
/// A [`CryptoStoreError::Backend`] that comes out of an `OlmMachine` can be downcast to it:
///
/// ```
/// use matrix_sdk_crypto::CryptoStoreError;
/// use matrix_sdk_postgres::Error;
///
/// fn must_reopen(error: &CryptoStoreError) -> bool {
///     match error {
///         CryptoStoreError::Backend(inner) => {
///             // After `Superseded` and `Rewound` there is no going on: end the bot.
///             let error = inner.downcast_ref::<Error>();
///             !matches!(
///                 error,
///                 Some(
///                     Error::Superseded { .. }
///                         | Error::Rewound
///                         | Error::ObserveOnly
///                         | Error::NotInAtomically
///                         | Error::CloseInAtomically
///                 )
///             )
///         }
///         _ => false,
///     }
/// }
/// # assert!(must_reopen(&CryptoStoreError::from(Error::ReopenRequired)));
/// ```
#[derive(Debug, Clone, thiserror::Error)]
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
    /// written, and this store is of no use any more; `reopen()` takes nothing back. End the bot, or
    /// at least do not restart it by itself.
    #[error("the account was taken over by {by}: this store must not be used any more")]
    Superseded {
        /// The new owner: its label, host and process.
        by: String,
        /// When it took over, by the server's clock.
        since: SystemTime,
    },

    /// The database has fewer commits than this store has made in it: it was restored from a backup,
    /// or failed over to a standby that had not received them. Nothing was written. The ratchets in
    /// it are old: begin with a new device.
    #[error(
        "the database is older than what this store has committed: its ratchets have gone back, so \
         begin with a new device"
    )]
    Rewound,

    /// The store was opened with [`Access::Observe`](crate::Access::Observe), which writes nothing.
    #[error("this store only observes: open it with another access to write")]
    ObserveOnly,

    /// No account has been loaded or saved yet, and the operation needs one. An `OlmMachine` loads
    /// or creates it when it is built.
    #[error("no Olm account is loaded: build an OlmMachine on this store first")]
    AccountUnset,

    /// A row cannot be decoded: it was damaged, moved from another place, or written by a newer
    /// version. Nothing was changed. Restore the row from a backup, or delete it if its loss is
    /// acceptable.
    #[error("a row of table {table} cannot be read ({reason}): restore it from a backup")]
    BadRow {
        /// The table that holds the row.
        table: &'static str,
        /// Which step failed; never data.
        reason: &'static str,
    },

    /// A value cannot be serialised or sealed. Nothing was written.
    #[error("a value for table {table} cannot be encoded")]
    Encode {
        /// The table the value was meant for.
        table: &'static str,
    },

    /// The database answered with an error, or the connection broke.
    #[error("the database failed: {0}")]
    Database(#[from] DatabaseError),

    /// All connections of the pool stayed busy for the whole `pool_timeout`, or no new one could
    /// be made in time. Raise `pool_max_size`, or look for what holds the connections.
    #[error("no database connection became free within the pool timeout: raise pool_max_size")]
    PoolTimeout,

    /// The database did not answer within `statement_timeout`.
    #[error("the database did not answer within the statement timeout")]
    StatementTimeout,

    /// The future given to [`atomically`](crate::PostgresCryptoStore::atomically) held the account for
    /// longer than [`atomically_timeout`](crate::PostgresStoreConfig::atomically_timeout), perhaps
    /// because it was not polled any more. Nothing of it was written. Wrap the processing only, not the waiting for a server.
    #[error("what is done atomically took too long, and was rolled back: wrap less, or allow more")]
    AtomicallyTimeout,

    /// `atomically` was called within `atomically`. Nothing was written.
    #[error("atomically() cannot be nested")]
    NestedAtomically,

    /// The transaction's handle was asked for, or used, outside of its
    /// [`atomically`](crate::PostgresCryptoStore::atomically).
    #[error("there is no transaction outside of atomically()")]
    NotInAtomically,

    /// A statement given to [`Transaction::query`](crate::Transaction::query) would have ended the
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
    /// [`atomically`](crate::PostgresCryptoStore::atomically) of the same store: it would wait for
    /// itself. Nothing was done. Call it before or after.
    #[error("a store cannot be closed or reopened within its own atomically()")]
    CloseInAtomically,

    /// Another store was used within `atomically`: its work cannot be part of the transaction, and
    /// would not be undone with it. Use it before or after.
    #[error("another store cannot be used within atomically()")]
    OtherStoreInAtomically,

    /// `reopen()` could not open the store.
    #[error(transparent)]
    Reopen(Box<OpenStoreError>),
}

impl From<Error> for CryptoStoreError {
    fn from(error: Error) -> Self {
        match error {
            Error::AccountUnset => Self::AccountUnset,
            other => Self::backend(other),
        }
    }
}

/// An error that keeps a store from being opened.
///
/// Nothing has been written when one of these is returned, except by a migration, and the row of a
/// new account, that committed before.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum OpenStoreError {
    /// The URL, a file it names, or another setting is malformed.
    #[error("invalid configuration: {0}")]
    InvalidConfig(String),

    /// The server cannot be reached: wrong address, not running, or a firewall in between.
    #[error("cannot connect to PostgreSQL: {0}: check the address and that the server is running")]
    Connect(DatabaseError),

    /// TLS was asked for and could not be established: the server offers none, or its certificate
    /// did not verify.
    #[error("TLS to PostgreSQL was refused: {0}")]
    Tls(String),

    /// The server refused the user, the password or the database.
    #[error("PostgreSQL refused the login: {0}: check user, password and database name")]
    Authentication(DatabaseError),

    /// The role lacks a privilege. `docs/operations.md` lists the grants.
    #[error("permission denied: {what}: {source}")]
    PermissionDenied {
        /// What was attempted.
        what: &'static str,
        /// The server's answer.
        source: DatabaseError,
    },

    /// The server is older than this crate supports.
    #[error("PostgreSQL {found} is too old: version {required} or newer is needed")]
    ServerTooOld {
        /// The server's major version.
        found: i32,
        /// The oldest supported major version.
        required: i32,
    },

    /// The schema was migrated by a newer version of this crate, in a way this version does not
    /// understand.
    #[error("the schema has version {found}, this crate knows {supported}: upgrade the program")]
    SchemaTooNew {
        /// The newest migration that was applied.
        found: i32,
        /// The newest migration that this crate knows.
        supported: i32,
    },

    /// The schema is missing or old, and `run_migrations(false)` was set.
    #[error(
        "the schema has version {found}, version {required} is needed: run the migrations with a \
         role that may, or set run_migrations(true)"
    )]
    MigrationsPending {
        /// The newest migration that was applied; 0 when there is no schema yet.
        found: i32,
        /// The version this crate needs.
        required: i32,
    },

    /// The account is encrypted with another passphrase.
    #[error("wrong passphrase for account {account:?}")]
    WrongPassphrase {
        /// The account's name.
        account: String,
    },

    /// The account is encrypted with another key.
    #[error("wrong key for account {account:?}")]
    WrongKey {
        /// The account's name.
        account: String,
    },

    /// The account is encrypted with a passphrase, and a key was given.
    #[error("account {account:?} is encrypted with a passphrase, but a key was given")]
    KeyInsteadOfPassphrase {
        /// The account's name.
        account: String,
    },

    /// The account is encrypted with a key, and a passphrase was given.
    #[error("account {account:?} is encrypted with a key, but a passphrase was given")]
    PassphraseInsteadOfKey {
        /// The account's name.
        account: String,
    },

    /// The account is encrypted, and neither passphrase nor key was given.
    #[error("account {account:?} is encrypted: give its passphrase or key")]
    EncryptedWithoutSecret {
        /// The account's name.
        account: String,
    },

    /// The account was created without encryption, and a passphrase or key was given.
    #[error(
        "account {account:?} is not encrypted: open it without passphrase or key, or use another \
         account name"
    )]
    PlainWithSecret {
        /// The account's name.
        account: String,
    },

    /// Somebody else has the account open and is alive.
    #[error(
        "account {account:?} is in use by {owner}: stop it first, wait for it, or take the account \
         over"
    )]
    OwnerAlive {
        /// The account's name.
        account: String,
        /// The owner: its label, host and process.
        owner: String,
        /// Since when it owns the account, by the server's clock.
        since: SystemTime,
    },

    /// There is no such account, and [`Access::Observe`](crate::Access::Observe) creates none.
    #[error("there is no account {account:?} to observe")]
    AccountNotFound {
        /// The account's name.
        account: String,
    },

    /// The server accepts no writes: it is a standby.
    /// [`target_session_attrs=read-write`](crate::PostgresStoreConfig::new) finds the primary among
    /// several hosts, and [`Access::Observe`](crate::Access::Observe) needs none.
    #[error("the server is a read-only standby: connect to the primary")]
    ReadOnlyServer,

    /// The role may not write: `default_transaction_read_only` is on for the role, the database or the
    /// server, which is not a standby. Nothing was written.
    /// [`Access::Observe`](crate::Access::Observe) may use such a role.
    #[error(
        "the role {role:?} is read-only: default_transaction_read_only is on for the role, the \
         database or the server; use another role, or ALTER ROLE … RESET default_transaction_read_only"
    )]
    ReadOnlyRole {
        /// The role that logged in.
        role: String,
    },

    /// The account's cipher was written by a newer minor version, in a form this one cannot read.
    #[error(
        "the cipher of account {account:?} was written by version 0.{written_by}: upgrade the \
         program"
    )]
    CipherTooNew {
        /// The account's name.
        account: String,
        /// The minor version of this crate that wrote it.
        written_by: i16,
    },

    /// The account's row holds the cipher of another account: rows were exchanged in the database, or
    /// the account was renamed there. Nothing was read or written. Restore the rows of table
    /// `accounts` from a backup.
    #[error(
        "the row of account {account:?} holds the cipher of another account: accounts were exchanged \
         or renamed in the database; restore the rows of table accounts from a backup"
    )]
    ForeignCipher {
        /// The account's name.
        account: String,
    },

    /// The account's cipher could not be created or read, for a reason that is neither the
    /// passphrase nor the version.
    #[error("the cipher of account {account:?} is unusable")]
    Cipher {
        /// The account's name.
        account: String,
    },

    /// The database failed while the store was being opened.
    #[error(transparent)]
    Store(#[from] Error),
}

impl OpenStoreError {
    /// The server refused `what`: for want of a privilege, or for another reason.
    pub(crate) fn refused(source: DatabaseError, what: &'static str) -> Self {
        match source.sqlstate() {
            Some("42501") => Self::PermissionDenied { what, source },
            _ => source.into(),
        }
    }
}

impl From<DatabaseError> for OpenStoreError {
    fn from(error: DatabaseError) -> Self {
        Self::Store(Error::Database(error))
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database(error.into())
    }
}
