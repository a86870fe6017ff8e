//! Writes `docs/benchmarks.md` and its charts from the results of the benchmarks. Run by `scripts/bench`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;
#[path = "report/chart.rs"]
mod chart;
#[path = "report/page.rs"]
mod page;
#[path = "report/readings.rs"]
mod readings;
#[path = "report/tables.rs"]
mod tables;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use bench::{accounts::Accounts, bare, read_rates::ReadRates, results};

fn main() {
    let Some(directory) = results::directory() else {
        println!("Nothing to report: scripts/bench sets BENCH_RESULTS.");
        return;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::env::var_os("BENCH_DOCS").map_or_else(|| root.join("docs"), PathBuf::from);
    let charts = docs.join("benchmarks");
    fs::create_dir_all(&charts).unwrap();

    let criterion = readings::criterion(&directory.join("criterion"));
    let days: readings::Days = results::read("bot_day").unwrap();
    let bare: bare::Comparison = results::read("bare").unwrap();
    let distances: BTreeMap<String, f64> = results::read("distances").unwrap();
    let text = |name: &str| fs::read_to_string(directory.join(name)).ok();
    // A quick run does not count round trips. The test's golden file has nearly the same numbers: of a day with a
    // key, in an account that exists.
    let costs = if days.costs.is_empty() { golden(root) } else { days.costs.clone() };

    let mut text_of_page = String::new();
    let page = &mut text_of_page;
    let quick = std::env::var_os("BENCH_QUICK").is_some();
    page::introduction(page, quick, &text("machine.txt").unwrap_or_default());
    let accounts: Accounts = results::read("accounts").unwrap();
    page::aims(page, &days, &criterion, &bare, &accounts);
    page::bot_day(page, &charts, &days, &costs);
    page::look_ups(page, &charts, &criterion, &bare, &distances);
    page::readers(page, &results::read::<Vec<ReadRates>>("readers").unwrap());
    page::accounts(page, &accounts);
    page::saving(page, &charts, &criterion);
    page::disk(page, text("pg_test_fsync.txt"));
    let path = docs.join("benchmarks.md");
    fs::write(&path, text_of_page).unwrap();
    println!("{}", path.display());
}

/// Store calls, round trips and commits of each step.
fn golden(root: &Path) -> Vec<(usize, usize, usize)> {
    let golden = fs::read_to_string(root.join("tests/golden/bot_day.txt")).unwrap();
    let costs = golden.lines().skip(1).map(|line| {
        let mut numbers = line.split_whitespace().map(|number| number.parse().unwrap());
        (numbers.next().unwrap(), numbers.next().unwrap(), numbers.next().unwrap())
    });
    costs.collect()
}
