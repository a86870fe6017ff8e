//! Rule 27: identity and lifetime of owners: with copied databases, runtimes that end, and stores dropped with
//! saves in flight.

use std::{sync::Arc, time::Duration};

use assert_matches::assert_matches;
use futures_util::poll;
use matrix_sdk_crypto::{
    olm::Account,
    store::{CryptoStore, types::PendingChanges},
};
use matrix_sdk_postgres::{
    Error, OpenStoreError, OwnershipSettings, PostgresStoreConfig, Takeover, testing,
};
use ruma::{device_id, user_id};
use test_support::{Mode, connect, eventually, wait_for_heartbeats, without_heartbeats};
use tokio::runtime::Runtime;

use super::{open, set, value};

// A busy machine must not miss three of them.
const INTERVAL: Duration = Duration::from_millis(200);

fn config(url: &str, account: &str) -> PostgresStoreConfig {
    config_with_takeover(Takeover::Immediate, url, account)
}

fn config_with_takeover(takeover: Takeover, url: &str, account: &str) -> PostgresStoreConfig {
    Mode::Plain.config(url, account).access(OwnershipSettings {
        takeover,
        heartbeat_interval: INTERVAL,
        ..Default::default()
    })
}

/// A copy made with TEMPLATE contains all rows that could identify the database.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_and_its_copy_are_two_databases() {
    let original = testing::database().unwrap();
    let url = original.url();
    let store = open(config(&url, "bot")).await.unwrap();
    set(&store, b"before").await.unwrap();
    store.close().await.unwrap();
    let (name, copy) = (original.name(), format!("{}_copy", original.name()));
    let admin = connect(&url.replace(&format!("/{name}"), "/postgres")).await;
    // Retried until all connections are closed, which TEMPLATE requires.
    let create = format!("CREATE DATABASE {copy} TEMPLATE {name}");
    eventually("the database is copied", async || admin.batch_execute(&create).await.is_ok()).await;
    let copy_url = url.replace(&format!("/{name}"), &format!("/{copy}"));

    store.reopen().await.unwrap();
    let other = open(config(&copy_url, "bot")).await.unwrap();
    for _ in 0..3 {
        set(&store, b"original").await.unwrap();
    }
    set(&other, b"copy").await.unwrap();
    for url in [&url, &copy_url] {
        wait_for_heartbeats(url).await;
        // Both owners are alive, so other openers are refused.
        let refused = open(config_with_takeover(Takeover::RefuseIfAlive, url, "bot")).await;
        assert_matches!(refused, Err(OpenStoreError::OwnerAlive { .. }));
    }
    assert_eq!(value(&store).await.unwrap(), b"original");
    assert_eq!(value(&other).await.unwrap(), b"copy");
    set(&store, b"still").await.unwrap();
    set(&other, b"still").await.unwrap();
    drop(other);
    let drop = format!("DROP DATABASE {copy} WITH (FORCE)");
    eventually("the copy is dropped", async || admin.batch_execute(&drop).await.is_ok()).await;
}

#[test]
fn a_store_whose_runtime_has_ended_is_opened_again_on_another() {
    let database = testing::database().unwrap();
    let url = database.url();
    let first = Runtime::new().unwrap();
    let store = first.block_on(open(config(&url, "bot"))).unwrap();
    first.block_on(set(&store, b"first")).unwrap();
    first.shutdown_background();
    Runtime::new().unwrap().block_on(async {
        assert_matches!(set(&store, b"lost").await, Err(Error::StoreClosed));
        store.reopen().await.unwrap();
        set(&store, b"second").await.unwrap();
        assert_eq!(value(&store).await.unwrap(), b"second");
    });
}

#[test]
fn a_heartbeat_outlives_the_runtime_of_another_store() {
    let database = testing::database().unwrap();
    let url = database.url();
    let (first, second) = (Runtime::new().unwrap(), Runtime::new().unwrap());
    let _one = first.block_on(open(config(&url, "one"))).unwrap();
    let two = second.block_on(open(config(&url, "two"))).unwrap();
    first.shutdown_background();
    second.block_on(async {
        wait_for_heartbeats(&url).await;
        let refuse = |account: &str| config_with_takeover(Takeover::RefuseIfAlive, &url, account);
        assert_matches!(open(refuse("two")).await, Err(OpenStoreError::OwnerAlive { .. }));
        set(&two, b"alive").await.unwrap();
        // The other account is free once the ended heartbeat has expired.
        eventually("the account is free", async || open(refuse("one")).await.is_ok()).await;
    });
}

/// Saves that were begun are finished before the next takeover, although the store and the futures were dropped.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_dropped_keeps_the_account_until_its_saves_are_written() {
    let database = testing::database().unwrap();
    let url = database.url();
    let store = open(config(&url, "bot")).await.unwrap();
    let client = connect(&url).await;
    client.batch_execute("BEGIN; LOCK TABLE matrix_sdk.custom_values").await.unwrap();
    for number in 0..30u8 {
        let store = Arc::new(store.clone());
        let key = number.to_string();
        let mut save = Box::pin(store.set_custom_value(&key, vec![number]));
        assert!(poll!(&mut save).is_pending());
    }
    drop(store);
    let takeover = Takeover::WaitUntilFree(Duration::from_secs(60));
    let waiting = config_with_takeover(takeover, &url, "bot");
    let mut next = tokio::spawn(open(waiting));
    let early = tokio::time::timeout(Duration::from_millis(1500), &mut next).await;
    assert!(early.is_err(), "the account was free before the saves were written");
    client.batch_execute("COMMIT").await.unwrap();
    let next = next.await.unwrap().unwrap();
    for number in 0..30u8 {
        let found = next.get_custom_value(&number.to_string()).await.unwrap();
        assert_eq!(found, Some(vec![number]));
    }
}

/// A save of rows that are stored already is refused like any other.
#[tokio::test]
async fn a_superseded_owners_saves_of_unchanged_rows_are_refused() {
    let database = testing::database().unwrap();
    let config = Mode::Key.config(&database.url(), "bot");
    let config = config.access(without_heartbeats());
    let account = Account::with_device_id(user_id!("@alice:example.org"), device_id!("DEVICE"));
    let saved = || PendingChanges { account: Some(account.deep_clone()) };
    let users = [(user_id!("@bob:example.org"), true)];
    for unchanged in ["account", "users"] {
        let first = open(config.clone()).await.unwrap();
        first.save_pending_changes(saved()).await.unwrap();
        first.save_tracked_users(&users).await.unwrap();
        // Reading makes the rows known, so that saving them is a no-op.
        first.load_tracked_users().await.unwrap();
        let commits = first.commit_count().await.unwrap();
        first.save_pending_changes(saved()).await.unwrap();
        first.save_tracked_users(&users).await.unwrap();
        assert_eq!(first.commit_count().await.unwrap(), commits, "the saves are no commits");
        let _second = open(config.clone()).await.unwrap();
        let late = match unchanged {
            "account" => first.save_pending_changes(saved()).await,
            _ => first.save_tracked_users(&users).await,
        };
        assert_matches!(late, Err(Error::Superseded { .. }), "{unchanged}");
    }
}
