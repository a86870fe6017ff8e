//! One account as a stream of bytes, and back.
//!
//! The rows are copied as they are, sealed or plain, with PostgreSQL's own `COPY`: nothing is decoded, so
//! neither passphrase nor key is needed, and nothing that a newer version has put into a row is lost. What is
//! clear in the tables is clear in the stream; the caller encrypts it.
//!
//! The stream is a sequence of frames, each a length (32 bits, big-endian) and that number of bytes:
//!
//! | frame | holds |
//! |---|---|
//! | first | the header, as JSON |
//! | any number for each table, then an empty one | the table's rows, in `COPY`'s binary format, without `account_id` |
//! | last | the bytes `end` |

mod dump;
mod load;

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

pub use self::{
    dump::{backup, read_backup},
    load::{RestoredDevice, restore},
};
use crate::{DatabaseError, Error, OpenStoreError};

/// Of the stream.
const FORMAT: u32 = 1;
const END: &[u8] = b"end";
/// Rows are written in frames of up to this size; a row may take several.
const FRAME: usize = 1 << 20;
/// No larger frame is read.
const LARGEST: usize = 64 << 20;

/// What a backup holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Backup {
    /// The form of the stream.
    pub format: u32,
    /// The account's name.
    pub account: String,
    /// When it was made, by the server's clock, in UTC.
    pub made_at: String,
    /// How many commits the account had: see
    /// [`PostgresStores::commit_count`](crate::PostgresStores::commit_count).
    pub commits: u64,
    /// The version of each part of the schema. A backup is restored into the same ones.
    pub schema: Vec<(String, i32)>,
    /// The tables, and how many rows they have.
    pub tables: Vec<BackedUpTable>,
}

/// The first frame. It holds the account's key, sealed, so it is shown nowhere.
#[derive(Serialize, Deserialize)]
struct Header {
    #[serde(flatten)]
    backup: Backup,
    /// The columns of the account's row.
    secret_kind: i16,
    cipher: Option<Vec<u8>>,
    cipher_written_by: i16,
    created_at: String,
    /// The lanes, and how many commits each has.
    lanes: Vec<(String, i64)>,
}

/// A table in a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BackedUpTable {
    /// Its name.
    pub table: String,
    /// How many rows.
    pub rows: u64,
    columns: Vec<String>,
}

/// Why a backup was not made or restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The database failed, or refused.
    #[error(transparent)]
    Open(#[from] OpenStoreError),

    /// The stream cannot be read or written.
    #[error("the backup cannot be read or written: {0}")]
    Io(#[from] io::Error),

    /// The stream is no backup, was changed, or ends too early.
    #[error("this is no whole backup: {0}")]
    Damaged(&'static str),

    /// The stream was made by a newer version.
    #[error(
        "the backup has format {found}, this version knows {FORMAT}: use the version that made it"
    )]
    TooNew {
        /// Its format.
        found: u32,
    },

    /// Of [`RestoredDevice::Moved`]: the device was removed from where it was, and must not be started there;
    /// then the last `COMMIT` failed. Look whether the account is here; if it is not, restore the same backup
    /// as [`RestoredDevice::Same`].
    #[error(
        "the device was removed from where it was, so do not start it there; then: {source}. See whether the \
         account is here (matrix-postgres stats): if it is not, restore the same backup with \
         --same-device --checkpoint {commits}"
    )]
    Moved {
        /// How many commits the account has made.
        commits: u64,
        /// Why it failed.
        source: Box<OpenStoreError>,
    },

    /// Of [`RestoredDevice::Moved`]: the account has no device where it is to be taken from. It may have been
    /// moved to another database before. Nothing was changed.
    #[error(
        "the account {account:?} has no device where it is to be taken from: it was moved or reset before, so \
         it may be in use elsewhere; nothing was changed. Only if a move of this backup failed at its end, \
         and the account is not in the database that it was moved to, restore it with \
         --same-device --checkpoint {commits}. Otherwise restore it as a new device"
    )]
    NoDevice {
        /// The account.
        account: String,
        /// How many commits it has made.
        commits: u64,
    },

    /// The account that the device would be moved from has another device than the backup.
    #[error(
        "account {account:?} in the database that the device would be moved from has another device than the \
         backup: no account was changed; name the database that the backup was made of"
    )]
    OtherDevice {
        /// The account.
        account: String,
    },

    /// The backup is of another schema version.
    #[error(
        "the backup is of version {found} of the schema's part {part}, here it is {installed}: restore \
         it with the version that made it, into a schema of its own, and upgrade then"
    )]
    OtherSchema {
        /// The part.
        part: String,
        /// The version in the backup.
        found: i32,
        /// The version here.
        installed: i32,
    },

    /// The backup is of another account: its name is sealed into it.
    #[error("the backup is of the account {found:?}, not of {wanted:?}: accounts keep their names")]
    OtherAccount {
        /// Its account.
        found: String,
        /// The configuration's.
        wanted: String,
    },

    /// The account has rows.
    #[error(
        "the account {account:?} is not empty: delete it first, or restore into another schema"
    )]
    NotEmpty {
        /// The account.
        account: String,
    },

    /// [`RestoredDevice::Same`] or [`Moved`](RestoredDevice::Moved) was requested, and the backup is older
    /// than what is known of the device.
    #[error(
        "the backup has {found} commits, and the device has made {known}: its ratchets are old, and must \
         not be used again. Restore it as a new device"
    )]
    Old {
        /// In the backup.
        found: u64,
        /// Known from elsewhere.
        known: u64,
    },
}

impl From<DatabaseError> for BackupError {
    fn from(error: DatabaseError) -> Self {
        Self::Open(OpenStoreError::Store(Error::Database(error)))
    }
}

/// Up to [`LARGEST`] bytes.
fn write_frame(out: &mut (impl Write + ?Sized), bytes: &[u8]) -> Result<(), BackupError> {
    let length = u32::try_from(bytes.len()).ok().filter(|length| *length as usize <= LARGEST);
    let length = length.ok_or(BackupError::Damaged("a frame is too large"))?;
    out.write_all(&length.to_be_bytes())?;
    Ok(out.write_all(bytes)?)
}

fn read_frame(input: &mut (impl Read + ?Sized)) -> Result<Vec<u8>, BackupError> {
    let too_early = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => BackupError::Damaged("it ends too early"),
        _ => BackupError::Io(error),
    };
    let mut length = [0; 4];
    input.read_exact(&mut length).map_err(too_early)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > LARGEST {
        return Err(BackupError::Damaged("a frame is too large"));
    }
    let mut bytes = Vec::new();
    // Grows with what is really there.
    input.take(length as u64).read_to_end(&mut bytes)?;
    match bytes.len() == length {
        true => Ok(bytes),
        false => Err(BackupError::Damaged("it ends too early")),
    }
}

fn read_header(input: &mut (impl Read + ?Sized)) -> Result<Header, BackupError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let bytes = read_frame(input)?;
    let format = serde_json::from_slice::<Format>(&bytes);
    let format = format.map_err(|_| BackupError::Damaged("it has no header"))?.format;
    if format > FORMAT {
        return Err(BackupError::TooNew { found: format });
    }
    serde_json::from_slice(&bytes).map_err(|_| BackupError::Damaged("its header is incomplete"))
}

fn read_end(input: &mut (impl Read + ?Sized)) -> Result<(), BackupError> {
    if read_frame(input)? != END {
        return Err(BackupError::Damaged("it has no end"));
    }
    // What encrypts the stream may notice only here that something was cut off.
    match input.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(BackupError::Damaged("something comes behind its end")),
    }
}
