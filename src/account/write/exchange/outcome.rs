//! What the answers to a transaction's messages prove.

use tokio_postgres::Row;

use crate::{DatabaseError, Error};

/// How a transaction failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nothing of it took effect.
    RolledBack(Error),
    /// It may or may not have taken effect, or may still do so: only the server knows.
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

    pub(super) fn spoils_connection(&self) -> bool {
        match self {
            Self::RolledBack(Error::Database(error)) => error.spoils_connection(),
            Self::RolledBack(_) | Self::Unknown(_) | Self::Incomplete(_) => true,
        }
    }
}

type Responses<T> = Vec<Result<T, DatabaseError>>;

/// The rows of the last answer, but for COMMIT's if that was sent.
pub(super) fn last_rows(
    answers: Responses<Vec<Row>>,
    has_sent_commit: bool,
) -> Result<Vec<Row>, Failure> {
    if has_sent_commit {
        return committed(answers);
    }
    // Without its end, a transaction ends with the connection.
    let answers = answers.into_iter().collect::<Result<Vec<_>, _>>();
    let answers = answers.map_err(|error| Failure::RolledBack(error.into()));
    Ok(answers?.pop().unwrap_or_default())
}

/// The last answer but COMMIT's, which was sent.
///
/// A failure proves a rollback only when it is the server's own word: an ERROR, behind which every
/// statement failed because the transaction had, or a refusal by one of our own functions; and when
/// COMMIT was answered. A pooler speaks in the server's name of what happened to its link, and knows
/// no more than we do of what the server does next.
fn committed<T: Default>(mut answers: Responses<T>) -> Result<T, Failure> {
    let commit = answers.pop();
    let Some(failed) = answers.iter().position(Result::is_err) else {
        return match commit {
            Some(Err(error)) => Err(Failure::Unknown(error.into())),
            _ => Ok(answers.pop().and_then(Result::ok).unwrap_or_default()),
        };
    };
    let mut behind = answers.drain(failed..);
    let Some(Err(error)) = behind.next() else { return Ok(T::default()) };
    let in_failed = |answer: Result<T, DatabaseError>| {
        answer.is_err_and(|error| error.is_in_failed_transaction())
    };
    // With nothing behind it, nothing bears an error out.
    let is_borne_out = behind.len() > 0 && behind.all(in_failed);
    let is_proven = error.is_own_refusal() || (error.is_statement_error() && is_borne_out);
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
    fn the_last_answer_before_commit_is_the_one() {
        assert_eq!(committed(vec![Ok(0), Ok(1), Ok(2), Ok(0)]).unwrap(), 2);
    }

    #[test]
    fn only_the_servers_own_word_proves_a_rollback() {
        let failed = || error("25P02");
        for (answers, is_proven) in [
            // An ERROR, and everything behind it in the failed transaction.
            (vec![Ok(0), error("23505"), failed(), Ok(0)], true),
            // The last statement: nothing behind it bears it out.
            (vec![Ok(0), Ok(1), error("23505"), Ok(0)], false),
            // A refusal of our own.
            (vec![Ok(0), Ok(1), error("MX002"), Ok(0)], true),
            (vec![error("MX001"), failed(), failed(), Ok(0)], true),
            // COMMIT was not answered.
            (vec![Ok(0), error("23505"), failed(), broken()], false),
            (vec![Ok(0), error("MX002"), failed(), broken()], false),
            // Something behind the error was done.
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
