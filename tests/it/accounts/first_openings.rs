//! Many openings of an empty database at once, under different defaults of its sessions.

use futures_util::future::join_all;
use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{PoolSettings, PostgresCryptoStore, testing};
use test_support::{Mode, connect, number};

const OPENERS: usize = 18;

async fn openings_under(setting: &str) {
    let database = testing::database().unwrap();
    let (url, name) = (database.url(), database.name());
    let client = connect(&url).await;
    client.batch_execute(&format!("ALTER DATABASE {name} SET {setting}")).await.unwrap();
    // Half of them open the same account.
    let names = (0..OPENERS).map(|n| format!("bot {}", n.saturating_sub(OPENERS / 2)));
    let opened = join_all(names.map(async |name| {
        let config =
            Mode::Key.config(&url, &name).pool(PoolSettings { max_size: 1, ..Default::default() });
        PostgresCryptoStore::open_with_config(&config).await
    }))
    .await;
    for store in opened {
        let store = store.unwrap_or_else(|error| panic!("{setting}: {error}"));
        store.close().await.unwrap();
    }
    let accounts = i64::try_from(OPENERS / 2).unwrap();
    assert_eq!(number(&client, "SELECT count(*) FROM matrix_sdk.accounts").await, accounts);
}

#[tokio::test]
async fn openings_at_once_under_serializable() {
    openings_under("default_transaction_isolation = 'serializable'").await;
}

#[tokio::test]
async fn openings_at_once_under_repeatable_read() {
    openings_under("default_transaction_isolation = 'repeatable read'").await;
}

#[tokio::test]
async fn openings_at_once_under_a_lock_timeout() {
    openings_under("lock_timeout = '20ms'").await;
}

#[tokio::test]
async fn openings_at_once_under_a_statement_timeout() {
    openings_under("statement_timeout = '100ms'").await;
}
