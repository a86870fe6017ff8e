//! The rows of each write agree with the result that its caller got: written once, or not at all; and the
//! account's commit count is the number of its transactions.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{Findings, Rule, acknowledged};
use crate::concurrent::history::{Account, Outcome, Write};

/// The rows of one write in the database, and the transactions that wrote them.
#[derive(Default)]
struct Traces<'a> {
    rows: HashSet<&'a str>,
    transactions: BTreeSet<&'a str>,
}

pub fn check(account: &Account, findings: &mut Findings<'_>) {
    // Without counts from before and after there is nothing to compare.
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
        // Whether the owner has written later: saves are in order, so this one must have been finished.
        let mut later = saves.get(write.opening.as_str()).into_iter().flatten();
        let mut went_on = || later.any(|(begun, _)| *begun >= write.ended);
        let dropped = write.outcome == Some(Outcome::Dropped) && !write.atomically;
        if dropped && traces.transactions.is_empty() && went_on() {
            let text = format!(
                "{} of {} was begun and not finished, although its owner has written later",
                write.op, write.opening
            );
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
    let result = write.outcome.as_ref().map_or("nothing: the process died", Outcome::name);
    let Write { op, opening, rows, .. } = write;
    let mut wrong = |what: &str| {
        let text = format!("{op} of {opening} {what}, and its caller got: {result}");
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
