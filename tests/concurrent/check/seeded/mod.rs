//! The checker is tested, too: it finds nothing in good histories, and what was seeded into them.

mod faults;
mod good;

use super::{Rule, check};
use crate::{
    common::directory::Directory,
    history::{History, Journal, Line},
};

/// The rules that a history breaks.
fn broken(lines: Vec<Line>) -> Vec<Rule> {
    let mut rules: Vec<Rule> =
        check(&History::new(lines)).violations.iter().map(|violation| violation.rule).collect();
    rules.sort_unstable();
    rules.dedup();
    rules
}

#[test]
fn good_histories_pass() {
    for seed in 0..200 {
        let history = History::new(good::history(seed));
        let report = check(&history);
        assert!(report.violations.is_empty(), "seed {seed}: {}", report.tell(&history));
    }
}

/// One fault after the other, each in many histories.
#[test]
fn what_is_seeded_is_found() {
    for (name, rule, seed_fault) in faults::ALL {
        let mut seeded = 0;
        for seed in 0..50 {
            let mut lines = good::history(seed);
            if seed_fault(&mut lines).is_some() {
                seeded += 1;
                let found = broken(lines);
                assert!(found.contains(rule), "{name}, seed {seed}: {rule:?} not in {found:?}");
            }
        }
        assert!(seeded > 10, "{name}: only {seeded} histories had a place for it");
    }
}

#[test]
fn a_history_is_kept_as_files_and_checked_from_them() {
    let directory = Directory::new();
    std::fs::create_dir(&directory.0).unwrap();
    let mut lines = good::history(1);
    let (_, rule, seed_fault) = faults::ALL[1];
    seed_fault(&mut lines).unwrap();
    let one = Journal::create(&directory.0, "one");
    let other = Journal::create(&directory.0, "other");
    for (number, line) in lines.iter().enumerate() {
        if number % 2 == 0 { one.write(line) } else { other.write(line) }
    }
    // A process that was killed in the middle of a line.
    let path = directory.0.join("other.jsonl");
    let whole = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, whole + r#"{"at":17,"proc"#).unwrap();
    let history = History::load(&directory.0);
    let report = check(&history);
    assert_eq!(report.figures.get("lines"), u64::try_from(lines.len()).unwrap());
    assert!(report.violations.iter().any(|violation| violation.rule == rule));
    let told = report.tell(&history);
    assert!(told.contains(r#""note":"written""#), "no excerpt: {told}");
}
