//! Visibility of a scope's saves to other tasks.

use std::time::Duration;

use assert_matches::assert_matches;
use matrix_sdk_crypto::{
    CryptoStoreError, DeviceData,
    olm::{Account, SenderDataType},
    store::{
        CryptoStore,
        types::{Changes, DeviceChanges},
    },
};
use matrix_sdk_postgres::{Error, OwnershipSettings, PostgresCryptoStore, Timeouts, testing};
use ruma::device_id;
use test_support::{
    connect,
    fixture::{inbound_session, other_user, own_device, own_user, room},
    number,
};
use tokio::sync::oneshot;
use tokio_postgres::types::Type;

use super::{config, has, inner, open, set, timeouts, until_locked, until_unlocked};

/// Before its first save a scope holds neither lane nor connection.
#[tokio::test]
async fn before_its_first_save_a_scope_holds_neither_lane_nor_connection() {
    let database = testing::database().unwrap();
    let store = open(&config(&database.url(), 1)).await;
    let both = store.atomically(async {
        assert!(!has(&store, "other").await);
        let other = store.clone();
        tokio::spawn(async move { set(&other, "other").await }).await.unwrap()?;
        assert!(has(&store, "other").await);
        set(&store, "own").await
    });
    both.await.unwrap();
    assert!(has(&store, "own").await);
}

fn device() -> DeviceData {
    DeviceData::from_account(&Account::with_device_id(other_user(), device_id!("BOBSDEVICE")))
}

/// Reads from the cache, with one statement, and as a stream.
async fn read_rows(store: &PostgresCryptoStore) -> (usize, bool, usize, usize) {
    (
        store.get_user_devices(other_user()).await.unwrap().len(),
        store.get_device(other_user(), device_id!("BOBSDEVICE")).await.unwrap().is_some(),
        store.get_inbound_group_sessions().await.unwrap().len(),
        store.inbound_group_session_counts(None).await.unwrap().total,
    )
}

/// Reads the token and a custom value, on which other tasks act at the homeserver.
async fn read_committed_only(store: &PostgresCryptoStore) -> (Option<String>, bool) {
    (store.next_batch_token().await.unwrap(), has(store, "key").await)
}

async fn by_another_task<T: Send + 'static>(
    reading: impl Future<Output = T> + Send + 'static,
) -> T {
    tokio::spawn(reading).await.unwrap()
}

/// With and without an idle connection for reads outside of the scope.
#[tokio::test]
async fn after_its_first_save_all_tasks_see_the_scopes_rows_except_token_and_custom_values() {
    for (pool_size, cache_bytes) in [(4, 16 << 20), (2, 0), (4, 0)] {
        let database = testing::database().unwrap();
        let config = config(&database.url(), pool_size)
            .access(OwnershipSettings { cache_bytes, ..Default::default() });
        let store = open(&config).await;
        let account = Account::with_device_id(own_user(), own_device());
        assert_eq!(read_rows(&store).await, (0, false, 0, 0));
        // The pool has an idle connection in addition to the scope's.
        tokio::join!(read_committed_only(&store), read_rows(&store));
        let scope = store.atomically(async {
            let session = inbound_session(&account, room(), SenderDataType::UnknownDevice);
            let changes = Changes {
                devices: DeviceChanges { new: vec![device()], ..Default::default() },
                inbound_group_sessions: vec![session],
                next_batch_token: Some("token".to_owned()),
                ..Default::default()
            };
            store.save_changes(changes).await?;
            set(&store, "key").await?;
            let expected = (1, true, 1, 1);
            let other = store.clone();
            assert_eq!(by_another_task(async move { read_rows(&other).await }).await, expected);
            let other = store.clone();
            assert_eq!(
                by_another_task(async move { read_committed_only(&other).await }).await,
                (None, false)
            );
            assert_eq!(read_rows(&store).await, expected);
            assert_eq!(read_committed_only(&store).await, (Some("token".to_owned()), true));
            Ok::<_, CryptoStoreError>(())
        });
        scope.await.unwrap();
        assert_eq!(read_rows(&store).await, (1, true, 1, 1));
        assert_eq!(read_committed_only(&store).await, (Some("token".to_owned()), true));
    }
}

