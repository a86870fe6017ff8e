//! A failure drops what is deferred, and nothing is acknowledged any more that was to take it along.

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

use super::bench::{Bench, session_in};

/// Who reads it is told that the operation failed.
const BREAK_READS: &str = "ALTER TABLE matrix_sdk.custom_values RENAME TO away";
const MEND_READS: &str = "ALTER TABLE matrix_sdk.away RENAME TO custom_values";

/// Statements of a save that fail for good.
const BREAK_WRITES: &str = "ALTER TABLE matrix_sdk.sync_tokens
                            ADD CONSTRAINT none CHECK (data IS NULL) NOT VALID";
const MEND_WRITES: &str = "ALTER TABLE matrix_sdk.sync_tokens DROP CONSTRAINT none";

fn token(token: &str) -> Changes {
    Changes { next_batch_token: Some(token.to_owned()), ..Default::default() }
}

/// The save that ends the sync is refused, also after the next opening nothing of the sync is there,
/// and that opening goes on.
async fn is_torn(bench: &Bench) {
    let store = &bench.store;
    assert_matches!(store.save_changes(token("s1")).await, Err(Error::ReopenRequired));
    let account = PendingChanges { account: Some(bench.own.deep_clone()) };
    assert_matches!(store.save_pending_changes(account).await, Err(Error::ReopenRequired));
    assert!(session_in(store, &bench.session).await.is_none(), "it is deferred still");
    store.reopen().await.unwrap();
    store.load_account().await.unwrap().unwrap();
    assert!(session_in(store, &bench.session).await.is_none(), "it was stored");
    assert_eq!(store.next_batch_token().await.unwrap(), None);
    bench.save_token().await;
    assert!(bench.stored().await.is_none(), "it was kept over the opening");
    bench.receive().await;
    bench.save_token().await;
    assert!(bench.stored().await.is_some());
}

async fn read_fails(bench: &Bench) {
    let client = connect(&bench.database.url()).await;
    client.batch_execute(BREAK_READS).await.unwrap();
    assert_matches!(bench.store.get_custom_value("key").await, Err(Error::Database(_)));
    client.batch_execute(MEND_READS).await.unwrap();
}

#[tokio::test]
async fn a_statement_that_fails_drops_what_is_deferred() {
    for within in [false, true] {
        let bench = Bench::new().await;
        let client = connect(&bench.database.url()).await;
        bench.receive().await;
        let commits = bench.store.commit_count().await.unwrap();
        client.batch_execute(BREAK_WRITES).await.unwrap();
        let failed = save(bench.store.clone(), token("s1"), within).await;
        assert_matches!(failed, Err(Error::Database(_)), "within: {within}");
        client.batch_execute(MEND_WRITES).await.unwrap();
        assert_eq!(bench.store.commit_count().await.unwrap(), commits);
        is_torn(&bench).await;
    }
}

#[tokio::test]
async fn a_read_that_fails_drops_what_is_deferred() {
    let bench = Bench::new().await;
    bench.receive().await;
    read_fails(&bench).await;
    is_torn(&bench).await;
}

/// The save has begun, and is not to be acknowledged without the session that it would have taken along.
/// Its staging waits for another session, which somebody is using.
#[tokio::test]
async fn a_failure_while_the_syncs_own_save_is_staged_refuses_that_save() {
    for within in [false, true] {
        let bench = Bench::new().await;
        let third = Account::with_device_id(user_id!("@third:example.org"), device_id!("THIRD"));
        let [other, _] = received_session(&bench.own, &third).await;
        let commits = bench.store.commit_count().await.unwrap();
        bench.receive().await;
        let inner = other.inner.clone();
        let in_use = inner.lock().await;
        let changes = Changes { sessions: vec![other], ..token("s1") };
        let save = tokio::spawn(save(bench.store.clone(), changes, within));
        // On this runtime's one thread the staging comes to where it waits for nothing but the session.
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        read_fails(&bench).await;
        drop(in_use);
        let saved = save.await.unwrap();
        if within {
            // Another task's read breaks no scope, which takes along what it would have.
            saved.unwrap();
            assert_matches!(bench.try_save_token().await, Err(Error::ReopenRequired));
            assert!(bench.is_stored().await);
            continue;
        }
        assert_matches!(saved, Err(Error::ReopenRequired));
        assert_eq!(bench.store.commit_count().await.unwrap(), commits);
        is_torn(&bench).await;
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
