//! No session encrypts two messages with one index.

use std::collections::HashMap;

use super::{Findings, Rule};
use crate::concurrent::history::Account;

pub fn check(account: &Account, findings: &mut Findings<'_>) {
    let mut used: HashMap<(&str, u64), &str> = HashMap::new();
    for sent in &account.sent {
        let place = (sent.session.as_str(), sent.index);
        let before = used.insert(place, &sent.ciphertext);
        // One that is sent again is no second one.
        if before.is_some_and(|before| before != sent.ciphertext) {
            let text = format!("index {} of {} encrypts two messages", sent.index, sent.session);
            findings.add(Rule::Reuse, text, &[before.unwrap_or_default(), &sent.ciphertext]);
        }
    }
}
