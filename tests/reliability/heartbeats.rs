//! The accounts of a process share a heartbeat, and no account delays another.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use assert_matches::assert_matches;
use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{
    Error, OwnershipSettings, PostgresCryptoStore, PostgresStoreConfig, Timeouts,
    testing::PostgresServer,
};
use test_support::{
    Mode, connect, eventually, number,
    proxy::{Action, Message, Proxy},
};

const HOUR: Duration = Duration::from_secs(3600);

const ACCOUNTS: [&str; 3] = ["first", "second", "third"];

/// Whether it is the statement that reads an account's owner and last transaction.
fn is_owner_query(message: &Message<'_>) -> bool {
    message.tag == b'P' && message.body.windows(18).any(|bytes| bytes == b"l.last_transaction")
}

/// Whether the parameter is this account.
fn is_of(message: &Message<'_>, account_id: i64) -> bool {
    let bytes = account_id.to_be_bytes();
    message.tag == b'B' && message.body.windows(8).any(|found| found == bytes)
}

/// The heartbeat finds all accounts taken over; the owner query of one account gets no response.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_without_a_response_does_not_block_the_others() {
    // For each position of that account in the heartbeat.
    for silent in ACCOUNTS {
        let server = PostgresServer::start().unwrap();
        let proxy = Proxy::start(format!("127.0.0.1:{}", server.port()));
        let url = proxy.url(&server.url(), server.port());
        let mut stores = Vec::new();
        for account in ACCOUNTS {
            // Longer than the test waits.
            let config = Mode::Plain
                .config(&url, account)
                .timeouts(Timeouts { statement: HOUR, ..Default::default() });
            let config = config.access(OwnershipSettings {
                heartbeat_interval: Duration::from_millis(50),
                ..Default::default()
            });
            stores.push(PostgresCryptoStore::open_with_config(&config).await.unwrap());
        }
        let client = connect(&server.url()).await;
        let id = format!("SELECT id FROM matrix_sdk.accounts WHERE name = '{silent}'");
        let (id, mut querying_backend, queries) =
            (number(&client, &id).await, 0, Arc::new(AtomicUsize::new(0)));
        let counter = queries.clone();
        proxy.rule(move |message| {
            querying_backend =
                if is_owner_query(message) { message.backend } else { querying_backend };
            if querying_backend == message.backend && is_of(message, id) {
                counter.fetch_add(1, SeqCst);
                return Action::BlackHole;
            }
            Action::Pass
        });
        // All takeovers in one transaction, so that one heartbeat finds them all.
        let taken = "UPDATE matrix_sdk.account_owners SET token = '\\x00', name = 'other'";
        client.batch_execute(taken).await.unwrap();
        eventually("the silent account has sent its query", async || queries.load(SeqCst) > 0)
            .await;
        for (store, account) in stores.iter().zip(ACCOUNTS).filter(|(_, of)| *of != silent) {
            eventually(account, async || store.get_custom_value("key").await.is_err()).await;
            let error = store.get_custom_value("key").await;
            assert_matches!(error, Err(Error::Superseded { by, .. }) if by == "other");
        }
        // The heartbeat continues, and the silent account has one query at a time: each occupies a connection.
        let alive = "SELECT max(alive_until)::text FROM matrix_sdk.heartbeats";
        let alive = async || client.query_one(alive, &[]).await.unwrap().get::<_, String>(0);
        for _ in 0..5 {
            let before = alive().await;
            eventually("the heartbeat is renewed", async || alive().await != before).await;
        }
        assert_eq!(queries.load(SeqCst), 1, "queries without a response");
    }
}

/// The heartbeat is shared with a store that was opened before the role's password changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_the_first_account_does_not_have_ends_no_heartbeat() {
    let server = PostgresServer::start().unwrap();
    let admin = connect(&server.url()).await;
    admin.batch_execute("CREATE ROLE bot SUPERUSER LOGIN PASSWORD 'old'").await.unwrap();
    let open = async |password: &str, account: &str| {
        let url = format!("postgres://bot:{password}@127.0.0.1:{}/postgres", server.port());
        let config = PostgresStoreConfig::new(url, account);
        let config = config.access(OwnershipSettings {
            heartbeat_interval: Duration::from_millis(200),
            ..Default::default()
        });
        PostgresCryptoStore::open_with_config(&config).await.unwrap()
    };
    let _first = open("old", "first").await;
    admin.batch_execute("ALTER ROLE bot PASSWORD 'new'").await.unwrap();
    let _second = open("new", "second").await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'bot'";
    admin.batch_execute(end).await.unwrap();
    admin
        .batch_execute("CREATE TABLE before AS SELECT max(alive_until) FROM matrix_sdk.heartbeats")
        .await
        .unwrap();
    let beats = "SELECT count(*) FROM matrix_sdk.heartbeats, before WHERE alive_until > before.max";
    eventually("the heartbeat is written again", async || number(&admin, beats).await > 0).await;
}