/// The scope's connection is the pool's only one: unchanged rows are read on it as well, and a lease is taken
/// on a connection outside of the pool.
#[tokio::test]
async fn a_pool_of_one_serves_the_scope_and_concurrent_readers() {
    let database = testing::database().unwrap();
    let store = open(&config(&database.url(), 1)).await;
    let new = || DeviceChanges { new: vec![device()], ..Default::default() };
    let scope = store.atomically(async {
        set(&store, "key").await?;
        // The scope takes its connection.
        assert!(has(&store, "key").await);
        let other = store.clone();
        let reads = async move {
            let reads = (0..50).map(|number| {
                let other = &other;
                async move {
                    let session = format!("session {number}");
                    other.get_inbound_group_session(room(), &session).await.unwrap();
                    other.get_withheld_info(room(), &session).await.unwrap();
                    other.get_user_devices(other_user()).await.unwrap().len()
                }
            });
            futures_util::future::join_all(reads).await.into_iter().sum::<usize>()
        };
        assert_eq!(by_another_task(reads).await, 0);
        store.save_changes(Changes { devices: new(), ..Default::default() }).await?;
        let other = store.clone();
        assert!(by_another_task(async move { read_rows(&other).await.1 }).await);
        assert_eq!(store.try_take_leased_lock(60_000, "lock", "holder").await?, Some(1));
        Ok::<_, CryptoStoreError>(store.commit_count().await?)
    });
    scope.await.unwrap();
    assert_eq!(read_rows(&store).await, (1, true, 0, 0));
}

/// A read by another task of a room's withheld sessions, which the scope has changed.
fn read_withheld(store: &PostgresCryptoStore) -> tokio::task::JoinHandle<Result<usize, Error>> {
    let store = store.clone();
    tokio::spawn(async move { Ok(store.get_withheld_sessions_by_room_id(room()).await?.len()) })
}

fn withheld() -> Changes {
    let entry = test_support::values::withheld(
        room(),
        "session",
        other_user(),
        Account::with_device_id(own_user(), own_device()).identity_keys().curve25519,
        own_device().to_owned(),
    );
    let of_room = [("session".to_owned(), entry)].into();
    Changes { withheld_session_info: [(room().to_owned(), of_room)].into(), ..Default::default() }
}

/// The read fails in the server after its future was dropped, in a transaction that cannot be repeated.
#[tokio::test]
async fn a_dropped_read_of_another_task_does_not_fail_the_scope() {
    let database = testing::database().unwrap();
    let url = database.url();
    let config =
        config(&url, 4).timeouts(Timeouts { statement: Duration::from_millis(300), ..timeouts() });
    let store = open(&config).await;
    let client = connect(&url).await;
    client.batch_execute("CREATE TABLE outbox (body text)").await.unwrap();
    let scope = store.atomically(async {
        store.reset_backup_state().await?;
        let transaction = store.transaction().await?;
        let insert = "INSERT INTO outbox VALUES ($1)";
        transaction.query(insert, &[(&"row", Type::TEXT)]).await?;
        let lock = "BEGIN; LOCK TABLE matrix_sdk.megolm_inbound_sessions";
        client.batch_execute(lock).await.unwrap();
        let other = store.clone();
        let reader =
            tokio::spawn(async move { other.inbound_group_session_counts(Some("1")).await });
        until_locked(&client, "relation").await;
        reader.abort();
        until_unlocked(&client, "relation").await;
        client.batch_execute("COMMIT").await.unwrap();
        assert_eq!(store.inbound_group_session_counts(Some("1")).await?.total, 0);
        set(&store, "key").await
    });
    scope.await.unwrap();
    assert_eq!(number(&client, "SELECT count(*) FROM outbox").await, 1);
    assert!(has(&store, "key").await);
}

