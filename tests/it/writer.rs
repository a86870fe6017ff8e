//! The writer lane: order, atomicity, and failures of the database.

use std::time::Duration;

use assert_matches::assert_matches;
use futures_util::future::join_all;
use matrix_sdk_crypto::{
    DeviceData,
    olm::Account,
    store::{
        CryptoStore, CryptoStoreError,
        types::{Changes, DeviceChanges, PendingChanges},
    },
};
use matrix_sdk_postgres::{Error, PostgresCryptoStore, Timeouts, testing};
use ruma::{device_id, user_id};
use test_support::{Mode, connect, eventually, number, proxy::Proxy, without_heartbeats};

fn account() -> Account {
    Account::with_device_id(user_id!("@alice:example.org"), device_id!("DEVICE"))
}

fn device_and_token(token: &str) -> Changes {
    let device = DeviceData::from_account(&account());
    Changes {
        devices: DeviceChanges { new: vec![device], ..Default::default() },
        next_batch_token: Some(token.to_owned()),
        ..Default::default()
    }
}

/// Rule 11.
#[tokio::test(flavor = "multi_thread")]
async fn a_save_dropped_after_its_first_poll_does_not_overtake_a_later_one() {
    let database = testing::database().unwrap();
    let store = Mode::Key.open(&database.url(), "bot").await;
    for round in 0..20 {
        // Large, so that it would be overtaken if saves were concurrent.
        let mut dropped = Box::pin(store.set_custom_value("key", vec![0; 3_000_000]));
        assert!(futures_util::poll!(&mut dropped).is_pending());
        drop(dropped);
        store.set_custom_value("key", vec![round; 10]).await.unwrap();
        assert_eq!(store.get_custom_value("key").await.unwrap().unwrap(), vec![round; 10]);
    }
}

#[tokio::test]
async fn a_save_is_finished_after_its_future_is_dropped() {
    let database = testing::database().unwrap();
    let store = Mode::Plain.open(&database.url(), "bot").await;
    let mut dropped = Box::pin(store.set_custom_value("key", b"value".to_vec()));
    assert!(futures_util::poll!(&mut dropped).is_pending());
    drop(dropped);
    // Writes are in order, so the earlier one is done when this one returns.
    store.remove_custom_value("other").await.unwrap();
    assert_eq!(store.get_custom_value("key").await.unwrap().unwrap(), b"value");
}

#[tokio::test]
async fn a_failed_write_is_rolled_back_and_the_store_refuses_writes() {
    let database = testing::database().unwrap();
    let url = database.url();
    let store = Mode::Plain.open(&url, "bot").await;
    store.save_changes(device_and_token("first")).await.unwrap();

    let client = connect(&url).await;
    let refuse = "ALTER TABLE matrix_sdk.devices ADD CONSTRAINT refuse CHECK (false) NOT VALID";
    client.batch_execute(refuse).await.unwrap();
    let failed = store.save_changes(device_and_token("second")).await;
    assert_matches!(failed, Err(Error::Database(error)) => {
        assert_eq!(error.sqlstate(), Some("23514"));
        assert_eq!(error.table(), Some("devices"));
        assert_eq!(error.constraint(), Some("refuse"));
        // PostgreSQL's DETAIL would print the row.
        assert!(!error.to_string().contains("Failing row"), "{error}");
    });
    // The token is staged before the devices, and rolled back with them.
    assert_eq!(store.next_batch_token().await.unwrap().as_deref(), Some("first"));

    client.batch_execute("ALTER TABLE matrix_sdk.devices DROP CONSTRAINT refuse").await.unwrap();
    let refused = store.save_changes(device_and_token("third")).await;
    assert_matches!(refused, Err(Error::ReopenRequired));
    let refused: CryptoStoreError = Error::ReopenRequired.into();
    assert_matches!(refused, CryptoStoreError::Backend(inner) => {
        assert_matches!(inner.downcast_ref::<Error>(), Some(Error::ReopenRequired));
    });

    store.reopen().await.unwrap();
    store.save_changes(device_and_token("fourth")).await.unwrap();
    assert_eq!(store.next_batch_token().await.unwrap().as_deref(), Some("fourth"));
}

/// Rule 10.
#[tokio::test]
async fn the_cache_changes_only_after_the_commit() {
    let database = testing::database().unwrap();
    let url = database.url();
    let store = Mode::Plain.open(&url, "bot").await;
    let client = connect(&url).await;
    let refuse =
        "ALTER TABLE matrix_sdk.account_data ADD CONSTRAINT refuse CHECK (false) NOT VALID";
    client.batch_execute(refuse).await.unwrap();
    let changes = || PendingChanges { account: Some(account()) };
    assert_matches!(store.save_pending_changes(changes()).await, Err(Error::Database(_)));
    assert!(store.get_static_account().is_none());
    assert_matches!(store.get_own_device().await, Err(Error::AccountUnset));

    let accept = "ALTER TABLE matrix_sdk.account_data DROP CONSTRAINT refuse";
    client.batch_execute(accept).await.unwrap();
    store.reopen().await.unwrap();
    store.save_pending_changes(changes()).await.unwrap();
    assert!(store.get_static_account().is_some());
}

