//! Errors of the bridge: fatal ones with their exit code, and those that are retried.

use std::fmt::Display;

use matrix_sdk_crypto::{CryptoStoreError, MegolmError, OlmError};
use matrix_sdk_postgres::{
    DatabaseError, Error as StoreError, OpenStoreError,
    deadpool_postgres::{PoolError, tokio_postgres},
};

use crate::refusal::{HomeserverError, SessionLoss};

/// Exit codes. The README documents them: change both.
pub mod exit_code {
    /// Something that should not happen.
    pub const UNEXPECTED: u8 = 1;
    /// A setting is missing or malformed.
    pub const CONFIGURATION: u8 = 2;
    /// The homeserver refused the password or the token.
    pub const LOGIN: u8 = 3;
    /// The access token was refused until the retry timeout, or the device has other keys.
    pub const SESSION_ENDED: u8 = 4;
    /// The database refused permanently.
    pub const DATABASE: u8 = 5;
    /// The keys were encrypted with another passphrase, or with none.
    pub const PASSPHRASE: u8 = 6;
    /// Another process has taken the account over: this one must not be restarted automatically.
    pub const SUPERSEDED: u8 = 7;
    /// Another process owns the account, and `BRIDGE_TAKEOVER` is `refuse`.
    pub const IN_USE: u8 = 8;
    /// The database was rolled back to an older state.
    pub const ROLLED_BACK: u8 = 9;
}

/// An error of a task of the bridge.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// Ends the bridge.
    #[error("{message}")]
    Fatal {
        /// The process's exit code.
        code: u8,
        /// What happened and what to do.
        message: String,
    },
    /// The homeserver refuses the access token, temporarily or permanently.
    #[error("the homeserver does not accept the access token")]
    SessionRefused(SessionLoss),
    /// Retried: the machine is dropped, the store reopened, and the next run started.
    #[error("{0}")]
    Temporary(String),
    /// The bridge is being stopped.
    #[error("stopped")]
    Stopped,
}

impl BridgeError {
    /// An error that ends the bridge with `code`.
    pub fn fatal(code: u8, message: impl Into<String>) -> Self {
        Self::Fatal { code, message: message.into() }
    }

    /// The ratchets in the database are older than their last known state.
    pub fn rolled_back(what: impl Display) -> Self {
        Self::fatal(
            exit_code::ROLLED_BACK,
            format!(
                "{what}: the database was rolled back to an older state, and its keys must not be \
                 used again. Start with a new device: set STORE_ACCOUNT to another name, with \
                 MATRIX_PASSWORD and without MATRIX_DEVICE_ID, or with the MATRIX_ACCESS_TOKEN of \
                 a new login"
            ),
        )
    }
}

/// Whether a retry would fail with the same error.
fn is_fatal(sqlstate: Option<&str>) -> bool {
    // Missing privileges; unknown database, table or schema; refused login.
    sqlstate.is_some_and(|code| {
        matches!(code, "42501" | "3D000" | "42P01" | "3F000") || code.starts_with("28")
    })
}

fn from_database(sqlstate: Option<&str>, text: String) -> BridgeError {
    if is_fatal(sqlstate) {
        return BridgeError::fatal(
            exit_code::DATABASE,
            format!(
                "the database refused access: {text}: check DATABASE_URL and the role's privileges"
            ),
        );
    }
    BridgeError::Temporary(format!("the database failed: {text}"))
}

impl From<tokio_postgres::Error> for BridgeError {
    fn from(error: tokio_postgres::Error) -> Self {
        // `DatabaseError` omits the details, which quote rows.
        let error = DatabaseError::from(error);
        from_database(error.sqlstate(), error.to_string())
    }
}

impl From<PoolError> for BridgeError {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) => error.into(),
            other => Self::Temporary(format!("no database connection: {other}")),
        }
    }
}

impl From<CryptoStoreError> for BridgeError {
    fn from(error: CryptoStoreError) -> Self {
        match error {
            CryptoStoreError::MismatchedAccount { expected, got } => Self::fatal(
                exit_code::CONFIGURATION,
                format!(
                    "the keys in the database belong to {} on device {}, not to {} on {}: use \
                     another STORE_ACCOUNT",
                    expected.0, expected.1, got.0, got.1
                ),
            ),
            CryptoStoreError::Backend(error) => match error.downcast::<StoreError>() {
                Ok(error) => (*error).into(),
                Err(error) => Self::Temporary(format!("the key store failed: {error}")),
            },
            other => Self::Temporary(format!("the key store failed: {other}")),
        }
    }
}

