//! Classification of errors: transient, permanent, retryable. Every rule is here.

use std::{error::Error as StdError, io};

use tokio_postgres::error::SqlState;

use super::{DatabaseError, Error, OpenStoreError, database::Origin};

/// Raised by guard() when the account has another owner token.
const OTHER_OWNER: &str = "MX001";
/// Raised when a lane is not at the position that its owner expects.
const OTHER_POSITION: &str = "MX002";
/// Raised when a `BEGIN` was lost.
const NOT_BEGUN: &str = "MX003";

impl DatabaseError {
    /// Whether the server answered with severity ERROR: the session goes on.
    pub(crate) fn is_statement_error(&self) -> bool {
        matches!(self.origin, Origin::Statement | Origin::ThisConnection)
    }

    /// Whether one of the crate's SQL functions raised it.
    pub(crate) fn is_own_refusal(&self) -> bool {
        self.is_statement_error() && self.has_class("MX")
    }

    /// Whether the connection must not be used again: it broke or was ended, the server is shutting down
    /// (class 57P), became read-only in a failover (25006), ended an idle transaction (25P03), lacks a
    /// prepared statement (26000) or has an outdated plan, is in recovery, or never received the BEGIN
    /// (MX003; 42704 for a write, which finds no transaction marker).
    pub(crate) fn invalidates_connection(&self) -> bool {
        self.origin != Origin::Statement
            || self.sqlstate.is_none()
            || self.has_code(&["25006", "25P03", "26000", "42704", NOT_BEGUN])
            || self.has_class("57P")
            || self.has_class("08")
    }

    /// Whether the same statement may succeed when it is retried: when no connection could be made for
    /// it, after a serialization failure or deadlock, a lock that was not available, or on another
    /// connection. A dropped database (57P04) is permanent.
    pub(crate) fn is_transient(&self) -> bool {
        match self.origin {
            Origin::Permanent => false,
            // Whatever the SQLSTATE: poolers refuse logins with codes that are permanent elsewhere.
            Origin::Login { is_permanent } => !is_permanent,
            _ if self.has_code(&["57P04"]) => false,
            Origin::Statement | Origin::ThisConnection | Origin::Connection => {
                self.invalidates_connection()
                    || self.has_code(&["40001", "40P01", "55P03", "53300", "53400"])
            }
        }
    }

    /// Whether retries fail until the data, the schema, a grant or a setting is changed.
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

    /// Whether a statement was skipped because its transaction had failed before.
    pub(crate) fn is_in_failed_transaction(&self) -> bool {
        self.is(&SqlState::IN_FAILED_SQL_TRANSACTION)
    }

    pub(super) fn refuses_data(&self) -> bool {
        self.sqlstate().is_some_and(refuses_data)
    }

    /// Whether the server refused the credentials.
    pub(crate) fn refuses_credentials(&self) -> bool {
        matches!(self.origin, Origin::Login { .. }) && self.has_class("28")
    }

    /// Whether the schema or a table does not exist.
    pub(crate) fn is_missing_schema(&self) -> bool {
        self.is(&SqlState::UNDEFINED_TABLE) || self.is(&SqlState::INVALID_SCHEMA_NAME)
    }

    /// Whether a column does not exist: the table is of another schema version.
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
    /// Whether the cause may go away by itself: the server restarts, the network is down, connections or
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

    /// The span field `error.type`: the SQLSTATE, or one of a few names.
    pub(crate) fn type_name(&self) -> &str {
        match self {
            Self::Database(error) => error.sqlstate().unwrap_or("connection"),
            Self::PoolTimeout | Self::StatementTimeout | Self::AtomicallyTimeout => "timeout",
            Self::Superseded { .. } => "superseded",
            Self::DatabaseRolledBack => "database_rolled_back",
            Self::CorruptRow { .. } => "corrupt_row",
            _ => "_OTHER",
        }
    }

    /// Whether an operation that is known to have had no effect may succeed when it is repeated.
    pub(crate) fn is_retryable(&self) -> bool {
        matches!(self, Self::Database(error) if error.is_transient())
    }

    /// The same, for an operation that is harmless if a late first attempt takes effect too.
    pub(crate) fn is_retryable_or_late(&self) -> bool {
        self.is_retryable() || matches!(self, Self::StatementTimeout)
    }

    /// Whether the connection must not be used again. After a timeout the answer may still arrive, and
    /// must not be taken for that of the next query.
    pub(crate) fn invalidates_connection(&self) -> bool {
        match self {
            Self::Database(error) => error.invalidates_connection(),
            error => matches!(error, Self::StatementTimeout),
        }
    }

    /// Whether a statement was refused because the account had another token when it ran.
    pub(crate) fn is_other_owner(&self) -> bool {
        self.has_code(OTHER_OWNER)
    }

    /// Whether a statement was refused because a lane is not at the position that its owner expects.
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
    /// Whether the cause may go away by itself: try to open the store again after a pause. The server is
    /// unreachable or read-only, the account has an owner that is alive, or the
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

    /// Whether opening retries. An unreachable server, a database that does not exist and a refused
    /// password that is fixed are returned at once.
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            // Reads during opening are subject to the role's `statement_timeout`, which may be short.
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

/// Whether the driver denied permission, not the operating system.
pub(crate) fn is_permission_denied_by_driver(error: &tokio_postgres::Error) -> bool {
    io_cause(error).is_some_and(|error| {
        error.kind() == io::ErrorKind::PermissionDenied && error.raw_os_error().is_none()
    })
}

pub(super) fn io_cause(error: &tokio_postgres::Error) -> Option<&io::Error> {
    error.source().and_then(|cause| cause.downcast_ref())
}
