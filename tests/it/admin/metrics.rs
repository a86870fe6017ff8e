//! The figures of the feature `metrics`, by their documented names.

use std::collections::BTreeMap;

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::testing;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use test_support::{
    Mode,
    fixture::{self, Fixture},
};

const OPERATIONS: &str = include_str!("../../../docs/operations.md");

/// What has been counted since the last time, by name and labels; of a histogram, how many values.
fn counted(snapshotter: &Snapshotter) -> BTreeMap<String, u64> {
    let mut counted = BTreeMap::new();
    for (key, _, _, value) in snapshotter.snapshot().into_vec() {
        let key = key.key();
        let labels: Vec<_> =
            key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let name = format!("{}{{{}}}", key.name(), labels.join(","));
        let count = match value {
            DebugValue::Counter(count) => count,
            DebugValue::Gauge(_) => 1,
            DebugValue::Histogram(values) => values.len() as u64,
        };
        counted.insert(name, count);
    }
    counted
}

/// One thread, so that all of the store's tasks are counted here, and no others.
#[tokio::test(flavor = "current_thread")]
async fn calls_round_trips_cache_pool_commits_and_ownership_are_counted() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let database = testing::database().unwrap();
    let store = Mode::Key.open(&database.url(), "bot").await;
    let counts = counted(&snapshotter);
    assert_eq!(counts["matrix_sdk_postgres_ownership_changes_total{change=claimed}"], 1);
    assert!(counts["matrix_sdk_postgres_pool_wait_seconds{}"] > 0);

    Fixture::new().await.fill(&store).await;
    let counts = counted(&snapshotter);
    let commits = counts["matrix_sdk_postgres_operations_total{operation=COMMIT,outcome=ok}"];
    assert_eq!(counts["matrix_sdk_postgres_commit_seconds{}"], commits);
    assert!(counts["matrix_sdk_postgres_round_trips_total{}"] >= commits);

    store.get_user_identity(fixture::other_user()).await.unwrap();
    counted(&snapshotter);
    store.get_user_identity(fixture::other_user()).await.unwrap();
    let counts = counted(&snapshotter);
    let hits = "matrix_sdk_postgres_cache_lookups_total{index=user_identities.get,result=hit}";
    assert_eq!(counts[hits], 1);
    assert_eq!(counts["matrix_sdk_postgres_round_trips_total{}"], 0);

    let other = Mode::Key.open(&database.url(), "bot").await;
    store.set_custom_value("key", b"value".to_vec()).await.unwrap_err();
    let counts = counted(&snapshotter);
    assert_eq!(counts["matrix_sdk_postgres_ownership_changes_total{change=superseded}"], 1);
    let failed = "matrix_sdk_postgres_operations_total{operation=COMMIT,outcome=error}";
    assert_eq!(counts[failed], 1);
    other.close().await.unwrap();
    let counts = counted(&snapshotter);
    assert_eq!(counts["matrix_sdk_postgres_ownership_changes_total{change=released}"], 1);
}

#[test]
fn every_figure_is_documented() {
    let source = include_str!("../../../src/postgres/metrics.rs");
    let names = source.split('"').filter(|text| text.starts_with("matrix_sdk_postgres_"));
    let names: Vec<&str> = names.collect();
    assert!(names.len() > 8, "{names:?}");
    for name in names {
        assert!(OPERATIONS.contains(&format!("| `{name}` |")), "{name}");
    }
}
