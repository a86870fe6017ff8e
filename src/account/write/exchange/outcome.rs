//! Derives the outcome of a transaction from the answers to its messages.

use tokio_postgres::Row;

use crate::{DatabaseError, Error};

/// How a transaction failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nothing of it took effect.
    RolledBack(Error),
    /// It may or may not have taken effect, or may still do so.
    Unknown(Error),
    /// It took effect, but not as a whole.
    Incomplete(Error),
}

impl Failure {
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::RolledBack(error) | Self::Unknown(error) | Self::Incomplete(error) => error,
        }
    }

    pub(super) fn invalidates_connection(&self) -> bool {
        match self {
            Self::RolledBack(Error::Database(error)) => error.invalidates_connection(),
            Self::RolledBack(_) | Self::Unknown(_) | Self::Incomplete(_) => true,
        }
    }
}

type Responses<T> = Vec<Result<T, DatabaseError>>;

/// The rows of the last answer, other than COMMIT's if that was sent.
pub(super) fn last_rows(
    answers: Responses<Vec<Row>>,
    has_sent_commit: bool,
) -> Result<Vec<Row>, Failure> {
    if has_sent_commit {
        return committed(answers);
    }
    // A transaction without COMMIT is rolled back when its connection is closed.
    let answers = answers.into_iter().collect::<Result<Vec<_>, _>>();
    let answers = answers.map_err(|error| Failure::RolledBack(error.into()));
    Ok(answers?.pop().unwrap_or_default())
}

/// The last answer before COMMIT's, when COMMIT was sent.
///
/// An error proves a rollback only if COMMIT was answered and the error is certainly the server's:
/// either all later statements failed because the transaction had failed, or one of the crate's own
/// functions raised it. A pooler may report errors of its own connection in the server's format,
/// and they do not show what the server does next.
fn committed<T: Default>(mut answers: Responses<T>) -> Result<T, Failure> {
    let commit = answers.pop();
    let Some(failed) = answers.iter().position(Result::is_err) else {
        return match commit {
            Some(Err(error)) => Err(Failure::Unknown(error.into())),
            _ => Ok(answers.pop().and_then(Result::ok).unwrap_or_default()),
        };
    };
    let mut later = answers.drain(failed..);
    let Some(Err(error)) = later.next() else { return Ok(T::default()) };
    let in_failed = |answer: Result<T, DatabaseError>| {
        answer.is_err_and(|error| error.is_in_failed_transaction())
    };
    // The last statement's error has no later one that confirms it.
    let is_confirmed = later.len() > 0 && later.all(in_failed);
    let is_proven = error.is_own_refusal() || (error.is_statement_error() && is_confirmed);
    let outcome = match commit {
        Some(Ok(_)) if is_proven => Failure::RolledBack,
        _ => Failure::Unknown,
    };
    Err(outcome(error.into()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::{Failure, committed};
    use crate::DatabaseError;

    fn error(code: &str) -> Result<u8, DatabaseError> {
        Err(DatabaseError::of_statement(code))
    }

    fn broken() -> Result<u8, DatabaseError> {
        Err(DatabaseError::broken("the link broke"))
    }

    #[test]
    fn the_last_answer_before_commit_is_returned() {
        assert_eq!(committed(vec![Ok(0), Ok(1), Ok(2), Ok(0)]).unwrap(), 2);
    }

    #[test]
    fn only_an_error_of_the_server_itself_proves_a_rollback() {
        let failed = || error("25P02");
        for (answers, is_proven) in [
            // An ERROR, and every later statement in the failed transaction.
            (vec![Ok(0), error("23505"), failed(), Ok(0)], true),
            // The last statement: no later error confirms it.
            (vec![Ok(0), Ok(1), error("23505"), Ok(0)], false),
            // Raised by one of the crate's own functions.
            (vec![Ok(0), Ok(1), error("MX002"), Ok(0)], true),
            (vec![error("MX001"), failed(), failed(), Ok(0)], true),
            // COMMIT was not answered.
            (vec![Ok(0), error("23505"), failed(), broken()], false),
            (vec![Ok(0), error("MX002"), failed(), broken()], false),
            // A statement after the error succeeded.
            (vec![Ok(0), error("08P01"), Ok(1), Ok(0)], false),
            (vec![Ok(0), error("57014"), broken(), Ok(0)], false),
            // Only COMMIT failed.
            (vec![Ok(0), Ok(1), Ok(2), error("40001")], false),
            (vec![broken(), broken(), broken(), broken()], false),
        ] {
            let codes = format!("{answers:?}");
            match committed(answers).unwrap_err() {
                Failure::RolledBack(_) => assert!(is_proven, "{codes}"),
                Failure::Unknown(_) => assert!(!is_proven, "{codes}"),
                Failure::Incomplete(_) => panic!("no rows were counted"),
            }
        }
    }
}
