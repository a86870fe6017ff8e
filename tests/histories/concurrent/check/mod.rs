//! Checks whether a history is possible.

mod commits;
mod fence;
mod figures;
mod index_reuse;
mod owners;
mod registers;
mod report;
mod seeded;
mod zones;

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

pub use self::figures::Figures;
use crate::concurrent::history::{Account, History, Outcome, Sent};

/// A rule that a history may break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// A register is not linearizable: a lost write, a stale read, a transaction read in part.
    Order,
    /// A value was read that was not written, was rolled back, or was written later.
    Unwritten,
    /// Writes were acknowledged to an owner after a newer claim had returned.
    Ownership,
    /// According to the database a superseded owner wrote, or took the account back.
    Fence,
    /// A store returned `Superseded` without another owner.
    FalseTakeover,
    /// A store reported a rolled-back database or a corrupt row, or did not read its own write.
    Damage,
    /// The rows of a write do not agree with the result that its caller got.
    Commits,
    /// The account's commit count is not the number of its transactions.
    Count,
    /// Two ciphertexts have the same session and index.
    Reuse,
}

#[derive(Clone, Debug)]
pub struct Violation {
    pub rule: Rule,
    pub account: String,
    pub text: String,
    /// Operations and openings whose lines are printed.
    pub about: Vec<String>,
}

pub struct Report {
    pub violations: Vec<Violation>,
    pub figures: Figures,
}

/// Collects the violations of one account.
struct Findings<'a> {
    account: &'a str,
    found: Vec<Violation>,
}

impl Findings<'_> {
    fn add(&mut self, rule: Rule, text: String, about: &[&str]) {
        let about = about.iter().map(|name| (*name).to_owned()).collect();
        let account = self.account.to_owned();
        self.found.push(Violation { rule, account, text, about });
    }
}

pub fn check(history: &History) -> Report {
    let (started, mut violations) = (Instant::now(), Vec::new());
    for (name, account) in history.accounts.iter().filter(|(name, _)| !name.is_empty()) {
        let mut findings = Findings { account: name, found: Vec::new() };
        owners::check(account, &mut findings);
        fence::check(account, &mut findings);
        registers::check(account, &mut findings);
        commits::check(account, &mut findings);
        index_reuse::check(account, &mut findings);
        damage(account, &mut findings);
        violations.extend(findings.found);
    }
    let figures = Figures::of(history, started.elapsed());
    Report { violations, figures }
}

/// No database was rolled back, and no row is corrupt: no store may report that.
fn damage(account: &Account, findings: &mut Findings<'_>) {
    for (at, opening, outcome) in outcomes(account) {
        if ["DatabaseRolledBack", "CorruptRow", "CorruptRow", "Wrong"]
            .iter()
            .any(|name| outcome.is(name))
        {
            let opening = opening.unwrap_or("a reader");
            let text = format!("{opening} got {} at {at}", outcome.name());
            findings.add(Rule::Damage, text, &[opening]);
        }
    }
}

/// All results that an opening or a reader got.
fn outcomes(account: &Account) -> Vec<(u64, Option<&str>, &Outcome)> {
    let writes = account.writes.iter().filter_map(|write| {
        Some((write.ended, Some(write.opening.as_str()), write.outcome.as_ref()?))
    });
    let claims = account
        .claims
        .iter()
        .filter_map(|claim| Some((claim.ended, claim.former.as_deref(), claim.outcome.as_ref()?)));
    let others = account.failures.iter();
    let others = others.map(|(at, opening, outcome)| (*at, opening.as_deref(), outcome));
    writes.chain(claims).chain(others).collect()
}

/// Beginning and end of the acknowledged saves of each opening, including messages that were sent.
fn acknowledged(account: &Account) -> HashMap<&str, Vec<(u64, u64)>> {
    let mut saves: HashMap<&str, Vec<_>> = HashMap::new();
    for write in account.writes.iter().filter(|write| write.is_ok()) {
        saves.entry(&write.opening).or_default().push((write.begun, write.ended));
    }
    // A ciphertext that was stored may be sent again by another opening: that is not a save. Neither is a
    // Megolm message, whose index may have been reserved: a superseded owner may still send it.
    let mut senders: HashMap<&str, HashSet<&str>> = HashMap::new();
    for sent in &account.sent {
        senders.entry(&sent.ciphertext).or_default().insert(&sent.opening);
    }
    let is_saved = |sent: &&Sent| {
        senders[sent.ciphertext.as_str()].len() == 1 && !sent.session.starts_with("Megolm")
    };
    for sent in account.sent.iter().filter(is_saved) {
        saves.entry(&sent.opening).or_default().push((sent.begun, sent.ended));
    }
    saves
}

/// Whole milliseconds.
fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
