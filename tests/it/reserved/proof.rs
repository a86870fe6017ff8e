//! A message needs no commit only while the last proof of ownership is recent.

use std::time::Duration;

use assert_matches::assert_matches;
use matrix_sdk_crypto::{CryptoStoreError, MegolmError};
use matrix_sdk_postgres::{Error, OwnershipSettings, PostgresCryptoStore};
use test_support::{Mode, connect, machine::try_encrypt, wait_for_heartbeats, without_heartbeats};

use super::{Harness, ROTATION, room};

fn beating(heartbeat_interval: Duration) -> OwnershipSettings {
    OwnershipSettings { heartbeat_interval, ..Default::default() }
}

/// Without a recent proof of ownership an owner commits before each message.
#[tokio::test]
async fn without_a_recent_proof_of_ownership_a_message_is_a_commit() {
    let mut harness = Harness::new(beating(Duration::from_secs(1)), ROTATION).await;
    harness.send_many(3).await;
    let before = harness.commits().await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    harness.send().await;
    assert_eq!(harness.commits().await, before, "a heartbeat was not accepted as a proof");
    let other = connect(&harness.database.url()).await;
    other.batch_execute("BEGIN; LOCK TABLE matrix_sdk.heartbeats IN SHARE MODE").await.unwrap();
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    harness.send().await;
    assert_eq!(harness.commits().await, before + 1);
    harness.send().await;
    assert_eq!(harness.commits().await, before + 1, "a commit was not accepted as a proof");
}

/// A copy has the owner's token and heartbeat. The heartbeat of the one shows it the other's commit.
#[tokio::test]
async fn a_commit_by_a_copy_of_the_owner_is_no_proof() {
    let mut harness = Harness::new(beating(Duration::from_millis(50)), ROTATION).await;
    harness.send_many(3).await;
    let url = harness.database.url();
    let commit = "UPDATE matrix_sdk.account_lanes SET commits = commits + 1, \
                  last_transaction = sha256('the copy')";
    connect(&url).await.batch_execute(commit).await.unwrap();
    // Longer than a proof counts.
    wait_for_heartbeats(&url).await;
    let sent = try_encrypt(&harness.bot, room(), "the copy may have used the index").await;
    assert_matches!(sent, Err(MegolmError::Store(CryptoStoreError::Backend(error))) => {
        assert_matches!(error.downcast_ref(), Some(Error::Superseded { .. }));
    });
}

/// The process's heartbeat expires by the shortest interval of its accounts, and so does a proof.
#[tokio::test]
async fn a_proof_counts_by_the_shortest_interval_of_the_process() {
    let mut harness = Harness::new(without_heartbeats(), ROTATION).await;
    let (url, interval) = (harness.database.url(), Duration::from_millis(50));
    let other = Mode::Key.config(&url, "other").access(beating(interval));
    let _other = PostgresCryptoStore::open_with_config(&other).await.unwrap();
    harness.send_many(3).await;
    let before = harness.commits().await;
    let client = connect(&url).await;
    client.batch_execute("BEGIN; LOCK TABLE matrix_sdk.heartbeats IN SHARE MODE").await.unwrap();
    tokio::time::sleep(interval * 4).await;
    harness.send().await;
    assert_eq!(harness.commits().await, before + 1);
}
