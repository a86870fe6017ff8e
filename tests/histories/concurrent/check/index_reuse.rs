//! No session encrypts two messages with the same index.

use std::collections::HashMap;

use super::{Findings, Rule};
use crate::concurrent::history::Account;

pub fn check(account: &Account, findings: &mut Findings<'_>) {
    let mut used: HashMap<(&str, u64), &str> = HashMap::new();
    for sent in &account.sent {
        let key = (sent.session.as_str(), sent.index);
        let before = used.insert(key, &sent.ciphertext);
        // The same ciphertext may be sent again.
        if before.is_some_and(|before| before != sent.ciphertext) {
            let text = format!("index {} of {} encrypts two messages", sent.index, sent.session);
            findings.add(Rule::Reuse, text, &[before.unwrap_or_default(), &sent.ciphertext]);
        }
    }
}
