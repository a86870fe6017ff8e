//! Which errors are transient, permanent or retryable.

use super::{DatabaseError, Error, OpenStoreError, database::Origin};

fn statement(code: &str) -> Error {
    DatabaseError::answer(code, Origin::Statement).into()
}

#[test]
fn errors_are_transient_permanent_or_neither() {
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
    // Neither: a full disk, a cancelled statement, and errors that need a reopening only.
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

/// A statement that timed out may still take effect, so it is retried only where that is harmless.
#[test]
fn a_statement_timeout_is_retryable_only_where_a_late_attempt_is_harmless() {
    assert!(!Error::StatementTimeout.is_retryable());
    assert!(Error::StatementTimeout.is_retryable_or_late());
    assert!(statement("40001").is_retryable());
    assert!(!Error::PoolTimeout.is_retryable_or_late());
}

/// 0A000 is transient if the connection has an outdated plan, or its server is in recovery.
#[test]
fn feature_not_supported_is_transient_only_where_another_connection_may_succeed() {
    assert!(!statement("0A000").invalidates_connection());
    let outdated = Error::from(DatabaseError::answer("0A000", Origin::ThisConnection));
    assert!(outdated.invalidates_connection() && outdated.is_retryable());
}
