//! What a command ends with: a text, the same as JSON, and an exit code.

use std::process::ExitCode;

use matrix_sdk_crypto::CryptoStoreError;
use matrix_sdk_postgres::{Error as StoreError, OpenStoreError};
use serde_json::{Value, json};

/// The exit codes, which `--help` documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    CommandLine = 2,
    /// Done, and what was looked at is not in order, or a failover may undo it.
    Findings = 3,
    /// Nothing was changed.
    Refused = 4,
    /// The same command may succeed later.
    Unavailable = 5,
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// What a command has done or found.
#[derive(Debug)]
pub struct Outcome {
    /// For people: whole lines.
    pub text: String,
    /// The same for programs.
    pub json: Value,
    pub exit: Exit,
}

impl Outcome {
    pub fn done(text: impl Into<String>, json: Value) -> Self {
        Self { text: text.into(), json, exit: Exit::Done }
    }

    /// With [`Exit::Findings`], if something is not in order.
    #[must_use]
    pub fn in_order(self, is_in_order: bool) -> Self {
        let exit = if is_in_order { self.exit } else { Exit::Findings };
        Self { exit, ..self }
    }
}

/// Why a command failed. The text says what, where, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub message: String,
    pub exit: Exit,
}

impl Error {
    pub fn failed(message: impl Into<String>) -> Self {
        Self { message: message.into(), exit: Exit::Failed }
    }

    /// Nothing was changed.
    pub fn refused(message: impl Into<String>) -> Self {
        Self { message: message.into(), exit: Exit::Refused }
    }

    /// The same command may succeed later.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { message: message.into(), exit: Exit::Unavailable }
    }

    pub fn interrupted() -> Self {
        Self { message: "interrupted".to_owned(), exit: Exit::Interrupted }
    }

    /// Of a command that keeps what it has done.
    pub fn interrupted_and_resumable() -> Self {
        let message = "interrupted: run the same command again to go on".to_owned();
        Self { message, ..Self::interrupted() }
    }

    pub fn json(&self) -> Value {
        json!({ "error": self.message, "exit_code": self.exit as u8 })
    }
}

/// The error and its causes, as one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

impl From<OpenStoreError> for Error {
    fn from(error: OpenStoreError) -> Self {
        let exit = match &error {
            OpenStoreError::OwnerAlive { .. } => Exit::Refused,
            OpenStoreError::NotReplicated => Exit::Findings,
            // The database does not exist.
            OpenStoreError::Authentication(error) if error.sqlstate() == Some("3D000") => {
                Exit::Failed
            }
            error if error.is_transient() => Exit::Unavailable,
            _ => Exit::Failed,
        };
        Self { message: message(&error), exit }
    }
}

/// The error's text; where that speaks of functions, with options and variables instead.
fn message(error: &OpenStoreError) -> String {
    let advice = match error {
        OpenStoreError::OwnerAlive { account, owner, .. } => {
            return format!(
                "account {account:?} is in use by {owner}: stop it first (if it was killed on another machine, \
                 or in a container, it counts as alive for some seconds)"
            );
        }
        OpenStoreError::KeyInsteadOfPassphrase { account } => {
            return format!(
                "account {account:?} is encrypted with a passphrase, but a key was given: give \
                 STORE_PASSPHRASE or STORE_PASSPHRASE_FILE instead"
            );
        }
        OpenStoreError::PassphraseInsteadOfKey { account } => {
            return format!(
                "account {account:?} is encrypted with a key, but a passphrase was given: give STORE_KEY or \
                 STORE_KEY_FILE instead"
            );
        }
        OpenStoreError::MigrationsPending { part, found, required } => {
            return format!(
                "the schema is not migrated: its part {part} has version {found}, {required} is needed: run \
                 matrix-postgres migrate, as the schema's owner"
            );
        }
        OpenStoreError::EncryptedWithoutSecret { .. } => {
            ": set STORE_PASSPHRASE_FILE or STORE_KEY_FILE, see --help"
        }
        OpenStoreError::CipherChanged { .. } => {
            ": another run has changed the secret meanwhile, and this one nothing"
        }
        OpenStoreError::Store(error) => advice(error),
        _ => "",
    };
    with_causes(error) + advice
}

impl From<CryptoStoreError> for Error {
    fn from(error: CryptoStoreError) -> Self {
        match error {
            CryptoStoreError::Backend(error) => match error.downcast::<StoreError>() {
                Ok(error) => (*error).into(),
                Err(error) => Self::failed(with_causes(&*error)),
            },
            error => Self::failed(with_causes(&error)),
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let exit = if error.is_transient() { Exit::Unavailable } else { Exit::Failed };
        Self { message: with_causes(&error) + advice(&error), exit }
    }
}

/// What to do, where the database's own text does not say it.
fn advice(error: &StoreError) -> &'static str {
    match error {
        StoreError::Database(error) if error.sqlstate() == Some("53100") => {
            ": free space on the database server, see docs/operations.md#when-the-disk-is-full"
        }
        // Its rows are never set aside.
        StoreError::CorruptRow { table: "account_data", .. } => {
            ", or, if it is the device's, begin a new device: matrix-postgres reset-device"
        }
        StoreError::CorruptRow { .. } => ", or set it aside: matrix-postgres verify --quarantine",
        _ => "",
    }
}
