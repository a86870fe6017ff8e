//! Calls, round trips and commits of a bot's day. `tests/golden/bot_day.txt` lists them for each step, so that
//! a change shows as a diff, and `bot_day_plain.txt` those of the SDK's calls alone, as a `Client` makes them;
//! `UPDATE_GOLDEN=1` rewrites both. The benchmark of this name measures times.

use std::{fmt::Write, sync::Arc, time::Duration};

use matrix_sdk_crypto::store::{CryptoStore, MemoryStore};
use matrix_sdk_postgres::{PostgresCryptoStore, Timeouts, testing};
use test_support::{
    Mode,
    bot_day::{BigRoom, Meter, Subject, run},
    proxy::Proxy,
    without_heartbeats,
};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/bot_day.txt");

const GOLDEN_PLAIN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/bot_day_plain.txt");

#[tokio::test]
async fn costs_match_the_golden_file() {
    Box::pin(check(GOLDEN, Subject::postgres)).await;
}

/// Without `atomically`.
#[tokio::test]
async fn the_costs_of_plain_calls_match_the_golden_file() {
    Box::pin(check(GOLDEN_PLAIN, Subject::other)).await;
}

async fn check(golden: &str, subject: impl Fn(PostgresCryptoStore) -> Subject) {
    let database = testing::database().unwrap();
    let (proxy, url) = Proxy::before(&database);
    // Without heartbeats, and without keep-alives in a transaction.
    let hour = Duration::from_secs(3_600);
    let config = Mode::Key.config(&url, "bot");
    let config = config
        .access(without_heartbeats())
        .timeouts(Timeouts { transaction_idle: hour, ..Default::default() });
    let open_store = async || PostgresCryptoStore::open_with_config(&config).await.unwrap();
    // The schema and the account exist already.
    open_store().await.close().await.unwrap();

    let open = async || subject(open_store().await);
    // On the heap: the stack of a test's thread is too small for it.
    let steps = Box::pin(run(open, Meter::new(Some(&proxy)), BigRoom::No)).await;

    let mut report = String::from("store calls, round trips, commits, step\n");
    for step in &steps {
        let (calls, trips, commits) = (step.calls, step.round_trips, step.commits);
        writeln!(report, "{calls:>6} {trips:>6} {commits:>4}  {}", step.name).unwrap();
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(golden, &report).unwrap();
    }
    let golden = std::fs::read_to_string(golden).unwrap_or_default();
    assert_eq!(report, golden, "the day's costs changed; UPDATE_GOLDEN=1 accepts them");
}

/// The scenario makes the same calls to every store.
#[tokio::test]
async fn the_memory_store_gets_as_many_calls() {
    let store = Arc::new(MemoryStore::new());
    let steps = run(async || Subject::other(store.clone()), Meter::new(None), BigRoom::No).await;
    let golden = std::fs::read_to_string(GOLDEN).unwrap_or_default();
    let listed: Vec<&str> = golden.lines().skip(1).collect();
    assert_eq!(steps.len(), listed.len());
    for (step, line) in steps.iter().zip(listed) {
        assert!(line.trim_start().starts_with(&format!("{} ", step.calls)), "{step:?}: {line}");
    }
}
