//! Calls and their results, as lines of JSON: one file for each process.

mod journal;
mod load;

use serde::{Deserialize, Serialize};

pub use self::{
    journal::{Journal, now},
    load::{Account, Claim, History, Read, Sent, Write},
};

/// The earliest and the latest time.
pub const BEGINNING: u64 = 0;
pub const END: u64 = u64::MAX;

/// One line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    /// Nanoseconds of CLOCK_MONOTONIC, which all processes of a machine share.
    pub at: u64,
    pub process: String,
    /// Empty if the line concerns all accounts.
    pub account: String,
    #[serde(flatten)]
    pub note: Note,
}

/// An event. `opening` is one opening of an account, by opening a store or by reopening it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "note", rename_all = "snake_case")]
pub enum Note {
    /// An account is about to be opened; `former` is the same store's previous opening.
    Claim {
        opening: String,
        former: Option<String>,
    },
    Claimed {
        opening: String,
        outcome: Outcome,
    },
    /// A register is about to be written, in `rows` rows of the traced tables.
    Write {
        op: String,
        opening: String,
        register: String,
        rows: usize,
        /// Within `atomically`, where a dropped write is rolled back; otherwise it is finished.
        atomically: bool,
    },
    Written {
        op: String,
        outcome: Outcome,
    },
    /// A key of a register was read, by an opening or by a reader that owns nothing.
    Read {
        begun: u64,
        opening: Option<String>,
        register: String,
        key: String,
        value: Option<String>,
    },
    /// A read failed, or another operation that has no event of its own.
    Failed {
        opening: Option<String>,
        outcome: Outcome,
    },
    /// A ciphertext left a machine.
    Sent {
        begun: u64,
        opening: String,
        session: String,
        index: u64,
        ciphertext: String,
    },
    /// A process has ended.
    Died {
        gone: String,
    },
    /// A fault was injected.
    Fault {
        what: String,
    },
    /// Recorded at the end: a row, and the transaction that wrote it. The database numbers `Committed` and
    /// `Owned` in the order in which the owner's row was locked for them.
    Committed {
        number: i64,
        op: String,
        row: String,
        transaction: String,
    },
    /// Recorded at the end: an opening became the owner, or changed its token.
    Owned {
        number: i64,
        opening: String,
    },
    /// The account's commit count.
    Count {
        commits: u64,
    },
}

/// The result that the caller got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    Ok,
    /// Nothing was written: the operation was refused or rolled back.
    Nothing,
    /// The caller's future was dropped.
    Dropped,
    /// The error's variant, and its text.
    Error {
        kind: String,
        text: String,
    },
}

impl Outcome {
    pub fn is(&self, name: &str) -> bool {
        matches!(self, Self::Error { kind, .. } if kind == name)
    }

    /// A short name.
    pub fn name(&self) -> &str {
        match self {
            Self::Ok => "ok",
            Self::Nothing => "nothing written",
            Self::Dropped => "dropped",
            Self::Error { kind, .. } => kind,
        }
    }
}
