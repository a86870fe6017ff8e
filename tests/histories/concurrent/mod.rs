//! Concurrent histories: several owners in several processes, readers, kills, takeovers and stalls at
//! once. Each process records its calls and their results with a clock that all processes share. A checker
//! then decides whether the history is linearizable: one register per key, one owner per account.
//!
//! Short by default. `CONCURRENT_SECONDS=3600` runs rounds for an hour, `CONCURRENT_SEED` repeats a
//! round's random choices (not its timing), `CONCURRENT_KEEP=1` keeps the histories of rounds that passed,
//! and `CONCURRENT_CHECK=directory` only checks a history that was kept.

mod check;
mod history;
mod round;
mod workload;

use std::{path::Path, time::Instant};

use history::History;
use test_support::{child_process, figure};

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_histories_are_linearizable_with_one_owner_at_a_time() {
    if let Some(task) = child_process::task() {
        return workload::run(&task).await;
    }
    if let Some(directory) = std::env::var_os("CONCURRENT_CHECK") {
        let history = History::load(Path::new(&directory));
        let report = check::check(&history);
        report.figures.lines().for_each(|(what, value)| println!("{what}: {value}"));
        println!("{}", report.render(&history));
        return assert!(report.violations.is_empty(), "the history is not linearizable");
    }
    let (limit, started) = (round::seconds(), Instant::now());
    let (mut totals, mut wrong) = (check::Figures::default(), Vec::new());
    for seed in round::seeds() {
        let (directory, report, text) = round::run(seed, round::ROUND.min(limit)).await;
        totals.add(&report.figures);
        totals.count("rounds", 1);
        if !report.violations.is_empty() {
            println!("{text}The history is in {}", directory.display());
            wrong.push(directory);
        }
        if started.elapsed() >= limit {
            break;
        }
    }
    totals.lines().for_each(|(what, number)| println!("{what}: {number}"));
    for (what, number) in totals.summary() {
        figure(&format!("concurrent histories: {what}"), number);
    }
    assert!(wrong.is_empty(), "these histories are not linearizable: {wrong:?}");
    // An empty history always passes, so require some operations of each kind.
    let happened =
        ["claims, ok", "writes, ok", "reads that count, of owners", "messages encrypted"];
    let nothing = happened.into_iter().find(|what| totals.get(what) == 0);
    assert_eq!(nothing, None, "no operation of this kind was recorded");
}
