//! How much was tried.

use std::{collections::BTreeMap, time::Duration};

use super::{acknowledged, milliseconds};
use crate::history::{History, Outcome};

/// Numbers by what they count.
#[derive(Clone, Debug, Default)]
pub struct Figures(BTreeMap<String, u64>);

impl Figures {
    pub fn of(history: &History, checked: Duration) -> Self {
        let mut figures = Self::default();
        for account in history.accounts.values() {
            for claim in &account.claims {
                let outcome = claim.outcome.as_ref().map_or("process died", Outcome::name);
                figures.count(&format!("claims, {outcome}"), 1);
            }
            for write in &account.writes {
                let outcome = write.outcome.as_ref().map_or("process died", Outcome::name);
                figures.count(&format!("writes, {outcome}"), 1);
            }
            for (_, _, outcome) in &account.failures {
                figures.count(&format!("other failures, {}", outcome.name()), 1);
            }
            let (mut own, mut owners) = (0, 0);
            let saves = acknowledged(account);
            for read in &account.reads {
                let Some(opening) = &read.opening else {
                    own += 1;
                    continue;
                };
                let saves = saves.get(opening.as_str()).into_iter().flatten();
                owners += u64::from(saves.map(|(begun, _)| *begun).max() > Some(read.ended));
            }
            figures.count("reads that counted, by readers", own);
            figures.count("reads that counted, by owners", owners);
            figures.count("messages encrypted", count(&account.sent));
            figures.count("rows traced in the database", count(&account.commits));
        }
        for (what, times) in &history.faults {
            figures.count(&format!("faults, {what}"), *times);
        }
        figures.count("lines", count(&history.lines));
        figures.count("ms that the checker took", milliseconds(checked));
        figures
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
