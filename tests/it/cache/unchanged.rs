//! Saves of what is stored already: found by comparing with the cached rows, and not written.

use assert_matches::assert_matches;
use matrix_sdk_crypto::{
    CryptoStoreError,
    olm::Account,
    store::{CryptoStore, types::PendingChanges},
    vodozemac::{self, olm::OlmMessage},
};
use matrix_sdk_postgres::PostgresCryptoStore;
use ruma::device_id;
use test_support::fixture::{Fixture, other_user, own_user};

use super::Environment;

#[tokio::test]
async fn unchanged_rows_are_not_written_again() {
    let environment = Environment::new();
    let fixture = Fixture::new().await;
    let store = environment.open(environment.config.clone()).await;
    fixture.fill(&store).await;
    let users = [(own_user(), false), (other_user(), true)];
    let save = async |store: &PostgresCryptoStore, dirty: bool| {
        let account = Some(fixture.account.deep_clone());
        store.save_pending_changes(PendingChanges { account }).await.unwrap();
        store.save_tracked_users(&[users[0], (users[1].0, dirty)]).await.unwrap();
    };
    store.load_tracked_users().await.unwrap();
    save(&store, true).await;
    // Each save checks the ownership, and commits nothing.
    let commits = store.commit_count().await.unwrap();
    assert_eq!(environment.round_trips(save(&store, true)).await.0, 2);
    assert_eq!(store.commit_count().await.unwrap(), commits);
    assert_eq!(environment.round_trips(save(&store, false)).await.0, 2);
    assert_eq!(store.commit_count().await.unwrap(), commits + 1, "one user changed");
    store.close().await.unwrap();

    // A machine loads both when it starts.
    let store = environment.open(environment.config.clone()).await;
    store.load_account().await.unwrap().unwrap();
    assert_eq!(store.load_tracked_users().await.unwrap().len(), 2);
    let commits = store.commit_count().await.unwrap();
    assert_eq!(environment.round_trips(save(&store, false)).await.0, 2);
    assert_eq!(store.commit_count().await.unwrap(), commits);
    assert_eq!(environment.round_trips(save(&store, true)).await.0, 2);
    assert_eq!(store.commit_count().await.unwrap(), commits + 1);

    // For a user listed twice the last entry counts, even if it equals the stored one.
    store.save_tracked_users(&[(users[1].0, false), (users[1].0, true)]).await.unwrap();
    assert!(store.load_tracked_users().await.unwrap().iter().any(|user| user.dirty));

    // In a group commit, the second save is compared with the first one.
    let both = store.atomically(async {
        store.save_tracked_users(&[(users[1].0, false)]).await?;
        store.save_tracked_users(&[(users[1].0, true)]).await?;
        Ok::<_, CryptoStoreError>(())
    });
    both.await.unwrap();
    store.close().await.unwrap();
    let store = environment.open(environment.config.clone()).await;
    let tracked = store.load_tracked_users().await.unwrap();
    assert!(tracked.iter().any(|user| user.user_id == users[1].0 && user.dirty));
}

/// A one-time key that was used changes nothing that the account shows, so only its pickle tells that it must be
/// saved.
#[tokio::test]
async fn an_account_that_differs_in_its_private_keys_alone_is_saved() {
    let environment = Environment::new();
    let store = environment.open(environment.config.clone()).await;
    let mut bot = Account::with_device_id(own_user(), device_id!("DEVICE"));
    bot.generate_one_time_keys(5);
    let one_time_key = *bot.one_time_keys().values().next().unwrap();
    bot.mark_keys_as_published();
    let save = async |account: &Account| {
        let account = Some(account.deep_clone());
        store.save_pending_changes(PendingChanges { account }).await.unwrap();
    };
    let shown = |account: &Account| {
        let keys = account.keys_for_upload();
        let keys = serde_json::to_value((keys.1, keys.2)).unwrap();
        (account.uploaded_key_count(), account.shared(), keys)
    };
    let pickle = |account: &Account| serde_json::to_value(account.pickle()).unwrap();
    save(&bot).await;
    let (shown_before, pickle_before) = (shown(&bot), pickle(&bot));

    let alice = vodozemac::olm::Account::new();
    let config = vodozemac::olm::SessionConfig::version_1();
    let bots_key = bot.identity_keys().curve25519;
    let mut session = alice.create_outbound_session(config, bots_key, one_time_key).unwrap();
    let message =
        assert_matches!(session.encrypt("hello").unwrap(), OlmMessage::PreKey(message) => message);
    let device_keys = bot.device_keys();
    bot.create_inbound_session(alice.curve25519_key(), device_keys, &message).unwrap();
    assert_eq!(shown(&bot), shown_before);
    assert_ne!(pickle(&bot), pickle_before);

    let commits = store.commit_count().await.unwrap();
    save(&bot).await;
    assert_eq!(store.commit_count().await.unwrap(), commits + 1);
    save(&bot).await;
    assert_eq!(store.commit_count().await.unwrap(), commits + 1, "it has not changed");
    store.close().await.unwrap();
    let store = environment.open(environment.config.clone()).await;
    let stored = store.load_account().await.unwrap().unwrap();
    assert_eq!(pickle(&stored), pickle(&bot));
}
