//! Which saves are deferred, how reads see them, and when they are stored or dropped.

use assert_matches::assert_matches;
use matrix_sdk_crypto::{
    LocalTrust,
    olm::{Account, Session},
    store::{
        CryptoStore, CryptoStoreError,
        types::{Changes, DeviceChanges, PendingChanges},
    },
};
use matrix_sdk_postgres::{Error, PostgresCryptoStore};
use ruma::{device_id, events::secret::request::SecretName, user_id};
use test_support::{Mode, fixture::key_request, values::olm_session, without_heartbeats};

use super::fixture::{DeferredSession, pickle, session_in};

#[tokio::test]
async fn a_session_that_was_received_is_read_at_once_and_stored_with_the_token() {
    let fixture = DeferredSession::new().await;
    // Caches that there is no session.
    assert!(session_in(&fixture.store, &fixture.session).await.is_none());
    let commits = fixture.store.commit_count().await.unwrap();
    fixture.receive().await;
    let read = session_in(&fixture.store, &fixture.session).await.unwrap();
    assert!(fixture.stored().await.is_none());
    // Reads return copies: a change by the SDK is not visible before it is saved.
    read.inner.lock().await.encrypt("hello").unwrap();
    let again = session_in(&fixture.store, &fixture.session).await.unwrap();
    let [used, again] =
        [read.pickle().await, again.pickle().await].map(|it| serde_json::to_value(it).unwrap());
    assert_ne!(used["pickle"], again["pickle"]);
    assert_eq!(fixture.trust().await, LocalTrust::Ignored);
    assert_eq!(fixture.store.commit_count().await.unwrap(), commits);

    fixture.save_token().await;
    assert_eq!(fixture.store.commit_count().await.unwrap(), commits + 1);
    assert!(fixture.stored().await.is_some());
    assert_eq!(fixture.trust().await, LocalTrust::Ignored);
}

#[tokio::test]
async fn a_deferred_session_is_stored_with_the_account_and_with_a_save_that_contains_it() {
    let fixture = DeferredSession::new().await;
    fixture.receive().await;
    let account = Some(fixture.own.deep_clone());
    fixture.store.save_pending_changes(PendingChanges { account }).await.unwrap();
    assert!(fixture.is_stored().await);

    let fixture = DeferredSession::new().await;
    fixture.receive().await;
    fixture.encrypt().await;
    fixture.save_session().await;
    assert!(fixture.is_stored().await);
    // The token must not store the older deferred form.
    fixture.save_token().await;
    assert!(fixture.is_stored().await);
}

#[tokio::test]
async fn a_session_that_has_encrypted_is_stored_at_once_and_others_are_deferred() {
    let fixture = DeferredSession::new().await;
    fixture.encrypt().await;
    fixture.save_session().await;
    assert!(fixture.is_stored().await, "not stored, although it was never read or saved before");
    let commits = fixture.store.commit_count().await.unwrap();
    fixture.save_session().await;
    assert_eq!(fixture.store.commit_count().await.unwrap(), commits, "nothing was encrypted");
    // The last seen form is kept while the store is closed.
    fixture.store.close().await.unwrap();
    fixture.store.reopen().await.unwrap();
    fixture.save_session().await;
    assert_eq!(fixture.store.commit_count().await.unwrap(), commits, "nothing was encrypted");
    fixture.encrypt().await;
    fixture.save_session().await;
    assert!(fixture.is_stored().await, "not stored, although it has encrypted");
}

/// A session that the own device has created is not created again by a replayed sync.
#[tokio::test]
async fn a_session_that_was_made_for_sending_is_stored_at_once() {
    let fixture = DeferredSession::new().await;
    let mut other = Account::with_device_id(user_id!("@third:example.org"), device_id!("THIRD"));
    let session = olm_session(&fixture.own, &mut other);
    let changes = Changes { sessions: vec![session.clone()], ..Default::default() };
    fixture.store.save_changes(changes).await.unwrap();
    let fixture = DeferredSession { session, ..fixture };
    assert!(fixture.is_stored().await);
}

#[tokio::test]
async fn deferred_saves_are_dropped_when_the_store_is_closed_reopened_or_fails() {
    let fixture = DeferredSession::new().await;
    let is_dropped = async || {
        fixture.save_token().await;
        fixture.stored().await.is_none() && fixture.trust().await == LocalTrust::Unset
    };
    fixture.receive().await;
    fixture.store.close().await.unwrap();
    fixture.store.reopen().await.unwrap();
    assert!(is_dropped().await, "closed");

    fixture.receive().await;
    fixture.store.reopen().await.unwrap();
    assert!(is_dropped().await, "reopened");

    fixture.receive().await;
    let failed = fixture.store.atomically(async {
        fixture.store.set_custom_value("key", vec![1]).await?;
        Err::<(), _>(CryptoStoreError::AccountUnset)
    });
    assert!(failed.await.is_err());
    assert!(session_in(&fixture.store, &fixture.session).await.is_none(), "failed");
    fixture.store.reopen().await.unwrap();
    assert!(is_dropped().await, "failed");

    fixture.receive().await;
    let other = Mode::Key.open(&fixture.database.url(), "bot").await;
    let token = Changes { next_batch_token: Some("s2".to_owned()), ..Default::default() };
    assert_matches!(fixture.store.save_changes(token).await, Err(Error::Superseded { .. }));
    other.load_account().await.unwrap();
    assert!(session_in(&other, &fixture.session).await.is_none(), "superseded");
}

