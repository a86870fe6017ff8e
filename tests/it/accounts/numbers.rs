//! Accounts are numbered by a sequence, which logical replication and some restores do not copy.

use futures_util::future::join_all;
use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::testing;
use test_support::{Mode, connect, number};

const RESTART: &str = "ALTER TABLE matrix_sdk.accounts ALTER id RESTART WITH 1";

async fn holds(url: &str, account: &str) {
    let store = Mode::Plain.open(url, account).await;
    let value = account.as_bytes().to_vec();
    store.set_custom_value("name", value.clone()).await.unwrap();
    assert_eq!(store.get_custom_value("name").await.unwrap(), Some(value));
}

#[tokio::test]
async fn a_sequence_that_lags_behind_does_not_keep_new_accounts_out() {
    let database = testing::database().unwrap();
    let url = database.url();
    for name in ["a", "b", "c"] {
        holds(&url, name).await;
    }
    let client = connect(&url).await;
    client.batch_execute(RESTART).await.unwrap();
    for name in ["d", "e", "f", "g", "h"] {
        holds(&url, name).await;
    }
    for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        let store = Mode::Plain.open(&url, name).await;
        let value = store.get_custom_value("name").await.unwrap();
        assert_eq!(value.as_deref(), Some(name.as_bytes()));
    }
    assert_eq!(number(&client, "SELECT count(*) FROM matrix_sdk.accounts").await, 8);
}

#[tokio::test]
async fn many_new_accounts_at_once_with_a_lagging_sequence() {
    let database = testing::database().unwrap();
    let url = database.url();
    for n in 0..5 {
        holds(&url, &format!("old {n}")).await;
    }
    let client = connect(&url).await;
    client.batch_execute(RESTART).await.unwrap();
    // Some names are opened twice.
    let names = (0..16).map(|n| format!("new {}", n % 12));
    join_all(names.map(async |name| Mode::Plain.open(&url, &name).await)).await;
    assert_eq!(number(&client, "SELECT count(*) FROM matrix_sdk.accounts").await, 17);
}
