//! What errors mean to those who may try again: all questions to errors are answered here.

use std::{error::Error as StdError, io};

use tokio_postgres::error::SqlState;

use super::{DatabaseError, Error, OpenStoreError, database::Origin};

/// Raised by the guard when the token is not the account's.
const OTHER_OWNER: &str = "MX001";
/// Raised when a lane has another position than its owner knows.
const OTHER_POSITION: &str = "MX002";
/// Raised when a `BEGIN` was lost.
const NOT_BEGUN: &str = "MX003";

impl DatabaseError {
    /// Whether it is an answer with severity ERROR: the session goes on.
    pub(crate) fn is_statement_error(&self) -> bool {
        matches!(self.origin, Origin::Statement | Origin::ThisConnection)
    }

    /// Whether one of the crate's own functions refused to go on.
    pub(crate) fn is_own_refusal(&self) -> bool {
        self.is_statement_error() && self.has_class("MX")
    }

    /// Whether the connection must not be used again: it broke or was ended, the server is going away
    /// (class 57P), it has become read-only after a failover (25006), it was ended because a transaction
    /// idled (25P03), it has other statements prepared than we think (26000, or a cached plan), its server
    /// is in recovery, or it lost a BEGIN: then the crate's functions refuse, and a write finds no transaction marker (42704).
    pub(crate) fn spoils_connection(&self) -> bool {
        self.origin != Origin::Statement
            || self.sqlstate.is_none()
            || self.has_code(&["25006", "25P03", "26000", "42704", NOT_BEGUN])
            || self.has_class("57P")
            || self.has_class("08")
    }

    /// Whether the same statement may succeed when it is tried again: when no connection could be
    /// made for it, after a serialization failure or deadlock, a lock that was not available, or on
    /// another connection. A database that was dropped (57P04) stays so.
    pub(crate) fn is_transient(&self) -> bool {
        match self.origin {
            Origin::Permanent => false,
            // Whatever the code: poolers refuse logins with codes that are final elsewhere.
            Origin::Login { is_permanent } => !is_permanent,
            _ if self.has_code(&["57P04"]) => false,
            Origin::Statement | Origin::ThisConnection | Origin::Connection => {
                self.spoils_connection()
                    || self.has_code(&["40001", "40P01", "55P03", "53300", "53400"])
            }
        }
    }

    /// Whether it comes again until the data, the schema, a grant or a setting is changed.
    pub(crate) fn is_permanent(&self) -> bool {
        match self.origin {
            Origin::Permanent => true,
            Origin::Login { is_permanent } => is_permanent,
            _ if self.is_transient() => false,
            // Features, data, integrity, credentials, databases, schemas, syntax and grants.
            Origin::Statement | Origin::ThisConnection | Origin::Connection => {
                self.refuses_data()
                    || ["0A", "28", "3D", "3F", "42"].iter().any(|class| self.has_class(class))
            }
        }
    }

    /// Whether a statement was passed over because its transaction had failed before.
    pub(crate) fn is_in_failed_transaction(&self) -> bool {
        self.is(&SqlState::IN_FAILED_SQL_TRANSACTION)
    }

    pub(super) fn refuses_data(&self) -> bool {
        self.sqlstate().is_some_and(refuses_data)
    }

    /// Whether the server refused the credentials that were shown.
    pub(crate) fn refuses_credentials(&self) -> bool {
        matches!(self.origin, Origin::Login { .. }) && self.has_class("28")
    }

    /// Whether the schema or a table is not there.
    pub(crate) fn is_missing_schema(&self) -> bool {
        self.is(&SqlState::UNDEFINED_TABLE) || self.is(&SqlState::INVALID_SCHEMA_NAME)
    }

    /// Whether a table has another form.
    pub(crate) fn is_missing_column(&self) -> bool {
        self.is(&SqlState::UNDEFINED_COLUMN)
    }

    fn is(&self, code: &SqlState) -> bool {
        self.sqlstate.as_ref() == Some(code)
    }

    fn has_code(&self, codes: &[&str]) -> bool {
        self.sqlstate().is_some_and(|code| codes.contains(&code))
    }

    fn has_class(&self, class: &str) -> bool {
        self.sqlstate().is_some_and(|code| code.starts_with(class))
    }
}

