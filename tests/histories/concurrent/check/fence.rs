//! In the database's order, each commit is by the owner that the last claim before it has set. And claims
//! take effect in the order of their calls: none takes effect after another one that began after its end.

use std::collections::HashMap;

use super::{Findings, Rule};
use crate::concurrent::history::{Account, Claim};

/// A store, named after its first opening, from the beginning of its first claim to the end of its last.
struct Store {
    begun: u64,
    ended: u64,
}

enum Trace<'a> {
    Owned(&'a str),
    Committed(&'a str),
}

pub fn check(account: &Account, findings: &mut Findings<'_>) {
    let names = store_names(account);
    let writers: HashMap<&str, &str> =
        account.writes.iter().map(|write| (write.op.as_str(), write.opening.as_str())).collect();
    let stores = stores(account, &names);
    // The owner, and the store whose claim began last so far.
    let (mut owner, mut newest) = (None, None::<(&str, u64)>);
    for trace in traces(account) {
        match trace {
            Trace::Owned(name) => {
                owner = Some(name);
                let Some(store) = stores.get(name) else { continue };
                if let Some((other, _)) = newest.filter(|(_, begun)| store.ended < *begun) {
                    let text = format!(
                        "{name} took the account from {other}, whose claim began after the end of this one"
                    );
                    findings.add(Rule::Fence, text, &[name, other]);
                } else if newest.is_none_or(|(_, begun)| begun < store.begun) {
                    newest = Some((name, store.begun));
                }
            }
            Trace::Committed(op) => {
                let Some(opening) = writers.get(op) else { continue };
                let store = names.get(opening).copied();
                if let Some(owner) = owner.filter(|owner| store != Some(owner)) {
                    let text =
                        format!("{op} of {opening} was committed when {owner} was the owner");
                    findings.add(Rule::Fence, text, &[op, opening, owner]);
                }
            }
        }
    }
}

/// Takeovers and commits, in the database's order.
fn traces(account: &Account) -> impl Iterator<Item = Trace<'_>> {
    let owned = account.owned.iter().map(|(number, name)| (*number, Trace::Owned(name)));
    let commits = account.commits.iter();
    let commits = commits.map(|commit| (commit.number, Trace::Committed(&commit.op)));
    let mut traces: Vec<_> = owned.chain(commits).collect();
    traces.sort_by_key(|(number, _)| *number);
    traces.into_iter().map(|(_, trace)| trace)
}

/// The name of the store of each opening.
fn store_names(account: &Account) -> HashMap<&str, &str> {
    let mut names: HashMap<&str, &str> = HashMap::new();
    for claim in &account.claims {
        let former = claim.former.as_deref().and_then(|former| names.get(former));
        let name = former.copied().unwrap_or(&claim.opening);
        names.insert(&claim.opening, name);
    }
    names
}

fn stores<'a>(account: &'a Account, names: &HashMap<&'a str, &'a str>) -> HashMap<&'a str, Store> {
    let mut stores: HashMap<&str, Store> = HashMap::new();
    for claim in account.claims.iter().filter(|claim| may_take_effect(claim)) {
        let store = stores.entry(names[claim.opening.as_str()]);
        let store = store.or_insert(Store { begun: claim.begun, ended: claim.ended });
        store.ended = store.ended.max(claim.ended);
    }
    stores
}

/// A claim that was refused takes no effect later.
pub fn may_take_effect(claim: &Claim) -> bool {
    let refusals = ["OwnerAlive", "Superseded", "DatabaseRolledBack"];
    let outcome = claim.outcome.as_ref();
    !outcome.is_some_and(|outcome| refusals.iter().any(|name| outcome.is(name)))
}