impl From<StoreError> for BridgeError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Superseded { .. } => Self::fatal(
                exit_code::SUPERSEDED,
                format!("{error}: the bridge exits and should not be restarted automatically"),
            ),
            StoreError::DatabaseRolledBack => {
                Self::rolled_back("the database has lost commits of this process")
            }
            StoreError::Reopen(error) => (*error).into(),
            StoreError::Database(error) => from_database(error.sqlstate(), error.to_string()),
            other => Self::Temporary(format!("the key store failed: {other}")),
        }
    }
}

impl From<OlmError> for BridgeError {
    fn from(error: OlmError) -> Self {
        match error {
            OlmError::Store(error) => error.into(),
            other => Self::Temporary(format!("the encryption machine failed: {other}")),
        }
    }
}

impl From<MegolmError> for BridgeError {
    fn from(error: MegolmError) -> Self {
        match error {
            MegolmError::Store(error) => error.into(),
            other => Self::Temporary(format!("the encryption machine failed: {other}")),
        }
    }
}

impl From<OpenStoreError> for BridgeError {
    fn from(error: OpenStoreError) -> Self {
        let text = error.to_string();
        match error {
            OpenStoreError::InvalidConfig(_) => Self::fatal(
                exit_code::CONFIGURATION,
                format!("DATABASE_URL cannot be used: {text}"),
            ),
            OpenStoreError::WrongPassphrase { .. }
            | OpenStoreError::WrongKey { .. }
            | OpenStoreError::KeyInsteadOfPassphrase { .. }
            | OpenStoreError::PassphraseInsteadOfKey { .. }
            | OpenStoreError::EncryptedWithoutSecret { .. }
            | OpenStoreError::PlainWithSecret { .. } => {
                Self::fatal(exit_code::PASSPHRASE, format!("{text}: check STORE_PASSPHRASE"))
            }
            OpenStoreError::Connect(_) => Self::Temporary(text),
            OpenStoreError::Store(StoreError::Database(error)) => {
                from_database(error.sqlstate(), text)
            }
            OpenStoreError::Store(error) => error.into(),
            OpenStoreError::ReadOnlyServer => Self::Temporary(text),
            OpenStoreError::MigrationsPending { .. } => Self::fatal(
                exit_code::DATABASE,
                format!("{text}: run the bridge with --migrate-only as a role that may migrate"),
            ),
            OpenStoreError::OwnerAlive { .. } => Self::fatal(exit_code::IN_USE, text),
            _ => Self::fatal(exit_code::DATABASE, text),
        }
    }
}

impl From<HomeserverError> for BridgeError {
    fn from(error: HomeserverError) -> Self {
        match error {
            HomeserverError::Stopped => Self::Stopped,
            error => match error.session_loss() {
                Some(loss) => Self::SessionRefused(loss),
                None => Self::Temporary(error.to_string()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_takeover_or_rollback_is_fatal_in_every_error_type() {
        let superseded =
            || StoreError::Superseded { by: "another".to_owned(), since: SystemTime::now() };
        let backend = |error: StoreError| CryptoStoreError::from(error);
        let cases: [(BridgeError, u8); 6] = [
            (backend(superseded()).into(), exit_code::SUPERSEDED),
            (OlmError::Store(backend(superseded())).into(), exit_code::SUPERSEDED),
            (MegolmError::Store(backend(superseded())).into(), exit_code::SUPERSEDED),
            (backend(StoreError::DatabaseRolledBack).into(), exit_code::ROLLED_BACK),
            (OpenStoreError::Store(StoreError::DatabaseRolledBack).into(), exit_code::ROLLED_BACK),
            (
                StoreError::Reopen(Box::new(OpenStoreError::Store(superseded()))).into(),
                exit_code::SUPERSEDED,
            ),
        ];
        for (error, expected) in cases {
            assert!(
                matches!(error, BridgeError::Fatal { code, .. } if code == expected),
                "{error:?} instead of {expected}"
            );
        }
        let error = BridgeError::from(backend(StoreError::ReopenRequired));
        assert!(matches!(error, BridgeError::Temporary(_)), "{error:?}");
    }
}
