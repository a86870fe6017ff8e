//! `atomically`: one transaction for a whole sync.

use std::{future::Future, task::Poll, time::Duration};

use assert_matches::assert_matches;
use futures_util::poll;
use matrix_sdk_crypto::{
    EncryptionSyncChanges, OlmError,
    olm::{Account, SenderDataType},
    store::{CryptoStore, CryptoStoreError},
};
use matrix_sdk_postgres::{Access, Error, PoolSettings, PostgresCryptoStore, Timeouts, testing};
use ruma::{OwnedUserId, RoomId, UserId, room_id, user_id};
use test_support::{
    Mode, connect,
    fixture::{Fixture, inbound_session, other_user, own_device, own_user, room},
    machine::{Relay, SETTINGS, decrypt, encrypt, open_machine},
    number,
    proxy::Proxy,
};

/// The store's error in the SDK's.
fn inner(error: CryptoStoreError) -> Error {
    match error {
        CryptoStoreError::Backend(inner) => *inner.downcast().unwrap(),
        other => panic!("{other:?}"),
    }
}

async fn set(store: &PostgresCryptoStore, value: &[u8]) -> Result<(), CryptoStoreError> {
    store.set_custom_value("key", value.to_vec()).await.map_err(Into::into)
}

async fn get(store: &PostgresCryptoStore) -> Option<Vec<u8>> {
    store.get_custom_value("key").await.unwrap()
}

#[tokio::test]
async fn saves_are_visible_within_the_scope_and_to_others_after_the_commit() {
    let database = testing::database().unwrap();
    let url = database.url();
    let store = Mode::Key.open(&url, "bot").await;
    let read_only_config = Mode::Key.config(&url, "bot").access(Access::ReadOnly);
    let other = PostgresCryptoStore::open_with_config(&read_only_config).await.unwrap();
    store
        .atomically(async {
            set(&store, b"first").await?;
            assert_eq!(get(&store).await.unwrap(), b"first");
            store.remove_custom_value("key").await.map_err(CryptoStoreError::from)?;
            assert_eq!(get(&store).await, None);
            set(&store, b"second").await?;
            assert_eq!(get(&store).await.unwrap(), b"second");
            // Another task is not in the scope: it does not read the custom value, and may use other stores.
            let other = other.clone();
            assert_eq!(tokio::spawn(async move { get(&other).await }).await.unwrap(), None);
            Ok::<_, CryptoStoreError>(())
        })
        .await
        .unwrap();
    assert_eq!(get(&other).await.unwrap(), b"second");
    set(&store, b"third").await.unwrap();
}

/// Reads of many rows are streamed, on a connection of their own outside of a transaction.
#[tokio::test]
async fn streamed_reads_within_a_scope_include_its_saves() {
    let database = testing::database().unwrap();
    let config = Mode::Key
        .config(&database.url(), "bot")
        .pool(PoolSettings { max_size: 1, ..Default::default() });
    let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
    let account = Account::with_device_id(own_user(), own_device());
    let [first, second] =
        [(); 2].map(|()| inbound_session(&account, room(), SenderDataType::UnknownDevice));
    store.save_inbound_group_sessions(vec![first], None).await.unwrap();
    let found = store.atomically(async {
        store.save_inbound_group_sessions(vec![second], None).await?;
        let all = store.get_inbound_group_sessions().await?.len();
        let in_room = store.get_inbound_group_sessions_by_room_id(room()).await?.len();
        Ok::<_, CryptoStoreError>((all, in_room))
    });
    assert_eq!(found.await.unwrap(), (2, 2));
}