#[tokio::test]
async fn loading_the_account_with_deferred_saves_ends_writes() {
    let fixture = DeferredSession::new().await;
    fixture.receive().await;
    assert!(fixture.store.load_account().await.unwrap().is_some());
    let write = fixture.store.set_custom_value("key", vec![1]).await;
    assert_matches!(write, Err(Error::ReopenRequired));
    assert!(session_in(&fixture.store, &fixture.session).await.is_none());
    fixture.store.reopen().await.unwrap();
    fixture.store.load_account().await.unwrap();
    fixture.store.load_identity().await.unwrap();
    fixture.save_token().await;
    assert!(fixture.stored().await.is_none());
}

/// A trust set in the meantime must not be overwritten by the older, deferred row.
#[tokio::test]
async fn a_deferred_device_is_dropped_when_the_device_is_saved_or_deleted() {
    let fixture = DeferredSession::new().await;
    let (user_id, device_id) = (fixture.other.user_id(), fixture.other.device_id());
    fixture.receive().await;
    let devices = DeviceChanges {
        changed: vec![fixture.other_with_trust(LocalTrust::Verified)],
        ..Default::default()
    };
    fixture.store.save_changes(Changes { devices, ..Default::default() }).await.unwrap();
    fixture.save_token().await;
    assert_eq!(fixture.trust().await, LocalTrust::Verified);

    fixture.receive().await;
    let devices = DeviceChanges { deleted: vec![fixture.other.clone()], ..Default::default() };
    fixture.store.save_changes(Changes { devices, ..Default::default() }).await.unwrap();
    assert!(fixture.store.get_device(user_id, device_id).await.unwrap().is_none());
    fixture.save_token().await;
    assert!(fixture.store.get_user_devices(user_id).await.unwrap().is_empty());
}

#[tokio::test]
async fn an_answered_key_request_is_gone_for_reads_and_deleted_with_the_token() {
    let fixture = DeferredSession::new().await;
    let store = &fixture.store;
    let request = key_request("request", SecretName::RecoveryKey.into(), false);
    let save = async || {
        let key_requests = vec![request.clone()];
        store.save_changes(Changes { key_requests, ..Default::default() }).await.unwrap();
    };
    let found = async || {
        let by_id = store.get_outgoing_secret_requests(&request.request_id).await.unwrap();
        let by_info = store.get_secret_request_by_info(&request.info).await.unwrap();
        let unsent = store.get_unsent_secret_requests().await.unwrap();
        [by_id.is_some(), by_info.is_some(), !unsent.is_empty()]
    };
    save().await;
    store.delete_outgoing_secret_requests(&request.request_id).await.unwrap();
    assert_eq!(found().await, [false; 3]);
    // The deletion was not stored: the sync was interrupted.
    store.close().await.unwrap();
    store.reopen().await.unwrap();
    assert_eq!(found().await, [true; 3]);
    // A new request for the same secret stays.
    store.delete_outgoing_secret_requests(&request.request_id).await.unwrap();
    save().await;
    fixture.save_token().await;
    assert_eq!(found().await, [true; 3]);

    store.delete_outgoing_secret_requests(&request.request_id).await.unwrap();
    fixture.save_token().await;
    store.close().await.unwrap();
    store.reopen().await.unwrap();
    assert_eq!(found().await, [false; 3]);
}

/// A scope is committed as a whole, so nothing is deferred. Earlier deferred saves are stored with its token.
#[tokio::test]
async fn within_atomically_nothing_is_deferred_and_a_token_stores_earlier_deferred_saves() {
    let fixture = DeferredSession::new().await;
    fixture
        .store
        .atomically(async {
            fixture.receive().await;
            Ok::<_, CryptoStoreError>(())
        })
        .await
        .unwrap();
    assert!(fixture.is_stored().await);

    let fixture = DeferredSession::new().await;
    fixture.receive().await;
    let work = fixture.store.atomically(async {
        fixture.save_token().await;
        assert!(session_in(&fixture.store, &fixture.session).await.is_some());
        // Newer than the deferred row, and visible within the scope.
        fixture.encrypt().await;
        fixture.save_session().await;
        let within = session_in(&fixture.store, &fixture.session).await.unwrap();
        let pickle =
            |session: Session| async move { serde_json::to_value(session.pickle().await).unwrap() };
        assert_eq!(pickle(within).await, pickle(fixture.session.clone()).await);
        Ok::<_, CryptoStoreError>(())
    });
    work.await.unwrap();
    assert!(fixture.is_stored().await);
}

/// Ratchets are deterministic: a superseded owner that encrypts with the form it read earlier gets the same
/// ratchet that the new owner has stored since, which it may have read again.
#[tokio::test]
async fn a_superseded_owner_does_not_defer_a_session_that_another_owner_has_advanced() {
    let fixture = DeferredSession::new().await;
    fixture.encrypt().await;
    fixture.save_session().await;
    let open = async || {
        let config = Mode::Key.config(&fixture.database.url(), "bot");
        // Without heartbeats only writes detect that the owner was superseded.
        let config = config.access(without_heartbeats());
        let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
        store.load_account().await.unwrap().unwrap();
        store
    };
    let save = async |store: &PostgresCryptoStore, session: &Session| {
        let sessions = vec![session.clone()];
        store.save_changes(Changes { sessions, ..Default::default() }).await
    };
    let former = open().await;
    let stale = session_in(&former, &fixture.session).await.unwrap();
    let newest = open().await;
    let session = session_in(&newest, &fixture.session).await.unwrap();
    session.inner.lock().await.encrypt("the newest's").unwrap();
    save(&newest, &session).await.unwrap();

    session_in(&former, &fixture.session).await.unwrap();
    stale.inner.lock().await.encrypt("with the same index").unwrap();
    assert_eq!(pickle(&stale).await["pickle"], pickle(&session).await["pickle"]);
    assert_matches!(save(&former, &stale).await, Err(Error::Superseded { .. }));
}
