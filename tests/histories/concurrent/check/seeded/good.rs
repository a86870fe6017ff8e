//! The history of a correct store: operations overlap, and each takes effect at one moment.

use std::collections::HashMap;

use crate::concurrent::history::{Line, Note, Outcome};

const STEPS: u64 = 300;
/// Time between the effects of two operations.
const STEP: u64 = 100;

/// A correct store.
struct CorrectStore {
    rng: fastrand::Rng,
    lines: Vec<Line>,
    /// The time at which the next operation takes effect.
    now: u64,
    values: HashMap<String, String>,
    owner: Option<(String, u64)>,
    former: Vec<String>,
    index: u64,
    commits: u64,
    /// Rows read from the database, which are recorded last.
    traces: Vec<Note>,
    number: i64,
}

pub fn history(seed: u64) -> Vec<Line> {
    let mut store = CorrectStore {
        rng: fastrand::Rng::with_seed(seed),
        lines: Vec::new(),
        now: 1000,
        values: HashMap::new(),
        owner: None,
        former: Vec::new(),
        index: 0,
        commits: 0,
        traces: Vec::new(),
        number: 0,
    };
    store.line(0, Note::Count { commits: 0 });
    store.claim(0);
    for step in 1..STEPS {
        store.now += STEP;
        match store.rng.u32(0..20) {
            0 => store.claim(step),
            1..8 => store.write(step),
            8 => store.send(step),
            _ => store.read(),
        }
    }
    store.now += 100 * STEP;
    let traces = std::mem::take(&mut store.traces);
    traces.into_iter().for_each(|note| store.line(store.now, note));
    let commits = store.commits;
    store.line(store.now + 1, Note::Count { commits });
    store.lines.sort_by_key(|line| line.at);
    store.lines
}

impl CorrectStore {
    fn line(&mut self, at: u64, note: Note) {
        let (process, account) = ("p".to_owned(), "bot".to_owned());
        self.lines.push(Line { at, process, account, note });
    }

    fn next_number(&mut self) -> i64 {
        self.number += 1;
        self.number
    }

    /// Beginning and end around now, so that operations overlap with some before and after them.
    fn around(&mut self, earliest: u64) -> (u64, u64) {
        let begun = self.now - self.rng.u64(1..3 * STEP);
        (begun.max(earliest), self.now + self.rng.u64(1..3 * STEP))
    }

    fn claim(&mut self, step: u64) {
        let opening = format!("p:o{step}");
        let (begun, ended) = self.around(0);
        self.line(begun, Note::Claim { opening: opening.clone(), former: None });
        self.line(ended, Note::Claimed { opening: opening.clone(), outcome: Outcome::Ok });
        let number = self.next_number();
        self.traces.push(Note::Owned { number, opening: opening.clone() });
        if let Some((former, _)) = self.owner.replace((opening, ended)) {
            self.former.push(former);
        }
        // The new owner's operations take effect after its claim has returned.
        self.now = ended;
    }

    fn write(&mut self, step: u64) {
        let register = if self.rng.bool() { "lone-0" } else { "pair-0" }.to_owned();
        let keys: &[&str] = if register == "lone-0" { &["a"] } else { &["a", "b"] };
        let (op, rows) = (format!("p:{step}"), keys.len());
        let (opening, since) = self.owner.clone().unwrap();
        let (begun, ended) = self.around(since);
        let (name, atomically) = (op.clone(), register == "pair-0");
        let note = Note::Write { op: name, opening, register: register.clone(), rows, atomically };
        self.line(begun, note);
        let error = || Outcome::Error { kind: "Database".to_owned(), text: String::new() };
        let (outcome, takes_effect) = match self.rng.u32(0..20) {
            0 => (Some(Outcome::Nothing), false),
            1 => (Some(error()), true),
            2 => (Some(error()), false),
            3 => (None, true),
            _ => (Some(Outcome::Ok), true),
        };
        if takes_effect {
            self.commits += 1;
            self.values.insert(register, op.clone());
            for key in keys {
                let (row, transaction) = ((*key).to_owned(), step.to_string());
                let (number, op) = (self.next_number(), op.clone());
                self.traces.push(Note::Committed { number, op, row, transaction });
            }
        }
        if let Some(outcome) = outcome {
            self.line(ended, Note::Written { op, outcome });
        }
    }

    fn read(&mut self) {
        let register = if self.rng.bool() { "lone-0" } else { "pair-0" }.to_owned();
        let keys: &[&str] = if register == "lone-0" { &["a"] } else { &["a", "b"] };
        let key = (*self.rng.choice(keys).unwrap()).to_owned();
        let value = self.values.get(&register).cloned();
        let by_owner = self.rng.bool();
        let (owner, since) = self.owner.clone().unwrap();
        let (begun, ended) = self.around(if by_owner { since } else { 0 });
        let opening = by_owner.then_some(owner);
        self.line(ended, Note::Read { begun, opening, register, key, value });
        // Cached reads of a superseded owner do not count.
        if let Some(former) = self.former.last().cloned().filter(|_| self.rng.bool()) {
            let (register, key) = ("lone-0".to_owned(), "a".to_owned());
            let (opening, value) = (Some(former), Some("p:remembered".to_owned()));
            self.line(ended + 1, Note::Read { begun, opening, register, key, value });
        }
    }

    fn send(&mut self, step: u64) {
        let (opening, since) = self.owner.clone().unwrap();
        let (begun, ended) = self.around(since);
        let (session, ciphertext) = ("a session".to_owned(), format!("ciphertext {step}"));
        let index = self.index;
        self.index += 1;
        self.line(ended, Note::Sent { begun, opening, session, index, ciphertext });
    }
}
