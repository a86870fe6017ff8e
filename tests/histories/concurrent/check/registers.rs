//! Each register is linearizable: its operations have an order in which every read returns the last write.
//!
//! Reads that count: those of a reader, which queries the primary without a cache; and those of an owner
//! that began a write afterwards which was acknowledged, because it was still the owner then.
//!
//! During a write of its own, an owner may read the new value early (within `atomically`) or the old one late
//! (from its cache, although the server has committed the write and others have read it). Such a read counts
//! for the whole time of that write.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{
    Findings, Rule, acknowledged,
    zones::{Cluster, conflicts},
};
use crate::concurrent::history::{Account, BEGINNING, END, Outcome, Read, Write};

pub fn check(account: &Account, findings: &mut Findings<'_>) {
    let mut registers: BTreeMap<&str, (Vec<&Write>, Vec<&Read>)> = BTreeMap::new();
    for write in &account.writes {
        registers.entry(&write.register).or_default().0.push(write);
    }
    for read in &account.reads {
        registers.entry(&read.register).or_default().1.push(read);
    }
    let last_saves = last_saves(account);
    let committed: HashSet<&str> =
        account.commits.iter().map(|commit| commit.op.as_str()).collect();
    for (register, (writes, reads)) in registers {
        let by_value: HashMap<&str, &Write> =
            writes.iter().map(|write| (write.op.as_str(), *write)).collect();
        let mut by_opening: HashMap<&str, Vec<PendingWrite<'_>>> = HashMap::new();
        for write in &writes {
            // A write whose future was dropped may still take effect.
            let until = match write.is_ok() {
                true => write.ended,
                false => unanswered(account, write).first_end,
            };
            by_opening.entry(&write.opening).or_default().push(PendingWrite { write, until });
        }
        let mut clusters: BTreeMap<&str, Cluster> = BTreeMap::new();
        clusters.insert("", Cluster::new("", BEGINNING, BEGINNING));
        for write in &writes {
            if write.is_ok() {
                let cluster = Cluster::new(&write.op, write.begun, write.ended);
                clusters.insert(&write.op, cluster);
            } else if committed.contains(write.op.as_str()) {
                clusters.insert(&write.op, unanswered(account, write));
            }
        }
        for read in reads {
            let own = read.opening.as_deref().map(|opening| by_opening.get(opening));
            let own = own.map(|writes| writes.map_or(&[][..], Vec::as_slice));
            let Some((begun, ended)) = when(read, own, &last_saves) else { continue };
            let value = read.value.as_deref().unwrap_or_default();
            match by_value.get(value) {
                None if !value.is_empty() => unwritten(findings, read, "was never written"),
                Some(write) if write.begun > read.ended => {
                    unwritten(findings, read, "was written later");
                }
                Some(write) if write.outcome == Some(Outcome::Nothing) => {
                    unwritten(findings, read, "was rolled back");
                }
                write => {
                    let cluster = clusters.entry(value);
                    let cluster = cluster.or_insert_with(|| match write {
                        Some(write) => unanswered(account, write),
                        None => Cluster::new("", BEGINNING, BEGINNING),
                    });
                    cluster.read(begun, ended);
                }
            }
        }
        let clusters: Vec<_> = clusters.into_values().collect();
        for (one, other) in conflicts(&clusters) {
            let text = format!(
                "{register} was {:?} from {} to {}, and {:?} from {} to {}",
                one.value,
                one.first_end,
                one.last_begin,
                other.value,
                other.first_end.min(other.last_begin),
                other.first_end.max(other.last_begin),
            );
            findings.add(Rule::Order, text, &[&one.value, &other.value]);
        }
    }
}

fn unwritten(findings: &mut Findings<'_>, read: &Read, why: &str) {
    let value = read.value.as_deref().unwrap_or_default();
    let by = read.opening.as_deref().unwrap_or("a reader");
    let text = format!("{} of {}: {by} read {value:?}, which {why}", read.key, read.register);
    findings.add(Rule::Unwritten, text, &[value]);
}

/// When each opening began the last of its acknowledged saves.
fn last_saves(account: &Account) -> HashMap<&str, u64> {
    let last = |saves: Vec<(u64, u64)>| saves.iter().map(|(begun, _)| *begun).max();
    let saves = acknowledged(account).into_iter();
    saves.filter_map(|(opening, saves)| Some((opening, last(saves)?))).collect()
}

/// A write of an owner, and the end of the time in which it may take effect.
struct PendingWrite<'a> {
    write: &'a Write,
    until: u64,
}

/// The time for which a read counts, if it does. `own`: the owner's writes of the register.
fn when(
    read: &Read,
    own: Option<&[PendingWrite<'_>]>,
    last_saves: &HashMap<&str, u64>,
) -> Option<(u64, u64)> {
    let (mut begun, mut ended) = (read.begun, read.ended);
    let (Some(own), Some(opening)) = (own, read.opening.as_deref()) else {
        return Some((begun, ended));
    };
    if last_saves.get(opening).is_none_or(|last| *last <= read.ended) {
        return None;
    }
    let overlap = |own: &&PendingWrite<'_>| own.write.begun < read.ended && own.until > read.begun;
    for PendingWrite { write, .. } in own.iter().filter(overlap) {
        begun = begun.min(write.begun);
        if read.value.as_ref() == Some(&write.op) {
            // Others never read a write that fails.
            ended = write.is_ok().then_some(ended.max(write.ended))?;
        }
    }
    Some((begun, ended))
}

/// A write of unknown outcome that was read. It took effect before a newer owner's claim returned, and
/// before the end of the later writes of its own store.
fn unanswered(account: &Account, write: &Write) -> Cluster {
    let claim = account.claims.iter().find(|claim| claim.opening == write.opening);
    let claimed = claim.map_or(BEGINNING, |claim| claim.ended);
    let claims = account.claims.iter().filter(|claim| {
        claim.outcome == Some(Outcome::Ok) && claim.begun >= claimed && claim.ended > write.begun
    });
    let later = account.writes.iter().filter(|later| {
        later.is_ok() && later.opening == write.opening && later.begun >= write.ended
    });
    let ends = claims.map(|claim| claim.ended).chain(later.map(|later| later.ended));
    Cluster::new(&write.op, write.begun, ends.min().unwrap_or(END))
}
