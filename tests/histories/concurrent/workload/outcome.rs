//! Errors, as they are named in the history.

use matrix_sdk_crypto::{MegolmError, OlmError, store::CryptoStoreError};
use matrix_sdk_postgres::{Error, OpenStoreError};

use crate::concurrent::history::Outcome;

/// An error that a caller gets.
#[derive(Debug)]
pub enum Failure {
    Store(Error),
    Open(Box<OpenStoreError>),
    Crypto(CryptoStoreError),
    Machine(String),
    /// A result that a store must not return.
    Wrong(String),
    /// The application's own error, which rolls a transaction back.
    OnPurpose,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl From<OpenStoreError> for Failure {
    fn from(error: OpenStoreError) -> Self {
        match error {
            OpenStoreError::Store(error) => Self::Store(error),
            error => Self::Open(Box::new(error)),
        }
    }
}

impl From<CryptoStoreError> for Failure {
    fn from(error: CryptoStoreError) -> Self {
        match error {
            CryptoStoreError::Backend(inner) => match inner.downcast::<Error>() {
                Ok(error) => Self::Store(*error),
                Err(other) => Self::Crypto(CryptoStoreError::Backend(other)),
            },
            error => Self::Crypto(error),
        }
    }
}

impl From<OlmError> for Failure {
    fn from(error: OlmError) -> Self {
        match error {
            OlmError::Store(error) => error.into(),
            error => Self::Machine(format!("{error:?}")),
        }
    }
}

impl From<MegolmError> for Failure {
    fn from(error: MegolmError) -> Self {
        match error {
            MegolmError::Store(error) => error.into(),
            error => Self::Machine(format!("{error:?}")),
        }
    }
}

impl Failure {
    pub fn outcome(&self) -> Outcome {
        let (kind, text) = match self {
            Self::OnPurpose => return Outcome::Nothing,
            // Refused before it began.
            Self::Store(Error::ReopenRequired) => return Outcome::Nothing,
            Self::Store(error) => (kind(error), error.to_string()),
            Self::Open(error) => (kind_of_opening(error), error.to_string()),
            Self::Crypto(error) => ("Crypto", error.to_string()),
            Self::Machine(text) => ("Machine", text.clone()),
            Self::Wrong(text) => ("Wrong", text.clone()),
        };
        Outcome::Error { kind: kind.to_owned(), text }
    }

    pub fn is_superseded(&self) -> bool {
        self.outcome().is("Superseded")
    }
}

pub fn of<T>(result: &Result<T, Failure>) -> Outcome {
    result.as_ref().map_or_else(Failure::outcome, |_| Outcome::Ok)
}

/// The variant, as far as the checks and the report distinguish them.
fn kind(error: &Error) -> &'static str {
    match error {
        Error::Superseded { .. } => "Superseded",
        Error::DatabaseRolledBack => "DatabaseRolledBack",
        Error::Database(_) => "Database",
        Error::PoolTimeout | Error::StatementTimeout | Error::AtomicallyTimeout => "Timeout",
        Error::Reopen(_) => "Reopen",
        _ => "Store",
    }
}

fn kind_of_opening(error: &OpenStoreError) -> &'static str {
    match error {
        OpenStoreError::OwnerAlive { .. } => "OwnerAlive",
        OpenStoreError::Connect(_) => "Connect",
        _ => "Open",
    }
}
