//! Concurrent histories: several owners in several processes, readers, kills, takeovers and stalls at
//! once. Each process notes what was asked and answered, by a clock that all processes share; afterwards
//! a checker says whether one register a key, one owner an account, could have given these answers.
//!
//! Short by default. `CONCURRENT_SECONDS=3600` runs rounds for an hour, `CONCURRENT_SEED` repeats a
//! round's choices (not its timing), `CONCURRENT_KEEP=1` keeps the histories of rounds that passed,
//! and `CONCURRENT_CHECK=directory` only checks a history that was kept.

mod check;
mod history;
mod workload;
mod world;

use std::{path::Path, time::Instant};

use history::History;
use test_support::{again, figure};

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_fits_one_owner_and_one_order() {
    if let Some(task) = again::task() {
        return workload::run(&task).await;
    }
    if let Some(directory) = std::env::var_os("CONCURRENT_CHECK") {
        let history = History::load(Path::new(&directory));
        let report = check::check(&history);
        report.figures.lines().for_each(|(what, value)| println!("{what}: {value}"));
        println!("{}", report.tell(&history));
        return assert!(report.violations.is_empty(), "the history is not possible");
    }
    let (limit, started) = (world::seconds(), Instant::now());
    let (mut totals, mut wrong) = (check::Figures::default(), Vec::new());
    for seed in world::seeds() {
        let (directory, report, told) = world::round(seed, world::ROUND.min(limit)).await;
        totals.add(&report.figures);
        totals.count("rounds", 1);
        if !report.violations.is_empty() {
            println!("{told}The history is in {}", directory.display());
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
    assert!(wrong.is_empty(), "these histories are not possible: {wrong:?}");
    // A history in which nothing happens is always possible.
    let happened =
        ["claims, ok", "writes, ok", "reads that count, of owners", "messages encrypted"];
    let nothing = happened.into_iter().find(|what| totals.get(what) == 0);
    assert_eq!(nothing, None, "none of these");
}
