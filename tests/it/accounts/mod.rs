//! Many accounts in one database, and databases, roles and sessions with other settings.

mod encodings;
mod first_openings;
mod independence;
mod names;
mod numbers;
mod roles;
mod session_settings;

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::PostgresCryptoStore;

/// Asserts that all operations of a store succeed.
async fn exercise(store: &PostgresCryptoStore) {
    let fixture = test_support::fixture::Fixture::new().await;
    for _ in 0..2 {
        fixture.fill(store).await;
        test_support::reads::assert_complete(store, &fixture).await;
    }
    store.reset_backup_state().await.unwrap();
    assert!(store.inbound_group_session_counts(None).await.unwrap().total >= 1);
    store.delete_dehydrated_device_pickle_key().await.unwrap();
    store.remove_custom_value(test_support::fixture::CUSTOM_KEY).await.unwrap();
    store.get_size().await.unwrap().unwrap();
    store.close().await.unwrap();
    store.reopen().await.unwrap();
    store.load_account().await.unwrap().unwrap();
}
