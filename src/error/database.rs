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
    origin: Origin,
    table: Option<String>,
    constraint: Option<String>,
    is_stale_plan: bool,
}

/// The server's function that finds a prepared statement's result types changed. Other reasons for
/// 0A000 stay, and the message is translated.
const STALE_PLAN_ROUTINE: &str = "RevalidateCachedQuery";

/// At which point it failed: that tells what a retry can do, where the SQLSTATE cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// The server failed the statement, not the session.
    Statement,
    /// The connection broke, or was ended.
    Connection,
    /// The statement could not even be sent, and never will be.
    Unsendable,
    /// It took effect, but not on all rows that it was to write.
    Incomplete,
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

    /// Whether it is an answer with severity ERROR: the session goes on. The untranslated severity is
    /// asked for; FATAL and PANIC end the session, and poolers use them for what befell their link.
    pub(crate) fn is_statement_error(&self) -> bool {
        self.origin == Origin::Statement
    }

    /// Whether one of the crate's own functions refused to go on.
    pub(crate) fn is_own_refusal(&self) -> bool {
        self.origin == Origin::Statement
            && self.sqlstate().is_some_and(|code| code.starts_with("MX"))
    }

    pub(crate) fn has_code(&self, code: &SqlState) -> bool {
        self.sqlstate.as_ref() == Some(code)
    }

    /// Whether the connection must not be used again: it broke or was ended, the server is going away
    /// (class 57P), it has become read-only after a failover (25006), it was ended because a transaction
    /// idled (25P03), it has other statements prepared than we think (26000, and 0A000 after a
    /// migration), or it lost a BEGIN: then the crate's functions refuse (MX003), and a write that asks
    /// for the transaction marker finds no such setting (42704).
    pub(crate) fn spoils_connection(&self) -> bool {
        self.origin != Origin::Statement
            || self.sqlstate().is_none_or(|code| {
                self.is_stale_plan
                    || ["25006", "25P03", "26000", "42704", "MX003"].contains(&code)
                    || code.starts_with("57P")
                    || code.starts_with("08")
            })
    }

    /// Whether the same statement may succeed when it is tried again: when no connection could be
    /// made for it, after a serialization failure or deadlock, a lock that was not available, or on
    /// another connection. A database that was dropped (57P04) stays so.
    pub(crate) fn is_transient(&self) -> bool {
        match self.origin {
            Origin::Unsendable | Origin::Incomplete => false,
            // Whatever the code: poolers refuse logins with codes that are final elsewhere.
            Origin::Login { is_permanent } => !is_permanent,
            _ if self.sqlstate() == Some("57P04") => false,
            Origin::Statement | Origin::Connection => {
                self.spoils_connection()
                    || self.sqlstate().is_some_and(|code| {
                        ["40001", "40P01", "55P03", "53300", "53400"].contains(&code)
                    })
            }
        }
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

    fn refuses_data(&self) -> bool {
        self.sqlstate().is_some_and(refuses_data)
    }

    /// Whether the server refused the credentials that were shown.
    pub(crate) fn refuses_credentials(&self) -> bool {
        matches!(self.origin, Origin::Login { .. })
            && self.sqlstate().is_some_and(|code| code.starts_with("28"))
    }

    /// A statement that can never be sent.
    pub(crate) fn unsendable(message: impl Into<String>) -> Self {
        Self { origin: Origin::Unsendable, ..Self::broken(message) }
    }

    /// A write that was committed without all of its rows.
    pub(crate) fn incomplete(statement: &str) -> Self {
        let message = format!("{statement} was committed without all of its rows");
        Self { origin: Origin::Incomplete, ..Self::broken(message) }
    }

    pub(crate) fn broken(message: impl Into<String>) -> Self {
        let message = message.into();
        let origin = Origin::Connection;
        Self {
            sqlstate: None,
            message,
            origin,
            table: None,
            constraint: None,
            is_stale_plan: false,
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

/// Whether it is a data exception (22) or an integrity violation (23).
fn refuses_data(code: &str) -> bool {
    code.starts_with("22") || code.starts_with("23")
}

impl From<tokio_postgres::Error> for DatabaseError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::from(&error)
    }
}

impl From<&tokio_postgres::Error> for DatabaseError {
    fn from(error: &tokio_postgres::Error) -> Self {
        let Some(answer) = error.as_db_error() else {
            // Kinds without an answer: I/O, closed, TLS, encoding. Their texts hold no rows.
            let causes: Vec<_> =
                std::iter::successors(Some(error as &dyn std::error::Error), |error| {
                    error.source()
                })
                .collect();
            let message = causes.iter().map(ToString::to_string).collect::<Vec<_>>().join(": ");
            // A broken connection is an I/O error; what the client cannot encode is InvalidInput.
            // So is an answer to something else, after a message was lost on its way.
            let broken = error.is_closed()
                || message.starts_with("unexpected message from server")
                || causes.iter().any(|cause| {
                    cause
                        .downcast_ref::<std::io::Error>()
                        .is_some_and(|io| io.kind() != std::io::ErrorKind::InvalidInput)
                });
            let origin = if broken { Origin::Connection } else { Origin::Unsendable };
            return Self { origin, ..Self::broken(message) };
        };
        let code = answer.code().clone();
        // Their messages quote values.
        let quotes_data = refuses_data(code.code());
        let origin = match answer.parsed_severity() {
            Some(Severity::Error) => Origin::Statement,
            _ => Origin::Connection,
        };
        Self {
            message: if quotes_data { "data refused" } else { answer.message() }.to_owned(),
            table: answer.table().map(ToOwned::to_owned),
            constraint: answer.constraint().map(ToOwned::to_owned),
            origin,
            is_stale_plan: code == SqlState::FEATURE_NOT_SUPPORTED
                && answer.routine() == Some(STALE_PLAN_ROUTINE),
            sqlstate: Some(code),
        }
    }
}