#[tokio::test]
async fn an_error_and_a_dropped_future_roll_back_and_the_store_must_be_reopened() {
    let database = testing::database().unwrap();
    let url = database.url();
    let store = Mode::Key.open(&url, "bot").await;
    set(&store, b"before").await.unwrap();

    let failed: Result<(), CryptoStoreError> = store
        .atomically(async {
            set(&store, b"within").await?;
            get(&store).await;
            Err(CryptoStoreError::AccountUnset)
        })
        .await;
    assert_matches!(failed, Err(CryptoStoreError::AccountUnset));
    assert_eq!(get(&store).await.unwrap(), b"before");
    assert_matches!(inner(set(&store, b"after").await.unwrap_err()), Error::ReopenRequired);
    store.reopen().await.unwrap();
    set(&store, b"after").await.unwrap();

    let (reached, mut is_reached) = tokio::sync::oneshot::channel();
    {
        let mut dropped = Box::pin(store.atomically(async {
            set(&store, b"within").await?;
            get(&store).await;
            reached.send(()).unwrap();
            std::future::pending::<Result<(), CryptoStoreError>>().await
        }));
        while is_reached.try_recv().is_err() {
            assert!(poll!(&mut dropped).is_pending());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    assert_eq!(get(&store).await.unwrap(), b"after");
    assert_matches!(inner(set(&store, b"after").await.unwrap_err()), Error::ReopenRequired);
    store.reopen().await.unwrap();
    // The cancelled transaction holds no lock.
    set(&store, b"at last").await.unwrap();
}

/// If a connection were returned to a shared pool in the middle of a transaction, the next query on it would
/// run in that transaction.
#[tokio::test]
async fn a_future_dropped_while_the_server_works_leaves_no_transaction_in_the_pool() {
    let database = testing::database().unwrap();
    let url = database.url();
    let config =
        Mode::Plain.config(&url, "bot").pool(PoolSettings { max_size: 1, ..Default::default() });
    let pool = config.build_pool().unwrap();
    let store = PostgresCryptoStore::open_with_pool(pool.clone(), &config).await.unwrap();
    set(&store, b"before").await.unwrap();

    let mut client = connect(&url).await;
    let lock = client.transaction().await.unwrap();
    lock.batch_execute("SELECT * FROM matrix_sdk.custom_values FOR UPDATE").await.unwrap();
    let watcher = connect(&url).await;
    {
        let mut dropped = Box::pin(store.atomically(async {
            set(&store, b"within").await?;
            get(&store).await;
            Ok::<_, CryptoStoreError>(())
        }));
        let waiting = "SELECT count(*) FROM pg_stat_activity \
                       WHERE datname = current_database() AND wait_event_type = 'Lock'";
        while number(&watcher, waiting).await == 0 {
            assert!(poll!(&mut dropped).is_pending());
        }
    }
    lock.commit().await.unwrap();
    let connection = pool.get().await.unwrap();
    let sql = "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() \
               AND relation = 'matrix_sdk.custom_values'::regclass";
    assert_eq!(number(&connection, sql).await, 0, "the pool's connection is in a transaction");
    drop(connection);
    store.reopen().await.unwrap();
    assert_eq!(get(&store).await.unwrap(), b"before");
    set(&store, b"after").await.unwrap();
}

#[tokio::test]
async fn an_error_before_the_first_save_does_not_fail_the_store() {
    let database = testing::database().unwrap();
    let store = Mode::Plain.open(&database.url(), "bot").await;
    let failed: Result<(), _> =
        store.atomically(async { Err(CryptoStoreError::AccountUnset) }).await;
    assert!(failed.is_err());
    set(&store, b"after").await.unwrap();
}

#[tokio::test]
async fn nesting_other_stores_and_long_waits_are_refused() {
    let database = testing::database().unwrap();
    let url = database.url();
    let config = Mode::Plain
        .config(&url, "bot")
        .timeouts(Timeouts { atomically: Duration::from_millis(300), ..Default::default() });
    let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
    let other = Mode::Plain.open(&url, "other").await;

    let nested = store
        .atomically(async { store.atomically(async { Ok::<_, CryptoStoreError>(()) }).await })
        .await;
    assert_matches!(inner(nested.unwrap_err()), Error::NestedAtomically);
    let foreign = store.atomically(async { set(&other, b"lost").await }).await;
    assert_matches!(inner(foreign.unwrap_err()), Error::OtherStoreInAtomically);
    assert_eq!(get(&other).await, None);

    let long = store
        .atomically(async {
            set(&store, b"within").await?;
            std::future::pending::<Result<(), CryptoStoreError>>().await
        })
        .await;
    assert_matches!(inner(long.unwrap_err()), Error::AtomicallyTimeout);
    assert_eq!(get(&store).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_writers_wait_for_the_scope() {
    let database = testing::database().unwrap();
    let store = Mode::Key.open(&database.url(), "bot").await;
    let (started, is_started) = tokio::sync::oneshot::channel();
    let within = tokio::spawn({
        let store = store.clone();
        async move {
            let scoped = store.clone();
            store
                .atomically(async move {
                    set(&scoped, b"within").await?;
                    started.send(()).unwrap();
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    assert_eq!(get(&scoped).await.unwrap(), b"within");
                    Ok::<_, CryptoStoreError>(())
                })
                .await
        }
    });
    is_started.await.unwrap();
    set(&store, b"after").await.unwrap();
    within.await.unwrap().unwrap();
    assert_eq!(get(&store).await.unwrap(), b"after");
}

#[tokio::test]
async fn saves_within_a_scope_take_one_round_trip() {
    let database = testing::database().unwrap();
    let (proxy, url) = Proxy::before(&database);
    let store = Mode::Key.open(&url, "bot").await;
    set(&store, b"prepares the connection").await.unwrap();
    let round_trips = proxy.round_trips();
    store
        .atomically(async {
            for round in 0..20 {
                set(&store, &[round]).await?;
            }
            Ok::<_, CryptoStoreError>(())
        })
        .await
        .unwrap();
    assert_eq!(proxy.round_trips() - round_trips, 1);
    assert_eq!(get(&store).await.unwrap(), [19]);
}

/// A sync with room keys of several senders.
struct Senders {
    relay: Relay,
    messages: Vec<(OwnedUserId, serde_json::Value)>,
}

const SENDERS: usize = 4;

async fn first_contact(bob: &UserId, room_id: &RoomId, url: &str) -> Senders {
    let mut relay = Relay::default();
    let machine = open_machine(bob, Mode::Key.open(url, "bob").await).await;
    relay.serve(&machine).await;
    let mut messages = Vec::new();
    for number in 0..SENDERS {
        let user_id: OwnedUserId = format!("@sender{number}:example.org").parse().unwrap();
        let sender = open_machine(&user_id, matrix_sdk_crypto::store::MemoryStore::new()).await;
        relay.serve(&sender).await;
        relay.track(&sender, &[bob]).await;
        relay.share(&sender, room_id, &[bob]).await;
        let event = encrypt(&sender, room_id, user_id.as_str()).await;
        messages.push((user_id, event));
    }
    Senders { relay, messages }
}

/// The experiment that loses keys in other stores: a sync is dropped after every number of polls, and the
/// same sync is sent again to a machine that starts from the stored state.
#[tokio::test(flavor = "multi_thread")]
async fn a_sync_dropped_at_any_poll_and_replayed_loses_no_room_key() {
    let (bob, room_id) = (user_id!("@bob:example.org"), room_id!("!room:example.org"));
    let mut cut_at = 1;
    loop {
        let database = testing::database().unwrap();
        let url = database.url();
        let Senders { relay, messages } = first_contact(bob, room_id, &url).await;
        let events = relay.waiting_for(bob);
        let sync = |events| EncryptionSyncChanges {
            to_device_events: events,
            changed_devices: Box::leak(Box::default()),
            one_time_keys_counts: Box::leak(Box::default()),
            unused_fallback_keys: None,
            next_batch_token: Some("s1".to_owned()),
        };
        let store = Mode::Key.open(&url, "bob").await;
        let machine = open_machine(bob, store.clone()).await;
        let finished = {
            let work = machine.receive_sync_changes(sync(events.clone()), &SETTINGS);
            let mut work = Box::pin(store.atomically::<_, OlmError>(work));
            let mut polls = 0;
            std::future::poll_fn(|context| {
                polls += 1;
                if polls > cut_at {
                    return Poll::Ready(false);
                }
                work.as_mut().poll(context).map(|result| result.is_ok())
            })
            .await
        };
        drop((machine, store));

        let store = Mode::Key.open(&url, "bob").await;
        let machine = open_machine(bob, store.clone()).await;
        let work = machine.receive_sync_changes(sync(events), &SETTINGS);
        store.atomically::<_, OlmError>(work).await.unwrap();
        for (sender, event) in &messages {
            let body = decrypt(&machine, room_id, event).await;
            assert_eq!(body, sender.as_str(), "dropped after {cut_at} polls");
        }
        if finished {
            // The number of polls varies: several responses may arrive with one wake-up.
            assert!(cut_at > 3, "the sync was never dropped before its end: {cut_at}");
            return;
        }
        cut_at += 1;
    }
}

/// The SDK takes a failed read for an undecryptable message, and ends the sync successfully.
#[tokio::test]
async fn nothing_is_committed_after_a_failed_read() {
    let database = testing::database().unwrap();
    let (url, fixture) = (database.url(), Fixture::new().await);
    let (store, client) = (Mode::Key.open(&url, "bot").await, connect(&url).await);
    let result = store.atomically(async {
        store.save_inbound_group_sessions(vec![fixture.inbound.clone()], None).await?;
        let (away, back) = ("devices RENAME TO away", "away RENAME TO devices");
        client.batch_execute(&format!("ALTER TABLE matrix_sdk.{away}")).await.unwrap();
        assert!(store.get_user_devices(other_user()).await.is_err());
        client.batch_execute(&format!("ALTER TABLE matrix_sdk.{back}")).await.unwrap();
        Ok::<_, CryptoStoreError>(())
    });
    let error = result.await.unwrap_err();
    assert_matches!(inner(error), Error::ReopenRequired);
    let sessions = "SELECT count(*) FROM matrix_sdk.megolm_inbound_sessions";
    assert_eq!(number(&client, sessions).await, 0);
}