/// A permanently failed read ends writes as well: the SDK ignores it and would save the token.
#[tokio::test]
async fn after_a_failed_read_nothing_is_written_until_the_store_is_reopened() {
    let database = testing::database().unwrap();
    let url = database.url();
    let store = Mode::Plain.open(&url, "bot").await;
    let client = connect(&url).await;
    client.batch_execute("ALTER TABLE matrix_sdk.devices RENAME TO elsewhere").await.unwrap();
    let read = store.get_user_devices(user_id!("@bob:example.org")).await;
    assert_matches!(read, Err(Error::Database(error)) => assert_eq!(error.sqlstate(), Some("42P01")));
    let write = store.set_custom_value("a", vec![1]).await;
    assert_matches!(write, Err(Error::ReopenRequired));
    client.batch_execute("ALTER TABLE matrix_sdk.elsewhere RENAME TO devices").await.unwrap();
    store.reopen().await.unwrap();
    store.set_custom_value("a", vec![1]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn terminated_connections_are_replaced_without_an_error() {
    let database = testing::database().unwrap();
    let url = database.url();
    let store = Mode::Plain.open(&url, "bot").await;
    let client = connect(&url).await;
    let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                     WHERE datname = current_database() AND pid <> pg_backend_pid()";
    for round in 0..10u8 {
        store.set_custom_value("round", vec![round]).await.unwrap();
        assert!(number(&client, terminate).await > 0);
        let others = "SELECT count(*) FROM pg_stat_activity \
                      WHERE datname = current_database() AND pid <> pg_backend_pid()";
        eventually("the connections end", async || number(&client, others).await == 0).await;
        // The client detects the termination only when it reads the socket.
        tokio::task::yield_now().await;
        assert_eq!(store.get_custom_value("round").await.unwrap().unwrap(), vec![round]);
    }
}

/// The server terminates a transaction that waits for a lock. It was rolled back, so it is retried.
#[tokio::test]
async fn a_transaction_terminated_before_its_commit_is_repeated() {
    let database = testing::database().unwrap();
    let url = database.url();
    let store = Mode::Plain.open(&url, "bot").await;
    store.set_custom_value("key", b"old".to_vec()).await.unwrap();
    let mut client = connect(&url).await;
    let watcher = connect(&url).await;
    let lock = client.transaction().await.unwrap();
    lock.batch_execute("SELECT * FROM matrix_sdk.custom_values FOR UPDATE").await.unwrap();
    let write = tokio::spawn({
        let store = store.clone();
        async move { store.set_custom_value("key", b"new".to_vec()).await }
    });
    let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                     WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually("the write waits for the lock", async || {
        assert!(!write.is_finished(), "the write did not wait for the lock");
        number(&watcher, terminate).await > 0
    })
    .await;
    lock.commit().await.unwrap();
    write.await.unwrap().unwrap();
    assert_eq!(store.get_custom_value("key").await.unwrap().unwrap(), b"new");
}

/// Rule 3: 40P01 is retried.
#[tokio::test]
async fn a_deadlock_is_resolved_by_trying_again() {
    let database = testing::database().unwrap();
    let url = database.url();
    let store = Mode::Plain.open(&url, "bot").await;
    store.save_changes(device_and_token("old")).await.unwrap();
    let mut client = connect(&url).await;
    let watcher = connect(&url).await;
    let other = client.transaction().await.unwrap();
    // The other transaction locks the devices first; the store's batch locks the token first. The store's
    // backend checks for deadlocks sooner, so it is the one that is aborted.
    other.batch_execute("SET LOCAL deadlock_timeout = '1h'").await.unwrap();
    other.batch_execute("SELECT * FROM matrix_sdk.devices FOR UPDATE").await.unwrap();
    let write = tokio::spawn({
        let store = store.clone();
        async move { store.save_changes(device_and_token("new")).await }
    });
    let waiting = "SELECT count(*) FROM pg_stat_activity \
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually("the write waits for the lock", async || {
        assert!(!write.is_finished(), "the write did not wait for the lock");
        number(&watcher, waiting).await > 0
    })
    .await;
    other.batch_execute("SELECT * FROM matrix_sdk.sync_tokens FOR UPDATE").await.unwrap();
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    other.commit().await.unwrap();
    write.await.unwrap().unwrap();
    assert_eq!(store.next_batch_token().await.unwrap().as_deref(), Some("new"));
    // Statistics are reported with a delay.
    eventually("the deadlock is counted", async || number(&watcher, deadlocks).await > 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tasks_on_one_store_and_a_small_pool() {
    let database = testing::database().unwrap();
    let store = Mode::Key.open(&database.url(), "bot").await;
    let tasks = (0..64u8).map(|task| {
        let store = store.clone();
        tokio::spawn(async move {
            for round in 0..10u8 {
                let key = format!("{task}");
                store.set_custom_value(&key, vec![task, round]).await.unwrap();
                let value = store.get_custom_value(&key).await.unwrap();
                assert_eq!(value.unwrap(), vec![task, round]);
            }
        })
    });
    for task in join_all(tasks).await {
        task.unwrap();
    }
}

/// During the first commit, 63 saves are queued: they share the second one.
#[tokio::test]
async fn saves_that_queue_behind_a_commit_share_the_next_one() {
    let database = testing::database().unwrap();
    let (proxy, url) = Proxy::before(&database);
    // Heartbeats commit, too.
    let config = Mode::Key.config(&url, "bot").access(without_heartbeats());
    let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
    let client = connect(&database.url()).await;
    let keys: Vec<String> = (0..64u8).map(|number| number.to_string()).collect();
    let save = |number: u8| store.set_custom_value(&keys[usize::from(number)], vec![number]);
    client.batch_execute("BEGIN; LOCK TABLE matrix_sdk.custom_values").await.unwrap();
    let before = proxy.commits();
    let mut first = Box::pin(save(0));
    assert!(futures_util::poll!(&mut first).is_pending());
    eventually("the first save is sent", async || proxy.commits() > before).await;
    let mut others: Vec<_> = (1..64).map(|number| Box::pin(save(number))).collect();
    for save in &mut others {
        assert!(futures_util::poll!(save).is_pending());
    }
    client.batch_execute("COMMIT").await.unwrap();
    first.await.unwrap();
    for saved in join_all(others).await {
        saved.unwrap();
    }
    assert_eq!(proxy.commits() - before, 2);
    for (number, key) in (0..).zip(&keys) {
        assert_eq!(store.get_custom_value(key).await.unwrap(), Some(vec![number]));
    }
}

#[tokio::test]
async fn an_empty_batch_is_no_transaction() {
    let database = testing::database().unwrap();
    let (proxy, url) = Proxy::before(&database);
    let config = Mode::Plain.config(&url, "bot").access(without_heartbeats());
    let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
    store.save_tracked_users(&[]).await.unwrap();
    let before = proxy.commits();
    store.save_tracked_users(&[]).await.unwrap();
    store.save_changes(Changes::default()).await.unwrap();
    store.save_pending_changes(PendingChanges::default()).await.unwrap();
    store.save_inbound_group_sessions(vec![], None).await.unwrap();
    store.mark_inbound_group_sessions_as_backed_up("1", &[]).await.unwrap();
    assert_eq!(proxy.commits(), before);
    store.set_custom_value("key", vec![1]).await.unwrap();
    assert_eq!(proxy.commits(), before + 1);
}

/// Each write states how many rows it must affect. Outside of `atomically` the mismatch is detected after
/// COMMIT was sent, so the store refuses further writes; within `atomically` nothing is committed.
#[tokio::test]
async fn a_write_that_does_not_reach_all_its_rows_is_an_error() {
    let database = testing::database().unwrap();
    let url = database.url();
    let config = Mode::Plain
        .config(&url, "bot")
        .timeouts(Timeouts { retry: Duration::from_millis(200), ..Default::default() });
    let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
    let client = connect(&url).await;
    let skip_devices = "
        CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
        CREATE TRIGGER skip BEFORE INSERT ON matrix_sdk.devices
            FOR EACH ROW EXECUTE FUNCTION skip()";
    client.batch_execute(skip_devices).await.unwrap();

    let saved = store.save_changes(device_and_token("alone")).await;
    assert_matches!(saved, Err(Error::Database(error)) if error.to_string().contains("devices.upsert"));
    assert_matches!(store.save_changes(device_and_token("next")).await, Err(Error::ReopenRequired));

    store.reopen().await.unwrap();
    let saved: Result<(), CryptoStoreError> = store
        .atomically(async {
            store.save_changes(device_and_token("within")).await?;
            // The read sends the save.
            store.get_user_devices(user_id!("@bob:example.org")).await?;
            store.transaction().await?.query("SELECT 1", &[]).await?;
            Ok(())
        })
        .await;
    assert!(saved.is_err());
    store.reopen().await.unwrap();
    assert_eq!(store.next_batch_token().await.unwrap().as_deref(), Some("alone"));
}
