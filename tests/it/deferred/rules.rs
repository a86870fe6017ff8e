//! Which saves are deferred, what reads see of them, and when they are stored or dropped.

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

use super::bench::{Bench, pickle, session_in};

#[tokio::test]
async fn a_session_that_was_received_is_read_at_once_and_stored_with_the_token() {
    let bench = Bench::new().await;
    // From now on it is known that there is none.
    assert!(session_in(&bench.store, &bench.session).await.is_none());
    let commits = bench.store.commit_count().await.unwrap();
    bench.receive().await;
    let read = session_in(&bench.store, &bench.session).await.unwrap();
    assert!(bench.stored().await.is_none());
    // A copy: what the SDK does with its own is not to be seen before it is saved.
    read.inner.lock().await.encrypt("hello").unwrap();
    let again = session_in(&bench.store, &bench.session).await.unwrap();
    let [used, again] =
        [read.pickle().await, again.pickle().await].map(|it| serde_json::to_value(it).unwrap());
    assert_ne!(used["pickle"], again["pickle"]);
    assert_eq!(bench.trust().await, LocalTrust::Ignored);
    assert_eq!(bench.store.commit_count().await.unwrap(), commits);

    bench.save_token().await;
    assert_eq!(bench.store.commit_count().await.unwrap(), commits + 1);
    assert!(bench.stored().await.is_some());
    assert_eq!(bench.trust().await, LocalTrust::Ignored);
}

#[tokio::test]
async fn it_is_stored_with_the_account_and_with_a_save_that_contains_it() {
    let bench = Bench::new().await;
    bench.receive().await;
    let account = Some(bench.own.deep_clone());
    bench.store.save_pending_changes(PendingChanges { account }).await.unwrap();
    assert!(bench.is_stored().await);

    let bench = Bench::new().await;
    bench.receive().await;
    bench.encrypt().await;
    bench.save_session().await;
    assert!(bench.is_stored().await);
    // It is not what was deferred that goes with the token.
    bench.save_token().await;
    assert!(bench.is_stored().await);
}

#[tokio::test]
async fn what_was_encrypted_is_stored_at_once_and_what_was_not_is_deferred() {
    let bench = Bench::new().await;
    bench.encrypt().await;
    bench.save_session().await;
    assert!(bench.is_stored().await, "never seen before");
    let commits = bench.store.commit_count().await.unwrap();
    bench.save_session().await;
    assert_eq!(bench.store.commit_count().await.unwrap(), commits, "nothing was encrypted");
    // What was seen is remembered while the store is closed.
    bench.store.close().await.unwrap();
    bench.store.reopen().await.unwrap();
    bench.save_session().await;
    assert_eq!(bench.store.commit_count().await.unwrap(), commits, "nothing was encrypted");
    bench.encrypt().await;
    bench.save_session().await;
    assert!(bench.is_stored().await, "it was encrypted with");
}

/// A session of our own making waits for others to store it.
#[tokio::test]
async fn a_session_that_was_made_for_sending_is_stored_at_once() {
    let bench = Bench::new().await;
    let mut other = Account::with_device_id(user_id!("@third:example.org"), device_id!("THIRD"));
    let session = olm_session(&bench.own, &mut other);
    let changes = Changes { sessions: vec![session.clone()], ..Default::default() };
    bench.store.save_changes(changes).await.unwrap();
    let bench = Bench { session, ..bench };
    assert!(bench.is_stored().await);
}

#[tokio::test]
async fn what_is_deferred_is_dropped_when_the_store_is_closed_reopened_or_fails() {
    let bench = Bench::new().await;
    let is_dropped = async || {
        bench.save_token().await;
        bench.stored().await.is_none() && bench.trust().await == LocalTrust::Unset
    };
    bench.receive().await;
    bench.store.close().await.unwrap();
    bench.store.reopen().await.unwrap();
    assert!(is_dropped().await, "closed");

    bench.receive().await;
    bench.store.reopen().await.unwrap();
    assert!(is_dropped().await, "reopened");

    bench.receive().await;
    let failed = bench.store.atomically(async {
        bench.store.set_custom_value("key", vec![1]).await?;
        Err::<(), _>(CryptoStoreError::AccountUnset)
    });
    assert!(failed.await.is_err());
    assert!(session_in(&bench.store, &bench.session).await.is_none(), "failed");
    bench.store.reopen().await.unwrap();
    assert!(is_dropped().await, "failed");

    bench.receive().await;
    let other = Mode::Key.open(&bench.database.url(), "bot").await;
    let token = Changes { next_batch_token: Some("s2".to_owned()), ..Default::default() };
    assert_matches!(bench.store.save_changes(token).await, Err(Error::Superseded { .. }));
    other.load_account().await.unwrap();
    assert!(session_in(&other, &bench.session).await.is_none(), "superseded");
}

