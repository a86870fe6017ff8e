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
        let lines = good::history(seed);
        let report = check(&History::new(lines));
        assert!(report.violations.is_empty(), "seed {seed}: {report}");
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
        assert!(seeded > 25, "{name}: only {seeded} histories had a place for it");
    }
}

#[test]
fn a_history_is_kept_as_files_and_checked_from_them() {
    let directory = Directory::new();
    std::fs::create_dir(&directory.0).unwrap();
    let (mut lines, faulty) = (good::history(1), Journal::create(&directory.0, "one"));
    (faults::ALL[0].2)(&mut lines).unwrap();
    let other = Journal::create(&directory.0, "other");
    for (number, line) in lines.iter().enumerate() {
        if number % 2 == 0 { faulty.write(line) } else { other.write(line) }
    }
    // A process that was killed in the middle of a line.
    let path = directory.0.join("other.jsonl");
    let whole = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, whole + r#"{"at":17,"proc"#).unwrap();
    let report = check(&History::load(&directory.0));
    assert_eq!(report.figures.get("lines"), u64::try_from(lines.len()).unwrap());
    assert!(report.violations.iter().any(|violation| violation.rule == faults::ALL[0].1));
    assert!(report.to_string().contains(r#""note":"written""#), "no excerpt: {report}");
}
