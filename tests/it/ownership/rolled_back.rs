//! Rollback detection: a database restored from a backup, or failed over to a lagging standby.

use std::time::Duration;

use assert_matches::assert_matches;
use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{Error, OwnershipSettings, testing};
use test_support::{Mode, connect, eventually, number};

use super::{open, set};

/// A restored dump has the tokens and counts of its time.
#[tokio::test]
async fn a_rolled_back_database_is_detected() {
    let database = testing::database().unwrap();
    let url = database.url();
    let client = connect(&url).await;
    let store = Mode::Plain.open(&url, "bot").await;
    set(&store, b"first").await.unwrap();
    let witness = store.commit_count().await.unwrap();
    client
        .batch_execute("CREATE TABLE backup AS SELECT * FROM matrix_sdk.account_owners")
        .await
        .unwrap();
    store.close().await.unwrap();
    store.reopen().await.unwrap();
    set(&store, b"second").await.unwrap();
    assert!(store.commit_count().await.unwrap() > witness);

    // A standby that lacks the last commits has the same token and a lower count.
    client
        .batch_execute("UPDATE matrix_sdk.account_lanes SET commits = commits - 1")
        .await
        .unwrap();
    assert_matches!(set(&store, b"third").await, Err(Error::DatabaseRolledBack));
    assert_matches!(store.reopen().await, Err(Error::DatabaseRolledBack));
    assert_eq!(number(&client, "SELECT count(*) FROM matrix_sdk.custom_values").await, 1);

    // An older backup also has an older token of this owner.
    let store = Mode::Plain.open(&url, "bot").await;
    client
        .batch_execute(
            "DELETE FROM backup; INSERT INTO backup SELECT * FROM matrix_sdk.account_owners",
        )
        .await
        .unwrap();
    store.close().await.unwrap();
    store.reopen().await.unwrap();
    client
        .batch_execute("UPDATE matrix_sdk.account_owners SET token = (SELECT token FROM backup)")
        .await
        .unwrap();
    assert_matches!(set(&store, b"fourth").await, Err(Error::DatabaseRolledBack));
}

/// Its owner is unknown to the store, but it is not a takeover.
#[tokio::test]
async fn a_backup_older_than_the_opening_is_detected() {
    const ROLL_BACK: &str = "UPDATE matrix_sdk.account_owners SET token = '\\x00', name = 'older';
                            UPDATE matrix_sdk.account_lanes SET commits = commits - 1";
    let database = testing::database().unwrap();
    let url = database.url();
    let client = connect(&url).await;
    let config = |interval| {
        Mode::Plain
            .config(&url, "bot")
            .access(OwnershipSettings { heartbeat_interval: interval, ..Default::default() })
    };

    let store = open(config(Duration::from_secs(3600))).await.unwrap();
    set(&store, b"first").await.unwrap();
    client.batch_execute(ROLL_BACK).await.unwrap();
    assert_matches!(set(&store, b"second").await, Err(Error::DatabaseRolledBack));

    // An owner that only reads detects it by its heartbeat.
    let store = open(config(Duration::from_millis(50))).await.unwrap();
    set(&store, b"third").await.unwrap();
    client.batch_execute(ROLL_BACK).await.unwrap();
    let read = async || store.get_custom_value("key").await;
    eventually("the heartbeat detects it", async || read().await.is_err()).await;
    assert_matches!(read().await, Err(Error::DatabaseRolledBack));
}

/// Also if the owner is the same, and only reads.
#[tokio::test]
async fn the_heartbeat_detects_a_rolled_back_database() {
    let database = testing::database().unwrap();
    let url = database.url();
    let client = connect(&url).await;
    let config = Mode::Plain.config(&url, "bot").access(OwnershipSettings {
        heartbeat_interval: Duration::from_millis(50),
        ..Default::default()
    });
    let store = open(config).await.unwrap();
    set(&store, b"first").await.unwrap();
    client
        .batch_execute("UPDATE matrix_sdk.account_lanes SET commits = commits - 1")
        .await
        .unwrap();
    let read = async || store.get_custom_value("key").await;
    eventually("the heartbeat detects it", async || read().await.is_err()).await;
    assert_matches!(read().await, Err(Error::DatabaseRolledBack));
}
