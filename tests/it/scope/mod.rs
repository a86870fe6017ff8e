//! A scope of `atomically` belongs to the store, not to a task: visibility of its saves, and its end.

mod closing;
mod ends;
mod lost_connection;
mod machines;
mod readers;
mod savepoints;
mod spawned;

use std::time::Duration;

use matrix_sdk_crypto::{CryptoStoreError, store::CryptoStore};
use matrix_sdk_postgres::{
    Error, PoolSettings, PostgresCryptoStore, PostgresStoreConfig, Timeouts,
    testing::{self, TestDatabase},
};
use test_support::{Mode, connect, eventually, number};
use tokio_postgres::Client;

/// The store's error in the SDK's.
fn inner(error: CryptoStoreError) -> Error {
    match error {
        CryptoStoreError::Backend(inner) => *inner.downcast().unwrap(),
        other => panic!("{other:?}"),
    }
}

async fn open(config: &PostgresStoreConfig) -> PostgresCryptoStore {
    PostgresCryptoStore::open_with_config(config).await.unwrap()
}

fn timeouts() -> Timeouts {
    Timeouts { atomically: Duration::from_secs(5), ..Default::default() }
}

/// A configuration with a short time limit for `atomically`, in case of a hang.
fn config(url: &str, pool_size: usize) -> PostgresStoreConfig {
    Mode::Key.config(url, "bot").timeouts(timeouts()).pool(PoolSettings {
        max_size: pool_size,
        wait_timeout: Duration::from_secs(3),
        ..Default::default()
    })
}

async fn set(store: &PostgresCryptoStore, key: &str) -> Result<(), CryptoStoreError> {
    store.set_custom_value(key, b"value".to_vec()).await.map_err(Into::into)
}

async fn has(store: &PostgresCryptoStore, key: &str) -> bool {
    store.get_custom_value(key).await.unwrap().is_some()
}

/// A store, and a client of its database, which has a table of the application.
async fn with_outbox() -> (TestDatabase, PostgresCryptoStore, Client) {
    let database = testing::database().unwrap();
    let store = open(&config(&database.url(), 2)).await;
    let client = connect(&database.url()).await;
    client.batch_execute("CREATE TABLE outbox (body text)").await.unwrap();
    (database, store, client)
}

/// Whether a backend waits for a lock of this kind.
async fn is_locked(client: &Client, kind: &str) -> bool {
    let waiting = format!(
        "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
         WHERE d.datname = current_database() AND NOT granted AND locktype = '{kind}'"
    );
    number(client, &waiting).await > 0
}

async fn until_locked(client: &Client, kind: &str) {
    eventually("a backend waits for a lock", async || is_locked(client, kind).await).await;
}

async fn until_unlocked(client: &Client, kind: &str) {
    eventually("no backend waits for a lock", async || !is_locked(client, kind).await).await;
}
