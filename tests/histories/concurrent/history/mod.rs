//! What was asked and answered, as lines of JSON: one file a process.

mod journal;
mod load;

use serde::{Deserialize, Serialize};

pub use self::{
    journal::{Journal, now},
    load::{Account, Claim, History, Read, Sent, Write},
};

/// The first and the last moment.
pub const BEGINNING: u64 = 0;
pub const END: u64 = u64::MAX;

/// One line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    /// Nanoseconds of CLOCK_MONOTONIC, which all processes of a machine share.
    pub at: u64,
    pub process: String,
    /// Empty in what concerns all accounts.
    pub account: String,
    #[serde(flatten)]
    pub note: Note,
}

/// What is noted. `opening` is one opening of an account, by opening a store or by reopening it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "note", rename_all = "snake_case")]
pub enum Note {
    /// An account is about to be opened; `former` is the store's own opening before.
    Claim {
        opening: String,
        former: Option<String>,
    },
    Claimed {
        opening: String,
        outcome: Outcome,
    },
    /// A register is about to be written: in `rows` rows of the database that are watched.
    Write {
        op: String,
        opening: String,
        register: String,
        rows: usize,
        /// Within `atomically`: dropped, it is rolled back, and all else is finished.
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
    /// A read, or anything else that is not noted otherwise, failed.
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
    /// A process is gone.
    Died {
        gone: String,
    },
    /// What was done to them.
    Fault {
        what: String,
    },
    /// At the end: a row that was written, and the transaction that wrote it. The database numbers
    /// these and the next, in the order in which the owner's row was locked for them.
    Committed {
        number: i64,
        op: String,
        row: String,
        transaction: String,
    },
    /// At the end: the account was given to an opening, or the token of that opening was changed.
    Owned {
        number: i64,
        opening: String,
    },
    /// How many commits the account counts.
    Count {
        commits: u64,
    },
}

/// How something ended for the caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    Ok,
    /// The caller was told that nothing was written, or had it rolled back.
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

    /// In a word.
    pub fn name(&self) -> &str {
        match self {
            Self::Ok => "ok",
            Self::Nothing => "nothing written",
            Self::Dropped => "dropped",
            Self::Error { kind, .. } => kind,
        }
    }
}
