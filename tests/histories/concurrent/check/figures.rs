//! Counts of operations, results and faults.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use super::{acknowledged, milliseconds};
use crate::concurrent::history::{Account, History, Outcome};

/// Counters by name.
#[derive(Clone, Debug, Default)]
pub struct Figures(BTreeMap<String, u64>);

impl Figures {
    pub fn of(history: &History, checked: Duration) -> Self {
        let mut figures = Self::default();
        for account in history.accounts.values() {
            figures.count_account(account);
        }
        for (what, times) in &history.faults {
            figures.count(&format!("faults, {what}"), *times);
        }
        figures.count("lines", count(&history.lines));
        figures.count("checker, ms", milliseconds(checked));
        figures
    }

    fn count_account(&mut self, account: &Account) {
        let name = |outcome: &Option<Outcome>| {
            outcome.as_ref().map_or("process died", Outcome::name).to_owned()
        };
        for claim in &account.claims {
            self.count(&format!("claims, {}", name(&claim.outcome)), 1);
        }
        let committed: HashSet<_> = account.commits.iter().map(|commit| &commit.op).collect();
        for write in &account.writes {
            self.count(&format!("writes, {}", name(&write.outcome)), 1);
            if !matches!(write.outcome, Some(Outcome::Ok | Outcome::Nothing)) {
                let found =
                    if committed.contains(&write.op) { "committed" } else { "not committed" };
                self.count(&format!("unknown outcome, {found}"), 1);
            }
        }
        for (_, _, outcome) in &account.failures {
            self.count(&format!("other failures, {}", outcome.name()), 1);
        }
        let last = |saves: &Vec<(u64, u64)>| saves.iter().map(|(begun, _)| *begun).max();
        let last: HashMap<_, _> = acknowledged(account)
            .into_iter()
            .map(|(opening, saves)| (opening, last(&saves)))
            .collect();
        for read in &account.reads {
            let by = match read.opening.as_deref() {
                None => "reads that count, of readers",
                Some(opening) if last.get(opening) > Some(&Some(read.ended)) => {
                    "reads that count, of owners"
                }
                Some(_) => "reads that do not count",
            };
            self.count(by, 1);
        }
        self.count("messages encrypted", count(&account.sent));
    }

    /// The figures for the table in docs/reliability.md. The others show the coverage.
    pub fn summary(&self) -> Vec<(&'static str, u64)> {
        let sum = |prefixes: &[&str]| {
            let counted = self.0.iter();
            let counted =
                counted.filter(|(what, _)| prefixes.iter().any(|prefix| what.starts_with(prefix)));
            counted.map(|(_, number)| number).sum()
        };
        vec![
            ("rounds", sum(&["rounds"])),
            (
                "claims, writes, reads and encryptions",
                sum(&["claims", "writes", "reads", "messages"]),
            ),
            ("claims that were granted", sum(&["claims, ok"])),
            ("writes acknowledged", sum(&["writes, ok"])),
            ("writes of unknown outcome", sum(&["unknown outcome"])),
            ("of these committed", sum(&["unknown outcome, committed"])),
            ("reads that count", sum(&["reads that count"])),
            ("messages encrypted", sum(&["messages encrypted"])),
            (
                "kill -9 of a process or the server",
                sum(&["faults, processes killed", "faults, servers killed"]),
            ),
            (
                "links, connections and processes stalled or stopped",
                sum(&[
                    "faults, links stalled",
                    "faults, links delayed",
                    "faults, connections stalled",
                    "faults, claims and COMMITs held",
                    "faults, processes stopped",
                    "faults, server processes stopped",
                ]),
            ),
            (
                "connections cut or ended, times",
                sum(&[
                    "faults, links cut",
                    "faults, clients' ends cut",
                    "faults, server processes ended",
                ]),
            ),
            ("time of the checker, ms", sum(&["checker"])),
        ]
    }

    pub fn count(&mut self, what: &str, number: u64) {
        *self.0.entry(what.to_owned()).or_default() += number;
    }

    pub fn get(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or_default()
    }

    pub fn add(&mut self, other: &Self) {
        other.lines().for_each(|(what, number)| self.count(what, number));
    }

    pub fn lines(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(what, number)| (what.as_str(), *number))
    }
}

fn count<T>(items: &[T]) -> u64 {
    u64::try_from(items.len()).unwrap()
}
