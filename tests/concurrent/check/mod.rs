//! Says of a history whether it is possible.

mod commits;
mod fence;
mod figures;
mod owners;
mod ratchets;
mod registers;
mod seeded;
mod zones;

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

pub use self::figures::Figures;
use crate::history::{Account, History, Note, Outcome};

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// A register's answers have no order: a lost write, a stale read, a torn transaction.
    Order,
    /// A value was read that was not written, was rolled back, or was written later.
    Unwritten,
    /// Writes were acknowledged to an owner after a newer claim had returned.
    Ownership,
    /// In the database a former owner wrote, or took the account back.
    Fence,
    /// A store was told of a new owner, and there was none.
    TakenByNobody,
    /// A store was told that its database is older than what it has seen, or of a row that cannot be
    /// read; or it did not read its own write.
    Damage,
    /// What the database holds of a write is not what its caller was told.
    Commits,
    /// The account's count is not the number of its transactions.
    Count,
    /// Two ciphertexts have one session and one index.
    Reuse,
}

#[derive(Clone, Debug)]
pub struct Violation {
    pub rule: Rule,
    pub account: String,
    pub text: String,
    /// Names whose lines tell the story.
    pub about: Vec<String>,
}

pub struct Report {
    pub violations: Vec<Violation>,
    pub figures: Figures,
}

/// Notes violations of one account.
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
        ratchets::check(account, &mut findings);
        damage(account, &mut findings);
        violations.extend(findings.found);
    }
    let figures = Figures::of(history, started.elapsed());
    Report { violations, figures }
}

/// No database was set back, and no row was damaged: nobody may be told so.
fn damage(account: &Account, findings: &mut Findings<'_>) {
    for (at, opening, outcome) in outcomes(account) {
        if ["Rewound", "RolledBack", "BadRow", "CorruptRow", "Wrong"]
            .iter()
            .any(|name| outcome.is(name))
        {
            let opening = opening.unwrap_or("a reader");
            let text = format!("{opening} was told {} at {at}", outcome.name());
            findings.add(Rule::Damage, text, &[opening]);
        }
    }
}

/// Everything that was answered to an opening, or to a reader.
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

/// Acknowledged saves of each opening, messages that were sent included: when they began and ended.
fn acknowledged(account: &Account) -> HashMap<&str, Vec<(u64, u64)>> {
    let mut saves: HashMap<&str, Vec<_>> = HashMap::new();
    for write in account.writes.iter().filter(|write| write.is_ok()) {
        saves.entry(&write.opening).or_default().push((write.begun, write.ended));
    }
    for sent in &account.sent {
        saves.entry(&sent.opening).or_default().push((sent.begun, sent.ended));
    }
    saves
}

/// The lines of the history that concern a violation: of reads the first and the last ones, and who was
/// given the account in between.
fn excerpt(history: &History, violation: &Violation) -> String {
    let names: Vec<_> = violation.about.iter().map(|name| format!("\"{name}\"")).collect();
    let of_account = history.lines.iter().filter(|line| line.account == violation.account);
    let texts = of_account.map(|line| (line, serde_json::to_string(line).unwrap()));
    let (about, others): (Vec<_>, Vec<_>) =
        texts.partition(|(_, text)| names.iter().any(|name| text.contains(name)));
    let (reads, mut told): (Vec<_>, Vec<_>) =
        about.into_iter().partition(|(line, _)| matches!(line.note, Note::Read { .. }));
    let (first, last) = (0..reads.len()).partition::<Vec<_>, _>(|at| *at < 4);
    let last = last.into_iter().rev().take(4);
    told.extend(first.into_iter().chain(last).map(|at| reads[at].clone()));
    let (begun, ended) =
        (told.iter().map(|(line, _)| line.at).min(), told.iter().map(|(line, _)| line.at).max());
    let granted = others.into_iter().filter(|(line, _)| {
        matches!(line.note, Note::Claimed { outcome: Outcome::Ok, .. })
            && Some(line.at) > begun
            && Some(line.at) < ended
    });
    told.extend(granted.take(12));
    told.sort_by_key(|(line, _)| line.at);
    told.iter().take(60).map(|(_, text)| format!("    {text}\n")).collect()
}

/// How many violations are told with their lines.
const TOLD: usize = 20;

impl Report {
    /// What is wrong, and the lines that show it.
    pub fn tell(&self, history: &History) -> String {
        let mut text = String::new();
        for (number, violation) in self.violations.iter().enumerate() {
            let Violation { rule, account, text: what, .. } = violation;
            text += &format!("{rule:?} of {account}: {what}\n");
            if number < TOLD {
                text += &excerpt(history, violation);
            }
        }
        text + &format!("{} violations\n", self.violations.len())
    }
}

/// How long it took, for people.
fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
