//! A failure drops deferred saves, and the save that would have stored them is refused.

use assert_matches::assert_matches;
use matrix_sdk_crypto::{
    olm::Account,
    store::{
        CryptoStore, CryptoStoreError,
        types::{Changes, PendingChanges},
    },
};
use matrix_sdk_postgres::{Error, PostgresCryptoStore};
use ruma::{device_id, user_id};
use test_support::{connect, values::received_session};

use super::fixture::{DeferredSession, session_in};

/// Makes reads of this table fail.
const FAIL_READS: &str = "ALTER TABLE matrix_sdk.custom_values RENAME TO away";
const RESTORE_READS: &str = "ALTER TABLE matrix_sdk.away RENAME TO custom_values";

/// Makes saves of a token fail permanently.
const FAIL_WRITES: &str = "ALTER TABLE matrix_sdk.sync_tokens
                            ADD CONSTRAINT none CHECK (data IS NULL) NOT VALID";
const RESTORE_WRITES: &str = "ALTER TABLE matrix_sdk.sync_tokens DROP CONSTRAINT none";

fn token(token: &str) -> Changes {
    Changes { next_batch_token: Some(token.to_owned()), ..Default::default() }
}

/// Asserts that the save that ends the sync is refused, that nothing of the sync was stored, and that the
/// store works after a reopening.
async fn assert_interrupted(fixture: &DeferredSession) {
    let store = &fixture.store;
    assert_matches!(store.save_changes(token("s1")).await, Err(Error::ReopenRequired));
    let account = PendingChanges { account: Some(fixture.own.deep_clone()) };
    assert_matches!(store.save_pending_changes(account).await, Err(Error::ReopenRequired));
    assert!(session_in(store, &fixture.session).await.is_none(), "it is still deferred");
    store.reopen().await.unwrap();
    store.load_account().await.unwrap().unwrap();
    assert!(session_in(store, &fixture.session).await.is_none(), "it was stored");
    assert_eq!(store.next_batch_token().await.unwrap(), None);
    fixture.save_token().await;
    assert!(fixture.stored().await.is_none(), "it was stored by the reopening");
    fixture.receive().await;
    fixture.save_token().await;
    assert!(fixture.stored().await.is_some());
}

async fn read_fails(fixture: &DeferredSession) {
    let client = connect(&fixture.database.url()).await;
    client.batch_execute(FAIL_READS).await.unwrap();
    assert_matches!(fixture.store.get_custom_value("key").await, Err(Error::Database(_)));
    client.batch_execute(RESTORE_READS).await.unwrap();
}

#[tokio::test]
async fn a_failed_statement_drops_deferred_saves() {
    for within in [false, true] {
        let fixture = DeferredSession::new().await;
        let client = connect(&fixture.database.url()).await;
        fixture.receive().await;
        let commits = fixture.store.commit_count().await.unwrap();
        client.batch_execute(FAIL_WRITES).await.unwrap();
        let failed = save(fixture.store.clone(), token("s1"), within).await;
        assert_matches!(failed, Err(Error::Database(_)), "within: {within}");
        client.batch_execute(RESTORE_WRITES).await.unwrap();
        assert_eq!(fixture.store.commit_count().await.unwrap(), commits);
        assert_interrupted(&fixture).await;
    }
}

#[tokio::test]
async fn a_failed_read_drops_deferred_saves() {
    let fixture = DeferredSession::new().await;
    fixture.receive().await;
    read_fails(&fixture).await;
    assert_interrupted(&fixture).await;
}

/// The save has begun, and must not be acknowledged without the deferred session that it includes. Its staging
/// waits for the lock of another session.
#[tokio::test]
async fn a_failure_while_the_syncs_own_save_is_staged_refuses_that_save() {
    for within in [false, true] {
        let fixture = DeferredSession::new().await;
        let third = Account::with_device_id(user_id!("@third:example.org"), device_id!("THIRD"));
        let [other, _] = received_session(&fixture.own, &third).await;
        let commits = fixture.store.commit_count().await.unwrap();
        fixture.receive().await;
        let inner = other.inner.clone();
        let in_use = inner.lock().await;
        let changes = Changes { sessions: vec![other], ..token("s1") };
        let save = tokio::spawn(save(fixture.store.clone(), changes, within));
        // On this single-threaded runtime the staging now waits for the session's lock only.
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        read_fails(&fixture).await;
        drop(in_use);
        let saved = save.await.unwrap();
        if within {
            // Another task's failed read does not fail the scope, which stores the deferred session.
            saved.unwrap();
            assert_matches!(fixture.try_save_token().await, Err(Error::ReopenRequired));
            assert!(fixture.is_stored().await);
            continue;
        }
        assert_matches!(saved, Err(Error::ReopenRequired));
        assert_eq!(fixture.store.commit_count().await.unwrap(), commits);
        assert_interrupted(&fixture).await;
    }
}

async fn save(store: PostgresCryptoStore, changes: Changes, within: bool) -> Result<(), Error> {
    if !within {
        return store.save_changes(changes).await;
    }
    let work = store.atomically(async { Ok(store.save_changes(changes).await?) });
    work.await.map_err(|error| match error {
        CryptoStoreError::Backend(error) => *error.downcast().unwrap(),
        error => panic!("{error:?}"),
    })
}
