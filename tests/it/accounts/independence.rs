//! Rule 5: two accounts with the same rows in one database are independent.

use matrix_sdk_crypto::{
    DeviceData,
    store::{
        CryptoStore,
        types::{Changes, DeviceChanges},
    },
};
use matrix_sdk_postgres::{PostgresCryptoStore, testing};
use test_support::{
    Mode, connect,
    fixture::{BACKUP_VERSION, CUSTOM_KEY, Fixture, own_user, room, secret_name},
    number,
    reads::{assert_complete, assert_empty},
};
use tokio_postgres::Client;

const PAIRS: [[Mode; 2]; 4] = [
    [Mode::Plain, Mode::Plain],
    [Mode::Key, Mode::Key],
    [Mode::Plain, Mode::Passphrase],
    [Mode::Passphrase, Mode::Key],
];

/// The tables that hold rows of accounts.
async fn account_tables(client: &Client) -> Vec<String> {
    let sql = "SELECT table_name::text FROM information_schema.columns
               WHERE table_schema = 'matrix_sdk' AND column_name = 'account_id'";
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

async fn delete_account(client: &Client, name: &str) {
    let id = format!("SELECT id FROM matrix_sdk.accounts WHERE name = '{name}'");
    let id = number(client, &id).await;
    for table in account_tables(client).await {
        let sql = format!("DELETE FROM matrix_sdk.{table} WHERE account_id = {id}");
        let deleted = client.execute(&sql, &[]).await.unwrap();
        // A closed store has no handle's row, and an operator has set no row aside.
        let may_be_empty = ["account_handles", "quarantined_rows"].contains(&table.as_str());
        assert!(deleted > 0 || may_be_empty, "{table}");
    }
    let sql = format!("DELETE FROM matrix_sdk.accounts WHERE id = {id}");
    assert_eq!(client.execute(&sql, &[]).await.unwrap(), 1);
}

#[tokio::test]
async fn two_accounts_with_the_same_rows_are_independent() {
    for [ours, theirs] in PAIRS {
        let database = testing::database().unwrap();
        let (url, fixture) = (database.url(), Fixture::new().await);
        let (ours, theirs) = (ours.open(&url, "ours").await, theirs.open(&url, "theirs").await);
        fixture.fill(&ours).await;
        assert_empty(&theirs, &fixture).await;
        fixture.fill(&theirs).await;
        assert_complete(&ours, &fixture).await;

        // Changes, marks, resets and removals affect one account only.
        let newer = Changes { next_batch_token: Some("newer".to_owned()), ..Default::default() };
        ours.save_changes(newer).await.unwrap();
        ours.reset_backup_state().await.unwrap();
        ours.set_custom_value(CUSTOM_KEY, b"ours".to_vec()).await.unwrap();
        assert_complete(&theirs, &fixture).await;
        assert_eq!(backed_up(&ours).await, 0);
        assert_eq!(backed_up(&theirs).await, 1);
        assert_ne!(theirs.next_batch_token().await.unwrap().unwrap(), "newer");
        assert_ne!(theirs.get_custom_value(CUSTOM_KEY).await.unwrap().unwrap(), b"ours");

        remove_all(&ours, &fixture).await;
        assert_complete(&theirs, &fixture).await;
    }
}

async fn backed_up(store: &PostgresCryptoStore) -> usize {
    store.inbound_group_session_counts(Some(BACKUP_VERSION)).await.unwrap().backed_up
}

/// Removes all rows that the trait can remove.
async fn remove_all(store: &PostgresCryptoStore, fixture: &Fixture) {
    let deleted = vec![DeviceData::from_account(&fixture.account), fixture.other_device.clone()];
    let changes = Changes {
        devices: DeviceChanges { deleted, ..Default::default() },
        rooms_pending_key_bundle: [(room().to_owned(), None)].into(),
        ..Default::default()
    };
    store.save_changes(changes).await.unwrap();
    store.remove_custom_value(CUSTOM_KEY).await.unwrap();
    store.delete_secrets_from_inbox(&secret_name()).await.unwrap();
    store.delete_outgoing_secret_requests(&fixture.key_request.request_id).await.unwrap();
    store.delete_dehydrated_device_pickle_key().await.unwrap();
    assert!(store.get_user_devices(own_user()).await.unwrap().is_empty());
    assert!(store.get_all_rooms_pending_key_bundles().await.unwrap().is_empty());
    assert!(store.get_custom_value(CUSTOM_KEY).await.unwrap().is_none());
    assert!(store.get_secrets_from_inbox(&secret_name()).await.unwrap().is_empty());
    assert!(store.get_unsent_secret_requests().await.unwrap().is_empty());
    assert!(store.load_dehydrated_device_pickle_key().await.unwrap().is_none());
}

#[tokio::test]
async fn deleting_one_account_leaves_the_other() {
    for [ours, theirs] in PAIRS {
        let database = testing::database().unwrap();
        let (url, fixture) = (database.url(), Fixture::new().await);
        let (first, second) = (ours.open(&url, "ours").await, theirs.open(&url, "theirs").await);
        fixture.fill(&first).await;
        fixture.fill(&second).await;
        first.close().await.unwrap();

        let client = connect(&url).await;
        delete_account(&client, "ours").await;
        assert_complete(&second, &fixture).await;
        fixture.fill(&second).await;

        // An account with the same name starts empty, with a new cipher.
        let recreated = ours.open(&url, "ours").await;
        assert_empty(&recreated, &fixture).await;
        fixture.fill(&recreated).await;
        assert_complete(&recreated, &fixture).await;
        assert_complete(&second, &fixture).await;
    }
}

/// Deleting the account's row makes its other rows unreadable, because it contains their key.
#[tokio::test]
async fn without_its_row_an_encrypted_account_is_unreadable() {
    let database = testing::database().unwrap();
    let (url, fixture) = (database.url(), Fixture::new().await);
    let client = connect(&url).await;
    let store = Mode::Key.open(&url, "bot").await;
    fixture.fill(&store).await;
    store.close().await.unwrap();
    let deleted = "DELETE FROM matrix_sdk.accounts RETURNING id";
    let id = number(&client, deleted).await;

    // Even with the same name, secret and number, the new cipher cannot read them.
    let store = Mode::Key.open(&url, "bot").await;
    store.close().await.unwrap();
    let sql = format!(
        "UPDATE matrix_sdk.megolm_inbound_sessions SET account_id = (SELECT id FROM matrix_sdk.accounts)
         WHERE account_id = {id}"
    );
    assert_eq!(client.execute(&sql, &[]).await.unwrap(), 1);
    store.reopen().await.unwrap();
    let id = fixture.inbound.session_id();
    assert!(store.get_inbound_group_session(room(), id).await.unwrap().is_none());
    assert!(store.get_inbound_group_sessions().await.is_err());
}

/// Names that differ in case, white space, Unicode form or length.
#[tokio::test]
async fn account_names_of_any_form_are_kept_apart() {
    let long = "n".repeat(255);
    let names = ["bot", "Bot", "b ot", "böt", "bo\u{308}t", "'; DROP SCHEMA matrix_sdk; --", &long];
    let database = testing::database().unwrap();
    let url = database.url();
    for name in names {
        let store = Mode::Plain.open(&url, name).await;
        assert_eq!(store.get_custom_value("name").await.unwrap(), None, "{name:?}");
        store.set_custom_value("name", name.as_bytes().to_vec()).await.unwrap();
    }
    for name in names {
        let store = Mode::Plain.open(&url, name).await;
        assert_eq!(store.get_custom_value("name").await.unwrap().unwrap(), name.as_bytes());
    }
}
