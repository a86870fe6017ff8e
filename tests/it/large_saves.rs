//! Large saves are sent in chunks, each while the next one is staged, but in one transaction.

use std::time::{Duration, Instant};

use assert_matches::assert_matches;
use matrix_sdk_crypto::{
    olm::{Account, InboundGroupSession, SenderDataType},
    store::{CryptoStore, CryptoStoreError},
};
use matrix_sdk_postgres::{Error, testing};
use ruma::OwnedRoomId;
use test_support::{
    Mode, connect,
    fixture::{inbound_session, own_device, own_user, room},
    number,
    proxy::Proxy,
};
use tokio_postgres::Client;

const MANY: usize = 10_000;
const CHUNKS: usize = 10;

/// Sessions with one ratchet in many rooms.
fn sessions() -> Vec<InboundGroupSession> {
    let account = Account::with_device_id(own_user(), own_device());
    let session = inbound_session(&account, room(), SenderDataType::UnknownDevice);
    let in_room = |number: usize| {
        let mut session = session.clone();
        session.room_id = OwnedRoomId::try_from(format!("!{number}:example.org")).unwrap();
        session
    };
    (0..MANY).map(in_room).collect()
}

async fn rows(client: &Client) -> i64 {
    number(client, "SELECT count(*) FROM matrix_sdk.megolm_inbound_sessions").await
}

async fn transactions(client: &Client) -> i64 {
    let sql = "SELECT count(DISTINCT xmin::text) FROM matrix_sdk.megolm_inbound_sessions";
    number(client, sql).await
}

/// Waits until the server executes a save, and returns the backend's process id.
async fn busy_backend(client: &Client) -> i32 {
    let sql = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() \
               AND query LIKE '%/* megolm_inbound_sessions.upsert */%' \
               AND pid <> pg_backend_pid() AND xact_start IS NOT NULL";
    let started = Instant::now();
    // Without a pause: a chunk is executed in milliseconds.
    loop {
        if let Some(row) = client.query(sql, &[]).await.unwrap().first() {
            return row.get(0);
        }
        assert!(started.elapsed() < Duration::from_secs(60), "no save was executed");
    }
}

#[tokio::test]
async fn ten_thousand_room_keys_are_one_transaction() {
    for mode in [Mode::Plain, Mode::Key] {
        let database = testing::database().unwrap();
        let url = database.url();
        let (store, client) = (mode.open(&url, "bot").await, connect(&url).await);
        let before = store.commit_count().await.unwrap();
        store.save_inbound_group_sessions(sessions(), None).await.unwrap();
        assert_eq!((rows(&client).await, transactions(&client).await), (MANY as i64, 1));
        assert_eq!(store.commit_count().await.unwrap(), before + 1, "{mode:?}");

        // The backup version is stored before the sessions that refer to it.
        store.save_inbound_group_sessions(sessions(), Some("1")).await.unwrap();
        let counts = store.inbound_group_session_counts(Some("1")).await.unwrap();
        assert_eq!((counts.total, counts.backed_up), (2 * MANY, MANY), "{mode:?}");
    }
}

/// Sent at once, it would take at most one round trip for each statement.
#[tokio::test]
async fn each_chunk_is_executed_before_the_next_is_sent() {
    let database = testing::database().unwrap();
    let (proxy, url) = Proxy::before(&database);
    let store = Mode::Key.open(&url, "bot").await;
    store.next_batch_token().await.unwrap();
    let before = proxy.round_trips();
    store.save_inbound_group_sessions(sessions(), None).await.unwrap();
    let round_trips = proxy.round_trips() - before;
    println!("{round_trips} round trips");
    assert!(round_trips >= CHUNKS, "{round_trips} round trips");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunked_save_whose_future_is_dropped_is_finished_in_order() {
    let database = testing::database().unwrap();
    let url = database.url();
    let (store, client) = (Mode::Key.open(&url, "bot").await, connect(&url).await);
    let mut dropped = Box::pin(store.save_inbound_group_sessions(sessions(), None));
    assert!(futures_util::poll!(&mut dropped).is_pending());
    drop(dropped);
    // Queued behind the large save.
    store.set_custom_value("key", b"value".to_vec()).await.unwrap();
    assert_eq!((rows(&client).await, transactions(&client).await), (MANY as i64, 1));
}

#[tokio::test]
async fn a_failure_in_the_last_chunk_rolls_back_all_chunks() {
    let database = testing::database().unwrap();
    let url = database.url();
    let (store, client) = (Mode::Plain.open(&url, "bot").await, connect(&url).await);
    let refuse = format!(
        "ALTER TABLE matrix_sdk.megolm_inbound_sessions
             ADD CONSTRAINT refuse CHECK (room_id <> '!{}:example.org')",
        MANY - 1
    );
    client.batch_execute(&refuse).await.unwrap();
    let failed = store.save_inbound_group_sessions(sessions(), None).await;
    assert_matches!(failed, Err(Error::Database(error)) => {
        assert_eq!(error.constraint(), Some("refuse"));
    });
    assert_eq!(rows(&client).await, 0);
    let refused = store.set_custom_value("key", b"value".to_vec()).await;
    assert_matches!(refused, Err(Error::ReopenRequired));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_lost_between_chunks_is_retried() {
    let database = testing::database().unwrap();
    let url = database.url();
    let (store, client) = (Mode::Key.open(&url, "bot").await, connect(&url).await);
    let saving = tokio::spawn({
        let (store, sessions) = (store.clone(), sessions());
        async move { store.save_inbound_group_sessions(sessions, None).await }
    });
    for _ in 0..2 {
        let pid = busy_backend(&client).await;
        client.execute("SELECT pg_terminate_backend($1)", &[&pid]).await.unwrap();
    }
    saving.await.unwrap().unwrap();
    assert_eq!((rows(&client).await, transactions(&client).await), (MANY as i64, 1));
}

#[tokio::test]
async fn a_chunked_save_within_atomically_is_committed_with_the_scope() {
    let database = testing::database().unwrap();
    let url = database.url();
    let (store, client) = (Mode::Key.open(&url, "bot").await, connect(&url).await);
    let rolled_back = store.atomically(async {
        store.save_inbound_group_sessions(sessions(), None).await?;
        let total = store.inbound_group_session_counts(None).await?.total;
        assert_eq!(total, MANY);
        Err::<(), _>(CryptoStoreError::AccountUnset)
    });
    rolled_back.await.unwrap_err();
    assert_eq!(rows(&client).await, 0);
}
