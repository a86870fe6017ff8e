//! What the database reported, with all data left out.

use tokio_postgres::error::{Severity, SqlState};

/// What PostgreSQL or the connection to it reported, without data.
///
/// ```
/// fn is_disk_full(error: &matrix_sdk_postgres::DatabaseError) -> bool {
///     error.sqlstate() == Some("53100")
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseError {
    sqlstate: Option<SqlState>,
    message: String,
    /// The statement could not even be sent, and never will be.
    unsendable: bool,
    /// The server failed the statement, not the session.
    statement_error: bool,
    table: Option<String>,
    constraint: Option<String>,
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

    /// Whether it is an answer with severity ERROR: the session goes on. The untranslated severity is
    /// asked for; FATAL and PANIC end the session, and poolers use them for what befell their link.
    pub(crate) fn is_statement_error(&self) -> bool {
        self.statement_error
    }

    /// Whether one of the crate's own functions refused to go on.
    pub(crate) fn is_own_refusal(&self) -> bool {
        self.statement_error && self.sqlstate().is_some_and(|code| code.starts_with("MX"))
    }

    pub(crate) fn has_code(&self, code: &SqlState) -> bool {
        self.sqlstate.as_ref() == Some(code)
    }

    /// Whether the connection must not be used again: it broke or was ended, the server is going away
    /// (class 57P), it has become read-only after a failover (25006), it was
    /// ended because a transaction idled (25P03), it has other statements
    /// prepared than we think (26000, and 0A000 after a migration), or it lost a BEGIN (MX003).
    pub(crate) fn spoils_connection(&self) -> bool {
        !self.statement_error
            || self.sqlstate().is_none_or(|code| {
                ["25006", "25P03", "26000", "0A000", "MX003"].contains(&code)
                    || code.starts_with("57P")
                    || code.starts_with("08")
            })
    }

    /// Whether the same statement may succeed when it is tried again: after a serialization failure
    /// or deadlock, a lock that was not available, too many connections, or on another connection.
    /// A database that was dropped (57P04) stays so.
    pub(crate) fn is_transient(&self) -> bool {
        if self.unsendable || self.sqlstate() == Some("57P04") {
            return false;
        }
        self.spoils_connection()
            || self
                .sqlstate()
                .is_some_and(|code| ["40001", "40P01", "55P03", "53300", "53400"].contains(&code))
    }

    /// A statement that can never be sent.
    pub(crate) fn unsendable(message: impl Into<String>) -> Self {
        Self { unsendable: true, ..Self::broken(message) }
    }

    pub(crate) fn broken(message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            sqlstate: None,
            message,
            unsendable: false,
            statement_error: false,
            table: None,
            constraint: None,
        }
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
        let Some(answer) = error.as_db_error() else {
            // Kinds without an answer: I/O, closed, TLS, encoding. Their texts hold no rows.
            let causes: Vec<_> =
                std::iter::successors(Some(&error as &dyn std::error::Error), |error| {
                    error.source()
                })
                .collect();
            let message = causes.iter().map(ToString::to_string).collect::<Vec<_>>().join(": ");
            // A broken connection is an I/O error; what the client cannot encode is InvalidInput.
            let broken = error.is_closed()
                || causes.iter().any(|cause| {
                    cause
                        .downcast_ref::<std::io::Error>()
                        .is_some_and(|io| io.kind() != std::io::ErrorKind::InvalidInput)
                });
            return Self { unsendable: !broken, ..Self::broken(message) };
        };
        let code = answer.code().clone();
        // Data exceptions (22) and integrity violations (23) quote values in their messages.
        let quotes_data = code.code().starts_with("22") || code.code().starts_with("23");
        Self {
            message: if quotes_data { "data refused" } else { answer.message() }.to_owned(),
            table: answer.table().map(ToOwned::to_owned),
            constraint: answer.constraint().map(ToOwned::to_owned),
            unsendable: false,
            statement_error: answer.parsed_severity() == Some(Severity::Error),
            sqlstate: Some(code),
        }
    }
}
