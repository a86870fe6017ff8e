//! Tests of the checker: it finds nothing in good histories, and each fault that is seeded into them.

mod faults;
mod good;

use super::{Rule, check};
use test_support::directory::Directory;

use crate::concurrent::history::{History, Journal, Line, Note, Outcome};

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
        assert!(report.violations.is_empty(), "seed {seed}: {}", report.render(&history));
    }
}

/// Each fault, in many histories.
#[test]
fn each_seeded_fault_is_found() {
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
        assert!(seeded > 10, "{name}: only {seeded} histories were suitable");
    }
}

#[test]
fn a_history_is_saved_to_files_and_checked_from_them() {
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
    // As left by a process that was killed in the middle of a line.
    let path = directory.0.join("other.jsonl");
    let whole = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, whole + r#"{"at":17,"proc"#).unwrap();
    let history = History::load(&directory.0);
    let report = check(&history);
    assert_eq!(report.figures.get("lines"), u64::try_from(lines.len()).unwrap());
    assert!(report.violations.iter().any(|violation| violation.rule == rule));
    let text = report.render(&history);
    assert!(text.contains(r#""note":"written""#), "no excerpt: {text}");
}

/// Others read the new value from the database while the owner still reads the old one from its cache.
#[test]
fn a_dropped_write_may_take_effect_until_a_later_one_has_ended() {
    let opening = || "p:o".to_owned();
    let write = |op: &str| Note::Write {
        op: op.to_owned(),
        opening: opening(),
        register: "lone-0".to_owned(),
        rows: 1,
        atomically: false,
    };
    let written = |op: &str, outcome| Note::Written { op: op.to_owned(), outcome };
    let read = |begun, opening, value: &str| Note::Read {
        begun,
        opening,
        register: "lone-0".to_owned(),
        key: "a".to_owned(),
        value: Some(value.to_owned()),
    };
    let history = |remembered_at: u64| {
        let notes = [
            (10, Note::Claim { opening: opening(), former: None }),
            (20, Note::Claimed { opening: opening(), outcome: Outcome::Ok }),
            (30, write("p:1")),
            (40, written("p:1", Outcome::Ok)),
            (50, write("p:2")),
            (60, written("p:2", Outcome::Dropped)),
            (80, read(70, None, "p:2")),
            (90, write("p:3")),
            (remembered_at, read(remembered_at - 5, Some(opening()), "p:1")),
            (110, written("p:3", Outcome::Ok)),
            (200, write("p:4")),
            (210, written("p:4", Outcome::Ok)),
        ];
        let line =
            |(at, note)| Line { at, process: "p".to_owned(), account: "bot".to_owned(), note };
        notes.map(line).to_vec()
    };
    assert_eq!(broken(history(100)), []);
    assert_eq!(broken(history(150)), [Rule::Order]);
}
