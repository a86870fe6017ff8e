//! What the database holds of each write is what its caller was told, once, and the account counts it.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{Findings, Rule, acknowledged};
use crate::concurrent::history::{Account, Outcome, Write};

/// What the database holds of one write.
#[derive(Default)]
struct Traces<'a> {
    rows: HashSet<&'a str>,
    transactions: BTreeSet<&'a str>,
}

pub fn check(account: &Account, findings: &mut Findings<'_>) {
    // Where the database was not looked at, nothing can be said.
    let [before, .., after] = account.counts[..] else { return };
    let mut traces: HashMap<&str, Traces<'_>> = HashMap::new();
    let mut transactions = HashSet::new();
    for commit in &account.commits {
        let traces = traces.entry(&commit.op).or_default();
        traces.rows.insert(&commit.row);
        traces.transactions.insert(&commit.transaction);
        transactions.insert(&commit.transaction);
    }
    let saves = acknowledged(account);
    for write in &account.writes {
        let nothing = Traces::default();
        let traces = traces.get(write.op.as_str()).unwrap_or(&nothing);
        judge(write, traces, findings);
        // Its owner went on to write, in order.
        let mut later = saves.get(write.opening.as_str()).into_iter().flatten();
        let mut went_on = || later.any(|(begun, _)| *begun >= write.ended);
        let dropped = write.outcome == Some(Outcome::Dropped) && !write.atomically;
        if dropped && traces.transactions.is_empty() && went_on() {
            let text = format!("{} of {} was begun and not finished", write.op, write.opening);
            findings.add(Rule::Commits, text, &[&write.op]);
        }
    }
    let counted = after - before;
    let found = u64::try_from(transactions.len()).unwrap();
    if counted != found {
        let text =
            format!("{counted} commits are counted, and {found} transactions were committed");
        findings.add(Rule::Count, text, &[]);
    }
}

fn judge(write: &Write, traces: &Traces<'_>, findings: &mut Findings<'_>) {
    let told = write.outcome.as_ref().map_or("nothing: it died", Outcome::name);
    let Write { op, opening, rows, .. } = write;
    let mut wrong = |what: &str| {
        let text = format!("{op} of {opening} {what}, and its caller was told: {told}");
        findings.add(Rule::Commits, text, &[op]);
    };
    match traces.transactions.len() {
        0 if write.is_ok() => wrong("is lost"),
        0 => {}
        1 if write.outcome == Some(Outcome::Nothing) => wrong("was committed"),
        1 => {}
        _ => wrong("was committed twice"),
    }
    let held = traces.rows.len();
    if held > 0 && held != *rows {
        wrong(&format!("is torn: {held} of {rows} rows are there"));
    }
}
