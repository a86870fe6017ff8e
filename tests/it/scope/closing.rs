//! `close()` during and within `atomically`.

use std::pin::pin;

use assert_matches::assert_matches;
use futures_util::{future::join, poll};
use matrix_sdk_crypto::{CryptoStoreError, store::CryptoStore};
use matrix_sdk_postgres::{Error, testing};
use ruma::user_id;
use tokio::task::yield_now;

use super::{config, has, inner, open, set};

/// It waits, while the reads and saves of the scope and of the tasks it spawns continue.
#[tokio::test]
async fn closing_waits_for_a_running_scope() {
    let database = testing::database().unwrap();
    for pool_size in [1, 2, 4] {
        for saves_first in [true, false] {
            let store = open(&config(&database.url(), pool_size)).await;
            let scope = store.atomically(async {
                if saves_first {
                    set(&store, "first").await?;
                    assert!(has(&store, "first").await);
                }
                // The other branch starts closing.
                for _ in 0..10 {
                    yield_now().await;
                }
                set(&store, "second").await?;
                assert!(has(&store, "second").await);
                let other = store.clone();
                let devices = tokio::spawn(async move {
                    other.get_user_devices(user_id!("@bob:example.org")).await
                });
                assert!(devices.await.unwrap()?.is_empty());
                set(&store, "third").await
            });
            let (scope, closed) = join(scope, store.close()).await;
            scope.unwrap();
            closed.unwrap();
            assert_matches!(store.get_custom_value("key").await, Err(Error::StoreClosed));
            store.reopen().await.unwrap();
            assert!(has(&store, "second").await && has(&store, "third").await);
            store.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn closing_refuses_new_scopes_and_is_finished_after_its_future_is_dropped() {
    let database = testing::database().unwrap();
    let store = open(&config(&database.url(), 2)).await;
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let mut scope = pin!(store.atomically(async {
        set(&store, "within").await?;
        ended.await.unwrap();
        Ok::<_, CryptoStoreError>(())
    }));
    assert!(poll!(&mut scope).is_pending());
    {
        let mut closing = pin!(store.close());
        assert!(poll!(&mut closing).is_pending());
    }
    let (again, later) = (store.clone(), store.clone());
    let mut closing = pin!(again.close());
    assert!(poll!(&mut closing).is_pending());
    // On this single-threaded runtime the first one now waits for the scope.
    for _ in 0..100 {
        yield_now().await;
    }
    let mut late = pin!(later.atomically(set(&later, "late")));
    assert!(poll!(&mut late).is_pending());
    end.send(()).unwrap();
    let (scope, closed) = join(scope, closing).await;
    scope.unwrap();
    closed.unwrap();
    assert_matches!(inner(late.await.unwrap_err()), Error::StoreClosed);
}

#[tokio::test]
async fn a_store_cannot_be_closed_within_its_own_scope() {
    let database = testing::database().unwrap();
    let store = open(&config(&database.url(), 2)).await;
    let scope = store.atomically(async {
        set(&store, "key").await?;
        assert_matches!(store.close().await, Err(Error::CloseInAtomically));
        set(&store, "another").await
    });
    scope.await.unwrap();
    assert!(has(&store, "another").await);
}
