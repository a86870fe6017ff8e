//! What may pass, and what does not.

use super::{DatabaseError, Error, OpenStoreError, database::Origin};

fn statement(code: &str) -> Error {
    DatabaseError::answer(code, Origin::Statement).into()
}

#[test]
fn what_passes_by_itself_is_transient_and_what_a_restart_does_not_mend_is_permanent() {
    let login =
        |is_permanent| Error::from(DatabaseError::answer("28P01", Origin::Login { is_permanent }));
    let reopen = |error: Error| Error::Reopen(Box::new(error.into()));
    for error in [
        statement("40001"),
        statement("40P01"),
        statement("55P03"),
        statement("57P01"),
        statement("25006"),
        DatabaseError::answer("XX000", Origin::Connection).into(),
        DatabaseError::answer("0A000", Origin::ThisConnection).into(),
        DatabaseError::broken("cut").into(),
        login(false),
        Error::PoolTimeout,
        Error::StatementTimeout,
        reopen(statement("40001")),
        Error::Reopen(Box::new(OpenStoreError::ReadOnlyServer)),
    ] {
        assert!(error.is_transient() && !error.is_permanent(), "{error:?}");
    }
    for error in [
        statement("0A000"),
        statement("22001"),
        statement("23505"),
        statement("42501"),
        statement("42P01"),
        DatabaseError::permanent("cannot be sent").into(),
        login(true),
        Error::DatabaseRolledBack,
        Error::ReadOnly,
        Error::Internal("a fault"),
        reopen(statement("42501")),
        Error::Reopen(Box::new(OpenStoreError::WrongKey { account: "bot".to_owned() })),
    ] {
        assert!(error.is_permanent() && !error.is_transient(), "{error:?}");
    }
    // A full disk, a statement that was cancelled; and what only needs a reopening.
    for error in [
        statement("53100"),
        statement("57014"),
        Error::StoreClosed,
        Error::ReopenRequired,
        Error::AtomicallyTimeout,
    ] {
        assert!(!error.is_permanent() && !error.is_transient(), "{error:?}");
    }
}

/// What was not answered in time may take effect late, so only that is repeated which may.
#[test]
fn a_late_statement_is_not_known_to_have_had_no_effect() {
    assert!(!Error::StatementTimeout.is_retryable());
    assert!(Error::StatementTimeout.is_retryable_or_late());
    assert!(statement("40001").is_retryable());
    assert!(!Error::PoolTimeout.is_retryable_or_late());
}

/// 0A000 passes with the connection when a plan was kept on it, or its server is in recovery.
#[test]
fn a_feature_that_is_not_supported_stays_so_unless_it_is_the_connections_fault() {
    assert!(!statement("0A000").spoils_connection());
    let outdated = Error::from(DatabaseError::answer("0A000", Origin::ThisConnection));
    assert!(outdated.spoils_connection() && outdated.is_retryable());
}
