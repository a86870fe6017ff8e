//! Results of reads, in a form that can be compared and printed.

use matrix_sdk_postgres::Error;

/// Names of values, sorted, because most lists have no order.
pub type ReadResult = Result<Vec<String>, Failure>;

/// The errors that a history may cause.
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

/// The result that the model expects of a read.
#[derive(Debug, PartialEq)]
pub enum Expected {
    Exactly(Vec<String>),
    /// This number of values, any of those listed.
    SomeOf(usize, Vec<String>),
    Refused(Failure),
}

impl Expected {
    pub fn exactly(mut values: Vec<String>) -> Self {
        values.sort();
        Self::Exactly(values)
    }

    /// Up to `limit` of these values.
    pub fn some(limit: usize, of: Vec<String>) -> Self {
        Self::SomeOf(limit.min(of.len()), of)
    }

    pub fn allows(&self, result: &ReadResult) -> bool {
        match (self, result) {
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
