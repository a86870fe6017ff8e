//! Errors of opening a store.

use std::{fmt, time::SystemTime};

use super::{DatabaseError, Error};

/// An error that keeps a store from being opened.
///
/// When one of these is returned, nothing has been written, except a migration or a new account's row
/// that was committed before, and by an operator's function after [`NotReplicated`](Self::NotReplicated).
#[derive(Clone, thiserror::Error)]
#[non_exhaustive]
pub enum OpenStoreError {
    /// The URL, a file it names, or another setting is malformed.
    #[error("invalid configuration: {0}")]
    InvalidConfig(String),

    /// The server cannot be reached: wrong address, not running, or a firewall in between.
    #[error("cannot connect to PostgreSQL: {0}: check the address and that the server is running")]
    Connect(DatabaseError),

    /// TLS was required and could not be established: the server offers none, or its certificate
    /// did not verify.
    #[error("TLS to PostgreSQL was refused: {0}")]
    Tls(String),

    /// The server refused the user, the password or the database.
    #[error("PostgreSQL refused the login: {0}: check user, password and database name")]
    Authentication(DatabaseError),

    /// The role lacks a privilege. `docs/operations.md` lists the grants.
    #[error(
        "permission denied: {what}: {source}: docs/operations.md, \"Roles and grants\", has the grants"
    )]
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
    #[error(
        "the schema's part {part} has version {found}, this crate supports {supported}: upgrade the \
         program"
    )]
    SchemaTooNew {
        /// Which part: `account`, or a store's name.
        part: &'static str,
        /// The newest migration that was applied.
        found: i32,
        /// The newest migration that this crate supports.
        supported: i32,
    },

    /// The schema is missing or old, and `run_migrations(false)` was set.
    #[error(
        "the schema is not migrated: its part {part} has version {found}, {required} is needed; run the \
         migrations with a role that may create tables (matrix-postgres migrate), or set \
         run_migrations(true)"
    )]
    MigrationsPending {
        /// Which part: `account`, or a store's name.
        part: &'static str,
        /// The newest migration that was applied; 0 when there is no schema yet.
        found: i32,
        /// The version this crate needs.
        required: i32,
    },

    /// Of an operator's function ([`admin`](crate::admin)): the schema does not exist, or nothing was
    /// migrated in it.
    #[error(
        "the schema {schema:?} does not exist, or has no tables yet: check its name; matrix-postgres migrate \
         makes it"
    )]
    SchemaNotFound {
        /// The schema's name.
        schema: String,
    },

    /// The schema was made by a checkout from before the first release. Its tables have another form,
    /// and are not migrated.
    #[error(
        "the schema {schema:?} was made by an unreleased version of this crate: drop it (DROP SCHEMA \
         … CASCADE, which deletes its keys), or choose another name with schema()"
    )]
    UnreleasedSchema {
        /// The schema's name.
        schema: String,
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
    #[error(
        "account {account:?} is encrypted with a passphrase, but a key was given: use passphrase()"
    )]
    KeyInsteadOfPassphrase {
        /// The account's name.
        account: String,
    },

    /// The account is encrypted with a key, and a passphrase was given.
    #[error("account {account:?} is encrypted with a key, but a passphrase was given: use key()")]
    PassphraseInsteadOfKey {
        /// The account's name.
        account: String,
    },

    /// The account is encrypted with one kind of secret, and another was given, one of which is a
    /// [`key_provider`](crate::PostgresStoreConfig::key_provider).
    #[error("account {account:?} is encrypted with {stored}, but {given} was given")]
    OtherKindOfSecret {
        /// The account's name.
        account: String,
        /// What it is encrypted with.
        stored: &'static str,
        /// What was given.
        given: &'static str,
    },

    /// The application's [`key_provider`](crate::PostgresStoreConfig::key_provider) failed. Nothing was
    /// written.
    #[error("the key provider failed for account {account:?}: {reason}")]
    KeyProvider {
        /// The account's name.
        account: String,
        /// What it said.
        reason: String,
    },

    /// The account is encrypted, and neither passphrase, key nor key provider was given.
    #[error("account {account:?} is encrypted: give its passphrase, key or key provider")]
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

    /// Another process has the account open and is alive.
    #[error(
        "account {account:?} is in use by {owner}: stop it first, wait for it (a killed process counts \
         as alive for some seconds), or take the account over"
    )]
    OwnerAlive {
        /// The account's name.
        account: String,
        /// The owner: its label, host and process.
        owner: String,
        /// Since when it owns the account, by the server's clock.
        since: SystemTime,
    },

    /// There is no such account. [`Access::ReadOnly`](crate::Access::ReadOnly) creates none, nor does
    /// `reopen()`.
    #[error("there is no account {account:?}: check its name and the schema")]
    AccountNotFound {
        /// The account's name.
        account: String,
    },

    /// The server accepts no writes: it is a standby.
    /// [`target_session_attrs=read-write`](crate::PostgresStoreConfig::new) finds the primary among
    /// several hosts, and [`Access::ReadOnly`](crate::Access::ReadOnly) needs none.
    #[error("the server is a read-only standby: connect to the primary")]
    ReadOnlyServer,

    /// The role may not write: `default_transaction_read_only` is on for the role, the database or the
    /// server, which is not a standby. Nothing was written.
    /// [`Access::ReadOnly`](crate::Access::ReadOnly) may use such a role.
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

    /// `reopen()` found another cipher in the account's row than the store was opened with: the account
    /// was created again, or its row was restored from a backup. Nothing was read or written. Open a new
    /// store, with the account's passphrase or key.
    #[error(
        "the cipher of account {account:?} has changed since the store was opened: open a new store"
    )]
    CipherChanged {
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

    /// The change of an operator's function ([`admin`](crate::admin)) is committed on this server, but the
    /// server did not wait for its synchronous standby: the wait was cancelled. A failover to that
    /// standby may still undo the change. Do not repeat it: see to the standby, and after a failover check
    /// whether the change is there.
    #[error(
        "the change is committed on this server, but the wait for its synchronous standby was cancelled, so \
         a failover may still undo it: do not repeat it, see to the standby, and after a failover check \
         whether the change is there"
    )]
    NotReplicated,

    /// The database failed while the store was being opened.
    #[error(transparent)]
    Store(#[from] Error),
}

/// The text, as of [`Error`].
impl fmt::Debug for OpenStoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl OpenStoreError {
    /// The error for `what`, which the server refused: a missing privilege, or another reason.
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
