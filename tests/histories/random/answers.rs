//! What a store answers, in a form that can be compared and read.

use matrix_sdk_postgres::Error;

/// Names of values, sorted: most lists come in no order.
pub type Answer = Result<Vec<String>, Failure>;

/// The errors that a history may provoke.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    AccountUnset,
    OwnDeviceMissing,
    Closed,
    ReopenRequired,
    Superseded,
    Other(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::AccountUnset => Self::AccountUnset,
            Error::StoreClosed => Self::Closed,
            Error::ReopenRequired => Self::ReopenRequired,
            Error::Superseded { .. } => Self::Superseded,
            Error::CorruptRow { table: "devices", reason: "our own device is missing" } => {
                Self::OwnDeviceMissing
            }
            other => Self::Other(format!("{other:?}")),
        }
    }
}

/// What the model expects.
#[derive(Debug, PartialEq)]
pub enum Expected {
    Exactly(Vec<String>),
    /// So many of these, whichever.
    SomeOf(usize, Vec<String>),
    Refused(Failure),
}

impl Expected {
    pub fn exactly(mut values: Vec<String>) -> Self {
        values.sort();
        Self::Exactly(values)
    }

    /// As many of these as the limit allows.
    pub fn some(limit: usize, of: Vec<String>) -> Self {
        Self::SomeOf(limit.min(of.len()), of)
    }

    pub fn allows(&self, answer: &Answer) -> bool {
        match (self, answer) {
            (Self::Exactly(expected), Ok(found)) => expected == found,
            (Self::SomeOf(count, of), Ok(found)) => {
                let is_distinct = found.windows(2).all(|pair| pair[0] != pair[1]);
                found.len() == *count && is_distinct && found.iter().all(|one| of.contains(one))
            }
            (Self::Refused(expected), Err(found)) => expected == found,
            _ => false,
        }
    }
}