#[tokio::test]
async fn an_account_loaded_while_something_is_deferred_ends_writes() {
    let bench = Bench::new().await;
    bench.receive().await;
    assert!(bench.store.load_account().await.unwrap().is_some());
    let write = bench.store.set_custom_value("key", vec![1]).await;
    assert_matches!(write, Err(Error::ReopenRequired));
    assert!(session_in(&bench.store, &bench.session).await.is_none());
    bench.store.reopen().await.unwrap();
    bench.store.load_account().await.unwrap();
    bench.store.load_identity().await.unwrap();
    bench.save_token().await;
    assert!(bench.stored().await.is_none());
}

/// Whoever trusts a device meanwhile must not lose that to the older row.
#[tokio::test]
async fn a_deferred_device_is_dropped_when_the_device_is_saved_or_deleted() {
    let bench = Bench::new().await;
    let (user_id, device_id) = (bench.other.user_id(), bench.other.device_id());
    bench.receive().await;
    let devices =
        DeviceChanges { changed: vec![bench.other_as(LocalTrust::Verified)], ..Default::default() };
    bench.store.save_changes(Changes { devices, ..Default::default() }).await.unwrap();
    bench.save_token().await;
    assert_eq!(bench.trust().await, LocalTrust::Verified);

    bench.receive().await;
    let devices = DeviceChanges { deleted: vec![bench.other.clone()], ..Default::default() };
    bench.store.save_changes(Changes { devices, ..Default::default() }).await.unwrap();
    assert!(bench.store.get_device(user_id, device_id).await.unwrap().is_none());
    bench.save_token().await;
    assert!(bench.store.get_user_devices(user_id).await.unwrap().is_empty());
}

#[tokio::test]
async fn an_answered_key_request_is_gone_for_reads_and_deleted_with_the_token() {
    let bench = Bench::new().await;
    let store = &bench.store;
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
    // It was not answered: the sync is torn.
    store.close().await.unwrap();
    store.reopen().await.unwrap();
    assert_eq!(found().await, [true; 3]);
    // Asked for again, it stays.
    store.delete_outgoing_secret_requests(&request.request_id).await.unwrap();
    save().await;
    bench.save_token().await;
    assert_eq!(found().await, [true; 3]);

    store.delete_outgoing_secret_requests(&request.request_id).await.unwrap();
    bench.save_token().await;
    store.close().await.unwrap();
    store.reopen().await.unwrap();
    assert_eq!(found().await, [false; 3]);
}

/// The whole is committed or not, so nothing needs to be deferred. What was before goes with the token.
#[tokio::test]
async fn within_atomically_nothing_is_deferred_and_a_token_takes_what_was() {
    let bench = Bench::new().await;
    bench
        .store
        .atomically(async {
            bench.receive().await;
            Ok::<_, CryptoStoreError>(())
        })
        .await
        .unwrap();
    assert!(bench.is_stored().await);

    let bench = Bench::new().await;
    bench.receive().await;
    let work = bench.store.atomically(async {
        bench.save_token().await;
        assert!(session_in(&bench.store, &bench.session).await.is_some());
        // Newer than what was deferred before, and seen within.
        bench.encrypt().await;
        bench.save_session().await;
        let within = session_in(&bench.store, &bench.session).await.unwrap();
        let pickle =
            |session: Session| async move { serde_json::to_value(session.pickle().await).unwrap() };
        assert_eq!(pickle(within).await, pickle(bench.session.clone()).await);
        Ok::<_, CryptoStoreError>(())
    });
    work.await.unwrap();
    assert!(bench.is_stored().await);
}

/// A chain is determined: a superseded owner that encrypts with what it read earlier comes to the very
/// ratchet that the new owner has stored since, and may have read again.
#[tokio::test]
async fn a_superseded_owner_does_not_take_anothers_encryption_for_none() {
    let bench = Bench::new().await;
    bench.encrypt().await;
    bench.save_session().await;
    let open = async || {
        let config = Mode::Key.config(&bench.database.url(), "bot");
        // Only its writes tell an owner that it was superseded.
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
    let stale = session_in(&former, &bench.session).await.unwrap();
    let newest = open().await;
    let session = session_in(&newest, &bench.session).await.unwrap();
    session.inner.lock().await.encrypt("the newest's").unwrap();
    save(&newest, &session).await.unwrap();

    session_in(&former, &bench.session).await.unwrap();
    stale.inner.lock().await.encrypt("with the same index").unwrap();
    assert_eq!(pickle(&stale).await["pickle"], pickle(&session).await["pickle"]);
    assert_matches!(save(&former, &stale).await, Err(Error::Superseded { .. }));
}