impl Error {
    /// Whether the reason may pass by itself: the server restarts, the network is down, connections or
    /// locks are taken.
    ///
    /// The store has already retried for as long as [`Timeouts::retry`](crate::Timeouts::retry) says. Wait
    /// a little, then go on as the variant says: `reopen()` with a new `OlmMachine`, as a rule. What is
    /// neither transient nor [permanent](Self::is_permanent) needs only what its variant says.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use matrix_sdk_postgres::Error;
    ///
    /// fn pause_before_reopening(error: &Error) -> Duration {
    ///     Duration::from_secs(if error.is_transient() { 5 } else { 0 })
    /// }
    /// # assert_eq!(pause_before_reopening(&Error::PoolTimeout).as_secs(), 5);
    /// # assert_eq!(pause_before_reopening(&Error::ReopenRequired).as_secs(), 0);
    /// ```
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Database(error) => error.is_transient(),
            Self::PoolTimeout | Self::StatementTimeout => true,
            Self::Reopen(error) => error.is_transient(),
            _ => false,
        }
    }

    /// Whether reopening the store or restarting the process does not help, or does harm: something has to
    /// be changed first, or the bot has lost its account for good.
    ///
    /// These are the loss of the account ([`Superseded`](Self::Superseded),
    /// [`DatabaseRolledBack`](Self::DatabaseRolledBack)), what the server refuses until its data, schema,
    /// grants or settings are changed, damaged rows, and mistakes in the program.
    ///
    /// ```
    /// use std::process::ExitCode;
    ///
    /// use matrix_sdk_postgres::Error;
    ///
    /// /// With `RestartPreventExitStatus=78`, systemd restarts the bot only when that may help.
    /// fn exit_code(error: &Error) -> ExitCode {
    ///     if error.is_permanent() { ExitCode::from(78) } else { ExitCode::FAILURE }
    /// }
    /// # assert_eq!(exit_code(&Error::DatabaseRolledBack), ExitCode::from(78));
    /// # assert_eq!(exit_code(&Error::ReopenRequired), ExitCode::FAILURE);
    /// ```
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Superseded { .. }
            | Self::DatabaseRolledBack
            | Self::ReadOnly
            | Self::AccountUnset
            | Self::CorruptRow { .. }
            | Self::Encode { .. }
            | Self::NestedAtomically
            | Self::NotInAtomically
            | Self::TransactionControl
            | Self::CloseInAtomically
            | Self::OtherStoreInAtomically
            | Self::Internal(_) => true,
            Self::Database(error) => error.is_permanent(),
            Self::Reopen(error) => error.is_permanent(),
            Self::StoreClosed
            | Self::ReopenRequired
            | Self::PoolTimeout
            | Self::StatementTimeout
            | Self::AtomicallyTimeout => false,
        }
    }

    pub(crate) fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Database(error) => error.sqlstate(),
            _ => None,
        }
    }

    /// A name for statistics: the SQLSTATE, or one of a few words.
    pub(crate) fn type_name(&self) -> &str {
        match self {
            Self::Database(error) => error.sqlstate().unwrap_or("connection"),
            Self::PoolTimeout | Self::StatementTimeout | Self::AtomicallyTimeout => "timeout",
            Self::Superseded { .. } => "superseded",
            Self::DatabaseRolledBack => "database_rolled_back",
            Self::CorruptRow { .. } => "bad_row",
            _ => "_OTHER",
        }
    }

    /// Whether an operation that is known to have had no effect may succeed when it is repeated.
    pub(crate) fn is_retryable(&self) -> bool {
        matches!(self, Self::Database(error) if error.is_transient())
    }

    /// The same for one that does no harm when a late first attempt takes effect, too.
    pub(crate) fn is_retryable_or_late(&self) -> bool {
        self.is_retryable() || matches!(self, Self::StatementTimeout)
    }

    /// Whether nothing more must be asked on the connection that this came from. After a timeout the
    /// answer may still come, and must not be read by another.
    pub(crate) fn spoils_connection(&self) -> bool {
        match self {
            Self::Database(error) => error.spoils_connection(),
            error => matches!(error, Self::StatementTimeout),
        }
    }

    /// Whether a statement was refused because the account had another token when it ran.
    pub(crate) fn is_other_owner(&self) -> bool {
        self.has_code(OTHER_OWNER)
    }

    /// Whether a statement was refused because a lane was elsewhere than its owner knows.
    pub(crate) fn is_other_position(&self) -> bool {
        self.has_code(OTHER_POSITION)
    }

    pub(crate) fn is_unique_violation(&self) -> bool {
        self.has_code(SqlState::UNIQUE_VIOLATION.code())
    }

    /// Whether the server ended the statement because it took too long.
    pub(crate) fn is_query_canceled(&self) -> bool {
        self.has_code(SqlState::QUERY_CANCELED.code())
    }

    /// Whether the server accepts no writes.
    pub(crate) fn is_read_only_server(&self) -> bool {
        self.has_code(SqlState::READ_ONLY_SQL_TRANSACTION.code())
    }

    fn has_code(&self, code: &str) -> bool {
        matches!(self, Self::Database(error) if error.has_code(&[code]))
    }
}