/// The error is returned to the reader only.
#[tokio::test]
async fn a_corrupt_row_read_by_another_task_does_not_fail_the_scope() {
    let database = testing::database().unwrap();
    let url = database.url();
    let store = open(&config(&url, 4)).await;
    let client = connect(&url).await;
    store.save_changes(withheld()).await.unwrap();
    client.batch_execute("UPDATE matrix_sdk.withheld_sessions SET data = '\\x00'").await.unwrap();
    let scope = store.atomically(async {
        let other_room = ruma::room_id!("!other:example.org").to_owned();
        let mut changes = withheld();
        let of_room = changes.withheld_session_info.remove(room()).unwrap();
        changes.withheld_session_info.insert(other_room, of_room);
        store.save_changes(changes).await?;
        assert_matches!(read_withheld(&store).await.unwrap(), Err(Error::CorruptRow { .. }));
        set(&store, "key").await
    });
    scope.await.unwrap();
    assert!(has(&store, "key").await);
}

/// Waits until the query waits for a lock in the server; returns the value that was sent.
async fn waiting<T>(has_sent: oneshot::Receiver<T>, watcher: &tokio_postgres::Client) -> T {
    let sent = has_sent.await.unwrap();
    until_locked(watcher, "relation").await;
    sent
}

/// The scope's own statement waits in the server, with another task's read queued behind it; then the scope
/// is dropped.
#[tokio::test]
async fn a_read_queued_behind_an_ended_scope_is_repeated_outside() {
    let database = testing::database().unwrap();
    let url = database.url();
    let store = open(&config(&url, 4)).await;
    let (client, watcher) = (connect(&url).await, connect(&url).await);
    client.batch_execute("BEGIN; LOCK TABLE matrix_sdk.withheld_sessions").await.unwrap();
    let (sent, has_sent) = oneshot::channel();
    let scope = store.atomically(async {
        store.save_changes(withheld()).await?;
        sent.send(read_withheld(&store)).unwrap();
        std::future::pending::<Result<(), CryptoStoreError>>().await
    });
    let reader = tokio::select! {
        biased;
        reader = waiting(has_sent, &watcher) => reader,
        ended = scope => panic!("{ended:?}"),
    };
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(reader.await.unwrap().unwrap(), 0);
    assert_matches!(inner(set(&store, "key").await.unwrap_err()), Error::ReopenRequired);
    store.reopen().await.unwrap();
    set(&store, "key").await.unwrap();
}

/// Another task's read fails in the server: the scope is committed and later writes are refused, because the
/// SDK may have ignored the failure.
#[tokio::test(flavor = "multi_thread")]
async fn another_tasks_failed_read_fails_the_store_after_the_scope() {
    for reopens in [false, true] {
        fail_a_read_during_a_scope(reopens).await;
    }
}

async fn fail_a_read_during_a_scope(reopens: bool) {
    let database = testing::database().unwrap();
    let store = open(&config(&database.url(), 4)).await;
    let client = connect(&database.url()).await;
    let mut reopening = None;
    let scope = store.atomically(async {
        set(&store, "first").await?;
        store.transaction().await?.query("SELECT 1", &[]).await?;
        let lock = "BEGIN; LOCK TABLE matrix_sdk.megolm_inbound_sessions";
        client.batch_execute(lock).await.unwrap();
        let other = store.clone();
        let read = tokio::spawn(async move { other.inbound_group_session_counts(None).await });
        until_locked(&client, "relation").await;
        let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity
                      WHERE datname = current_database() AND wait_event_type = 'Lock'";
        client.batch_execute(cancel).await.unwrap();
        assert_matches!(read.await.unwrap(), Err(Error::Database(_)));
        client.batch_execute("COMMIT").await.unwrap();
        let other = store.clone();
        reopening = reopens.then(|| tokio::spawn(async move { other.reopen().await }));
        set(&store, "second").await
    });
    scope.await.map_err(inner).unwrap();
    if let Some(reopening) = reopening {
        // The reopening waits for the scope, and clears the failure.
        reopening.await.unwrap().unwrap();
        return set(&store, "third").await.map_err(inner).unwrap();
    }
    assert_matches!(set(&store, "third").await.map_err(inner), Err(Error::ReopenRequired));
    assert!(has(&store, "second").await);
}
