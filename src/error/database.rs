//! Errors of the database and of its connections, without row data.

use std::{error::Error as StdError, io};

use tokio_postgres::error::{Severity, SqlState};

use super::predicates::{io_cause, refuses_data};

/// What PostgreSQL or the connection to it reported, without data.
///
/// ```
/// fn is_disk_full(error: &matrix_sdk_postgres::DatabaseError) -> bool {
///     error.sqlstate() == Some("53100")
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseError {
    pub(super) sqlstate: Option<SqlState>,
    message: String,
    pub(super) origin: Origin,
    table: Option<String>,
    constraint: Option<String>,
}

/// Where the failure happened. It decides whether a retry can help, where the SQLSTATE alone cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The server failed the statement; the session goes on.
    Statement,
    /// As `Statement`, but another connection may succeed: the cached plan was outdated, or this server
    /// is in recovery now.
    ThisConnection,
    /// The connection broke, or the server ended it.
    Connection,
    /// A retry fails in the same way: the statement cannot be sent, or its row is gone.
    Permanent,
    /// No connection could be made, so no statement was sent.
    Login {
        /// The server refused credentials that every retry would send again.
        is_permanent: bool,
    },
}

impl DatabaseError {
    /// The server's five-character SQLSTATE, or `None` when the connection broke before an answer.
    ///
    /// ```
    /// fn is_deadlock(error: &matrix_sdk_postgres::DatabaseError) -> bool {
    ///     error.sqlstate() == Some("40P01")
    /// }
    /// ```
    pub fn sqlstate(&self) -> Option<&str> {
        self.sqlstate.as_ref().map(SqlState::code)
    }

    /// The table the error is about, where PostgreSQL names one.
    ///
    /// ```
    /// fn concerns_devices(error: &matrix_sdk_postgres::DatabaseError) -> bool {
    ///     error.table() == Some("devices")
    /// }
    /// ```
    pub fn table(&self) -> Option<&str> {
        self.table.as_deref()
    }

    /// The constraint that was violated, where PostgreSQL names one.
    ///
    /// ```
    /// fn constraint(error: &matrix_sdk_postgres::DatabaseError) -> &str {
    ///     error.constraint().unwrap_or("none")
    /// }
    /// ```
    pub fn constraint(&self) -> Option<&str> {
        self.constraint.as_deref()
    }

    /// The same error, as the reason why no connection could be made.
    pub(crate) fn at_login(self, is_permanent: bool) -> Self {
        Self { origin: Origin::Login { is_permanent }, ..self }
    }

    /// The same error, of a transaction whose unknown outcome was resolved: it had no effect. It is
    /// retryable, unless its data would be refused again.
    pub(crate) fn after_unknown_outcome(self) -> Self {
        if self.is_statement_error() && self.refuses_data() {
            return self;
        }
        Self { origin: Origin::Connection, ..self }
    }

    /// An error that no retry can fix.
    pub(crate) fn permanent(message: impl Into<String>) -> Self {
        Self { origin: Origin::Permanent, ..Self::broken(message) }
    }

    /// An answer with severity ERROR.
    #[cfg(test)]
    pub(crate) fn of_statement(code: &str) -> Self {
        Self::answer(code, Origin::Statement)
    }

    #[cfg(test)]
    pub(super) fn answer(code: &str, origin: Origin) -> Self {
        Self { sqlstate: Some(SqlState::from_code(code)), origin, ..Self::broken("an answer") }
    }

    /// A write that was committed without all of its rows.
    pub(crate) fn incomplete(statement: &str) -> Self {
        Self::permanent(format!("{statement} was committed without all of its rows"))
    }

    pub(crate) fn broken(message: impl Into<String>) -> Self {
        let message = message.into();
        let origin = Origin::Connection;
        Self { sqlstate: None, message, origin, table: None, constraint: None }
    }
}

impl std::fmt::Display for DatabaseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        if let Some(code) = self.sqlstate() {
            write!(f, " (SQLSTATE {code}")?;
            if let Some(table) = &self.table {
                write!(f, ", table {table}")?;
            }
            if let Some(constraint) = &self.constraint {
                write!(f, ", constraint {constraint}")?;
            }
            f.write_str(")")?;
        }
        Ok(())
    }
}

impl std::error::Error for DatabaseError {}

impl From<tokio_postgres::Error> for DatabaseError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::from(&error)
    }
}

impl From<&tokio_postgres::Error> for DatabaseError {
    fn from(error: &tokio_postgres::Error) -> Self {
        let Some(answer) = error.as_db_error() else {
            // No answer from the server: I/O, closed, TLS, encoding. These texts hold no row data.
            let causes =
                std::iter::successors(Some(error as &dyn StdError), |&error| error.source());
            let message = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
            // A value that the client cannot encode has a cause that is not an I/O error, or is
            // `InvalidInput`. Everything else is a broken connection, or an answer out of sequence after
            // a message was lost.
            let is_invalid = |io: &io::Error| io.kind() == io::ErrorKind::InvalidInput;
            let is_permanent = error.source().is_some() && io_cause(error).is_none_or(is_invalid);
            let origin = if is_permanent { Origin::Permanent } else { Origin::Connection };
            return Self { origin, ..Self::broken(message) };
        };
        let code = answer.code().clone();
        // The messages of these classes quote values.
        let quotes_data = refuses_data(code.code());
        // `parsed_severity` is not translated. FATAL and PANIC end the session; poolers use them for
        // failures of their server connection. `routine` is the name of PostgreSQL's C function.
        let origin = match (answer.parsed_severity(), answer.routine()) {
            (Some(Severity::Error), Some("RevalidateCachedQuery")) => Origin::ThisConnection,
            // BEGIN READ WRITE on a standby.
            (Some(Severity::Error), Some("call_bool_check_hook"))
                if code == SqlState::FEATURE_NOT_SUPPORTED =>
            {
                Origin::ThisConnection
            }
            (Some(Severity::Error), _) => Origin::Statement,
            _ => Origin::Connection,
        };
        Self {
            message: if quotes_data { "data refused" } else { answer.message() }.to_owned(),
            table: answer.table().map(ToOwned::to_owned),
            constraint: answer.constraint().map(ToOwned::to_owned),
            origin,
            sqlstate: Some(code),
        }
    }
}
