//! Loads the files of a history.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

use super::{END, Line, Note, Outcome};

/// The operations of all processes, by account.
#[derive(Default)]
pub struct History {
    pub accounts: BTreeMap<String, Account>,
    /// Number of injected faults of each kind.
    pub faults: BTreeMap<String, u64>,
    pub lines: Vec<Line>,
}

#[derive(Default)]
pub struct Account {
    pub claims: Vec<Claim>,
    pub writes: Vec<Write>,
    pub reads: Vec<Read>,
    pub sent: Vec<Sent>,
    pub commits: Vec<Commit>,
    /// Owners, as recorded in the database.
    pub owned: Vec<(i64, String)>,
    /// `commit_count()`: the first before all writes, the last after them.
    pub counts: Vec<u64>,
    /// Failures of operations that are not listed above.
    pub failures: Vec<(u64, Option<String>, Outcome)>,
}

pub struct Claim {
    pub opening: String,
    pub former: Option<String>,
    pub begun: u64,
    /// When the call returned, was abandoned, or its process died.
    pub ended: u64,
    pub outcome: Option<Outcome>,
}

pub struct Write {
    pub op: String,
    pub opening: String,
    pub register: String,
    pub rows: usize,
    pub atomically: bool,
    pub begun: u64,
    pub ended: u64,
    /// `None` if the process died before the end.
    pub outcome: Option<Outcome>,
}

impl Write {
    pub fn is_ok(&self) -> bool {
        self.outcome == Some(Outcome::Ok)
    }
}

pub struct Read {
    pub opening: Option<String>,
    pub register: String,
    pub key: String,
    pub begun: u64,
    pub ended: u64,
    pub value: Option<String>,
}

pub struct Sent {
    pub opening: String,
    pub session: String,
    pub index: u64,
    pub ciphertext: String,
    pub begun: u64,
    pub ended: u64,
}

pub struct Commit {
    pub number: i64,
    pub op: String,
    pub row: String,
    pub transaction: String,
}

impl History {
    /// Reads all files of a directory. The last line of a killed process may be incomplete.
    pub fn load(directory: &Path) -> Self {
        let mut lines = Vec::new();
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "jsonl") {
                let text = fs::read_to_string(&path).unwrap();
                let whole = text.rsplit_once('\n').map_or("", |(whole, _incomplete)| whole);
                let parsed = whole.lines().map(serde_json::from_str::<Line>);
                let parsed: Result<Vec<_>, _> = parsed.collect();
                lines.extend(parsed.unwrap_or_else(|error| panic!("{}: {error}", path.display())));
            }
        }
        Self::new(lines)
    }

    pub fn new(mut lines: Vec<Line>) -> Self {
        lines.sort_by_key(|line| line.at);
        let mut history = Self::default();
        let mut opened = HashMap::new();
        for line in &lines {
            history.add(line, &mut opened);
        }
        history.lines = lines;
        history
    }

    /// `opened` holds the process and the index of each claim and write that has not ended yet.
    fn add(&mut self, line: &Line, opened: &mut HashMap<String, (String, usize)>) {
        let (at, account) = (line.at, self.accounts.entry(line.account.clone()).or_default());
        match line.note.clone() {
            Note::Claim { opening, former } => {
                let index = (line.process.clone(), account.claims.len());
                opened.insert(opening.clone(), index);
                let claim = Claim { opening, former, begun: at, ended: END, outcome: None };
                account.claims.push(claim);
            }
            Note::Claimed { opening, outcome } => {
                let claim = &mut account.claims[opened.remove(&opening).unwrap().1];
                (claim.ended, claim.outcome) = (at, Some(outcome));
            }
            Note::Write { op, opening, register, rows, atomically } => {
                opened.insert(op.clone(), (line.process.clone(), account.writes.len()));
                let (begun, ended, outcome) = (at, END, None);
                account.writes.push(Write {
                    op,
                    opening,
                    register,
                    rows,
                    atomically,
                    begun,
                    ended,
                    outcome,
                });
            }
            Note::Written { op, outcome } => {
                let write = &mut account.writes[opened.remove(&op).unwrap().1];
                (write.ended, write.outcome) = (at, Some(outcome));
            }
            Note::Read { begun, opening, register, key, value } => {
                account.reads.push(Read { opening, register, key, begun, ended: at, value });
            }
            Note::Sent { begun, opening, session, index, ciphertext } => {
                let sent = Sent { opening, session, index, ciphertext, begun, ended: at };
                account.sent.push(sent);
            }
            Note::Failed { opening, outcome } => account.failures.push((at, opening, outcome)),
            Note::Committed { number, op, row, transaction } => {
                account.commits.push(Commit { number, op, row, transaction });
            }
            Note::Owned { number, opening } => account.owned.push((number, opening)),
            Note::Count { commits } => account.counts.push(commits),
            Note::Died { gone } => {
                opened.retain(|_, (process, _)| *process != gone);
                self.end_claims_of(&gone, at);
            }
            Note::Fault { what } => *self.faults.entry(what).or_default() += 1,
        }
    }

    /// A dead process sends no more claims. Writes that it has sent may still take effect.
    fn end_claims_of(&mut self, process: &str, at: u64) {
        let prefix = format!("{process}:");
        for claim in self.accounts.values_mut().flat_map(|account| &mut account.claims) {
            if claim.ended == END && claim.opening.starts_with(&prefix) {
                claim.ended = at;
            }
        }
    }
}