impl OpenStoreError {
    /// Whether the reason may pass by itself: try to open the store again after a pause. The server is
    /// away or read-only, the account has an owner that is alive, or the
    /// [error of the store](Error::is_transient) is transient.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// use matrix_sdk_postgres::{OpenStoreError, PostgresCryptoStore, PostgresStoreConfig};
    ///
    /// async fn open(config: &PostgresStoreConfig) -> Result<PostgresCryptoStore, OpenStoreError> {
    ///     loop {
    ///         match PostgresCryptoStore::open_with_config(config).await {
    ///             Err(error) if error.is_transient() => {
    ///                 tokio::time::sleep(Duration::from_secs(5)).await;
    ///             }
    ///             opened => return opened,
    ///         }
    ///     }
    /// }
    /// ```
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect(_)
            | Self::ReadOnlyServer
            | Self::ReadOnlyRole { .. }
            | Self::KeyProvider { .. }
            | Self::OwnerAlive { .. } => true,
            Self::Authentication(error) => error.is_transient(),
            Self::Store(error) => error.is_transient(),
            _ => false,
        }
    }

    /// Whether opening fails until the configuration, the database or the program is changed, so that a
    /// restart does not help.
    ///
    /// ```
    /// use matrix_sdk_postgres::OpenStoreError;
    ///
    /// let account = "my-bot".to_owned();
    /// assert!(OpenStoreError::WrongPassphrase { account }.is_permanent());
    /// assert!(!OpenStoreError::ReadOnlyServer.is_permanent());
    /// ```
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Connect(_)
            | Self::ReadOnlyServer
            | Self::ReadOnlyRole { .. }
            | Self::KeyProvider { .. }
            | Self::OwnerAlive { .. } => false,
            Self::Authentication(error) => error.is_permanent(),
            Self::Store(error) => error.is_permanent(),
            _ => true,
        }
    }

    /// Whether opening tries again by itself. A server that cannot be reached, a database that does not
    /// exist and a password that is fixed are reported at once.
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            // Reads keep the limits of the role, which may be short.
            Self::Store(error) => error.is_retryable() || error.is_query_canceled(),
            Self::Connect(error) => error.sqlstate.is_some(),
            Self::Authentication(error) => {
                error.is_transient() && !error.is(&SqlState::INVALID_CATALOG_NAME)
            }
            _ => false,
        }
    }
}

/// Whether it is a data exception (22) or an integrity violation (23).
pub(super) fn refuses_data(code: &str) -> bool {
    code.starts_with("22") || code.starts_with("23")
}

/// Wrong user or password.
pub(crate) fn refuses_credentials(code: Option<&SqlState>) -> bool {
    matches!(code.map(SqlState::code), Some("28P01" | "28000"))
}

/// Wrong user, wrong password, no entry in `pg_hba.conf`, no such database.
pub(crate) fn refuses_login(code: Option<&SqlState>) -> bool {
    refuses_credentials(code) || code == Some(&SqlState::INVALID_CATALOG_NAME)
}

/// No entry in `pg_hba.conf` for a connection of this kind, or another reason to refuse the user.
pub(crate) fn refuses_entry(code: &SqlState) -> bool {
    *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION
}

/// Whether the driver's error comes from an I/O error.
pub(crate) fn has_io_cause(error: &tokio_postgres::Error) -> bool {
    io_cause(error).is_some()
}

/// Whether the driver refused what it found, not the operating system.
pub(crate) fn is_permission_denied_by_driver(error: &tokio_postgres::Error) -> bool {
    io_cause(error).is_some_and(|error| {
        error.kind() == io::ErrorKind::PermissionDenied && error.raw_os_error().is_none()
    })
}

pub(super) fn io_cause(error: &tokio_postgres::Error) -> Option<&io::Error> {
    error.source().and_then(|cause| cause.downcast_ref())
}
