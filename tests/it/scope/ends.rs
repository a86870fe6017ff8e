//! Rules 25 and 26: a scope's end releases its lane and connection.

use std::{pin::pin, time::Duration};

use assert_matches::assert_matches;
use futures_util::poll;
use matrix_sdk_crypto::{CryptoStoreError, store::CryptoStore};
use matrix_sdk_postgres::{Error, Timeouts, testing};
use test_support::{connect, number};
use tokio::{sync::oneshot, time::timeout};
use tokio_postgres::types::Type;

use super::{config, has, inner, open, set, until_locked};

/// Longer than any operation takes, unless it hangs.
const HANG_TIMEOUT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_handle_that_outlives_its_scope_is_refused_and_holds_nothing() {
    let database = testing::database().unwrap();
    let url = database.url();
    let client = connect(&url).await;
    client.batch_execute("CREATE TABLE outbox (body text)").await.unwrap();
    for (pool_size, saves) in [(1, true), (4, true), (1, false)] {
        let store = open(&config(&url, pool_size)).await;
        let handle = store.atomically(async {
            if saves {
                set(&store, "key").await?;
            }
            Ok::<_, CryptoStoreError>(store.transaction().await?)
        });
        let handle = handle.await.unwrap();
        let insert = "INSERT INTO outbox VALUES ($1)";
        let insert = handle.query(insert, &[(&"row", Type::TEXT)]);
        let refused = timeout(HANG_TIMEOUT, insert).await.expect("the statement hangs");
        assert_matches!(refused, Err(Error::NotInAtomically));
        let saved = timeout(HANG_TIMEOUT, set(&store, "later")).await;
        saved.expect("the account is not free").unwrap();
        assert_eq!(number(&client, "SELECT count(*) FROM outbox").await, 0);
        drop(handle);
    }
}

/// As in a `select!` loop, where another branch saves.
#[tokio::test]
async fn a_scope_that_is_not_polled_any_more_does_not_block_the_account() {
    let database = testing::database().unwrap();
    let limit = Duration::from_millis(200);
    for pool_size in [1, 4] {
        let store = open(
            &config(&database.url(), pool_size)
                .timeouts(Timeouts { atomically: limit, ..Default::default() }),
        )
        .await;
        set(&store, "before").await.unwrap();
        let (saved, mut is_saved) = oneshot::channel();
        let mut scope = pin!(store.atomically(async {
            set(&store, "within").await?;
            assert!(has(&store, "within").await);
            saved.send(()).unwrap();
            std::future::pending::<Result<(), CryptoStoreError>>().await
        }));
        while is_saved.try_recv().is_err() {
            assert!(poll!(&mut scope).is_pending());
            tokio::task::yield_now().await;
        }
        let other = timeout(HANG_TIMEOUT, set(&store, "other")).await.expect("the lane is blocked");
        // The scope's saves were rolled back, so the SDK's memory is ahead of the database.
        assert_matches!(inner(other.unwrap_err()), Error::ReopenRequired);
        assert_matches!(poll!(&mut scope), std::task::Poll::Ready(Err(error)) => {
            assert_matches!(inner(error), Error::AtomicallyTimeout);
        });
        store.reopen().await.unwrap();
        assert!(has(&store, "before").await && !has(&store, "within").await);
        set(&store, "other").await.unwrap();
        store.close().await.unwrap();
    }
}

/// A scope dropped after `COMMIT` was sent is finished like any save that was begun.
#[tokio::test]
async fn a_scope_dropped_during_its_commit_is_finished_before_later_writes() {
    let database = testing::database().unwrap();
    let url = database.url();
    let store = open(&config(&url, 4)).await;
    let (client, watcher) = (connect(&url).await, connect(&url).await);
    let wait_at_commit = "
        CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON matrix_sdk.custom_values
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()";
    client.batch_execute(wait_at_commit).await.unwrap();
    client.batch_execute("SELECT pg_advisory_lock(1)").await.unwrap();
    tokio::select! {
        biased;
        ended = store.atomically(set(&store, "within")) => panic!("{ended:?}"),
        () = until_locked(&watcher, "advisory") => {}
    }
    let mut later = pin!(set(&store, "later"));
    assert!(poll!(&mut later).is_pending());
    client.batch_execute("SELECT pg_advisory_unlock(1)").await.unwrap();
    later.await.unwrap();
    assert!(has(&store, "within").await, "it was not committed");
    assert_eq!(store.commit_count().await.unwrap(), 2);
}
