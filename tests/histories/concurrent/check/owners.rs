//! The account's owner is a register, too: a claim writes it, and each acknowledged save reads it.

use super::{
    Findings, Rule, acknowledged,
    fence::may_take_effect,
    outcomes,
    zones::{Cluster, conflicts},
};
use crate::concurrent::history::{Account, Claim, Outcome};

pub fn check(account: &Account, findings: &mut Findings<'_>) {
    let saves = acknowledged(account);
    let granted = account.claims.iter().filter(|claim| claim.outcome == Some(Outcome::Ok));
    let clusters: Vec<Cluster> = granted
        .map(|claim| {
            let mut cluster = Cluster::new(&claim.opening, claim.begun, claim.ended);
            let saves = saves.get(claim.opening.as_str()).into_iter().flatten();
            saves.for_each(|(begun, ended)| cluster.read(*begun, *ended));
            cluster
        })
        .collect();
    for (one, other) in conflicts(&clusters) {
        let text = format!(
            "{} owned the account from {} to {}, and {} at {}",
            one.value,
            one.first_end,
            one.last_begin,
            other.value,
            other.first_end.min(other.last_begin),
        );
        findings.add(Rule::Ownership, text, &[&one.value, &other.value]);
    }
    false_takeover(account, findings);
}

/// A store that gets `Superseded` has a successor: another opening claimed the account after this one, or
/// concurrently. A claim abandoned before this one began does not count. A claim that was refused counts if
/// the database shows that an earlier attempt of it was committed.
fn false_takeover(account: &Account, findings: &mut Findings<'_>) {
    let results = outcomes(account).into_iter();
    for (at, opening, _) in results.filter(|(_, _, outcome)| outcome.is("Superseded")) {
        let mine = account.claims.iter().find(|claim| Some(claim.opening.as_str()) == opening);
        let Some(mine) = mine else { continue };
        let is_another = |claim: &Claim| {
            claim.opening != mine.opening && claim.former.as_ref() != Some(&mine.opening)
        };
        let taken = account.claims.iter().any(|claim| {
            is_another(claim)
                && (may_take_effect(claim)
                    || account.owned.iter().any(|(_, name)| *name == claim.opening))
                && claim.begun < at
                && claim.ended > mine.begun
        });
        if !taken {
            let text = format!(
                "{} got Superseded at {at}, but no other opening had claimed the account",
                mine.opening
            );
            findings.add(Rule::FalseTakeover, text, &[&mine.opening]);
        }
    }
}
