//! Why a SQLite file cannot be read.

use std::{io, path::Path};

use rusqlite::ErrorCode;

use crate::outcome::Error;

/// Messages never hold a value from the file.
#[derive(Debug)]
pub enum Failure {
    /// Another program holds a lock: worth another attempt.
    Busy,
    Final(String),
}

impl Failure {
    pub fn new(message: impl Into<String>) -> Self {
        Self::Final(message.into())
    }

    pub fn io(file: &Path, error: &io::Error) -> Self {
        Self::Final(format!("cannot read {}: {error}", file.display()))
    }

    pub fn no_database(file: &Path) -> Self {
        Self::Final(format!(
            "{} is not a SQLite database: name the bot's matrix-sdk-crypto.sqlite3, or its folder",
            file.display()
        ))
    }

    pub fn no_utf8(file: &Path) -> Self {
        Self::Final(format!("the path {} is not UTF-8", file.display()))
    }

    pub fn damaged(file: &Path) -> Self {
        Self::Final(format!(
            "{} is truncated or damaged: SQLite's own check fails. Copy it again, with its -wal file, or \
             rescue it with the sqlite3 shell's .recover",
            file.display()
        ))
    }

    pub fn changing(file: &Path) -> Self {
        Self::Final(format!(
            "{} changes while it is copied: stop the bot, or run the command again",
            file.display()
        ))
    }

    pub fn is_full(error: &rusqlite::Error) -> bool {
        matches!(error.sqlite_error_code(), Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure))
    }

    /// The temporary copy cannot be written.
    pub fn copying(error: rusqlite::Error) -> Self {
        Self::Final(format!(
            "the temporary copy cannot be written ({}): make room in the folder for temporary files, or \
             name another with SQLITE_TMPDIR; the source was not changed",
            reason(&error)
        ))
    }

    pub fn sqlite(file: &Path, error: &rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            Some(ErrorCode::NotADatabase) => Self::no_database(file),
            Some(ErrorCode::DatabaseCorrupt) => Self::damaged(file),
            _ => Self::Final(format!("cannot read {}: {}", file.display(), reason(error))),
        }
    }
}

/// What SQLite says, without what it may quote.
fn reason(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(error, _) => error.to_string(),
        rusqlite::Error::InvalidColumnType(..) => "a column has an unexpected type".to_owned(),
        rusqlite::Error::QueryReturnedNoRows => "a row is missing".to_owned(),
        _ => "an unexpected answer from SQLite".to_owned(),
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Busy => {
                Error::failed("the SQLite file is locked by another program: run the command again")
            }
            Failure::Final(message) => Error::failed(message),
        }
    }
}
