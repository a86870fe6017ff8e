//! What the database reported, with all data left out.

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

/// At which point it failed: that tells what a retry can do, where the SQLSTATE cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The server failed the statement, not the session.
    Statement,
    /// The same, for a reason that ends with the connection: a plan that the server had kept, or a server
    /// that is in recovery now.
    ThisConnection,
    /// The connection broke, or was ended.
    Connection,
    /// It comes again however often it is tried: a statement cannot be sent, or its row is gone.
    Permanent,
    /// No connection could be made, so nothing was asked and nothing took effect.
    Login {
        /// The server refused credentials that every retry would show again.
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

    /// The same error, of a connection that could not be made.
    pub(crate) fn at_login(self, is_permanent: bool) -> Self {
        Self { origin: Origin::Login { is_permanent }, ..self }
    }

    /// The same error, of a transaction of which it was found out that it had no effect: it is tried
    /// again, unless its data would be refused again.
    pub(crate) fn after_unknown_outcome(self) -> Self {
        if self.is_statement_error() && self.refuses_data() {
            return self;
        }
        Self { origin: Origin::Connection, ..self }
    }

    /// An error that no retry mends.
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
            // Kinds without an answer: I/O, closed, TLS, encoding. Their texts hold no rows.
            let causes =
                std::iter::successors(Some(error as &dyn StdError), |&error| error.source());
            let message = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
            // What the client cannot encode has a cause, and that is no I/O error, or InvalidInput. All
            // else is a broken connection, or an answer to something else, after a message was lost.
            let is_invalid = |io: &io::Error| io.kind() == io::ErrorKind::InvalidInput;
            let is_permanent = error.source().is_some() && io_cause(error).is_none_or(is_invalid);
            let origin = if is_permanent { Origin::Permanent } else { Origin::Connection };
            return Self { origin, ..Self::broken(message) };
        };
        let code = answer.code().clone();
        // Their messages quote values.
        let quotes_data = refuses_data(code.code());
        // The untranslated severity is asked for; FATAL and PANIC end the session, and poolers use them
        // for what befell their link. Of a routine the C function's name is given.
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
