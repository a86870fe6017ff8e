//! The connection is lost between the statements of a scope.

use matrix_sdk_crypto::CryptoStoreError;
use matrix_sdk_postgres::PostgresCryptoStore;
use test_support::{eventually, number};
use tokio_postgres::Client;

use super::{has, set, with_outbox};

const ROWS: &str = "SELECT count(*) FROM outbox";

/// Terminates all other connections, and waits for their end.
async fn cut(client: &Client) {
    let others = "FROM pg_stat_activity
                  WHERE datname = current_database() AND pid <> pg_backend_pid()";
    let terminate = format!("SELECT count(pg_terminate_backend(pid)) {others}");
    assert!(number(client, &terminate).await > 0);
    let count = format!("SELECT count(*) {others}");
    eventually("no other connection", async || number(client, &count).await == 0).await;
}

async fn insert(store: &PostgresCryptoStore) -> Result<(), CryptoStoreError> {
    store.transaction().await?.execute("INSERT INTO outbox VALUES ('row')", &[]).await?;
    Ok(())
}

/// The application has no result yet that a repetition could contradict.
#[tokio::test]
async fn before_the_first_statement_of_the_application_everything_is_sent_again() {
    let (_database, store, client) = with_outbox().await;
    let scope = store.atomically(async {
        set(&store, "key").await?;
        // A read sends the save.
        assert!(has(&store, "key").await);
        cut(&client).await;
        insert(&store).await
    });
    scope.await.unwrap();
    assert!(has(&store, "key").await);
    assert_eq!(number(&client, ROWS).await, 1);
    // The next scope begins on a connection of its own.
    store.atomically(insert(&store)).await.unwrap();
    assert_eq!(number(&client, ROWS).await, 2);
}

#[tokio::test]
async fn after_a_statement_of_the_application_nothing_is_repeated_nor_stored() {
    let (_database, store, client) = with_outbox().await;
    let scope = store.atomically(async {
        set(&store, "key").await?;
        insert(&store).await?;
        cut(&client).await;
        // Ignored: the commit fails nevertheless.
        insert(&store).await.unwrap_err();
        Ok::<_, CryptoStoreError>(())
    });
    scope.await.unwrap_err();
    assert_eq!(number(&client, ROWS).await, 0);
    assert!(!has(&store, "key").await);
}

/// It would be refused again, and each attempt would take as long.
#[tokio::test]
async fn a_first_statement_that_the_server_refuses_is_not_repeated() {
    let (_database, store, client) = with_outbox().await;
    let refusing = "
        CREATE SEQUENCE attempts;
        CREATE FUNCTION refuse() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
            PERFORM nextval('public.attempts');
            RAISE EXCEPTION 'no' USING ERRCODE = 'lock_not_available';
        END $$;";
    client.batch_execute(refusing).await.unwrap();
    let scope = store.atomically(async {
        set(&store, "key").await?;
        let transaction = store.transaction().await?;
        transaction.query("SELECT public.refuse()", &[]).await.unwrap_err();
        Ok::<_, CryptoStoreError>(())
    });
    scope.await.unwrap_err();
    assert!(!has(&store, "key").await);
    assert_eq!(number(&client, "SELECT last_value FROM attempts").await, 1);
}
