//! Statements of the application that would end or partly undo the transaction.

use assert_matches::assert_matches;
use matrix_sdk_crypto::{CryptoStoreError, store::CryptoStore};
use matrix_sdk_postgres::{Error, PostgresCryptoStore};
use test_support::number;
use tokio_postgres::types::{ToSql, Type};

use super::{has, set, with_outbox};

async fn run(store: &PostgresCryptoStore, sql: &str) -> Result<(), CryptoStoreError> {
    store.transaction().await?.query(sql, &[]).await?;
    Ok(())
}

/// The number of changed rows is returned, also for a statement with RETURNING.
#[tokio::test]
async fn a_statement_returns_the_number_of_changed_rows() {
    let (_database, store, client) = with_outbox().await;
    let changed = store.atomically(async {
        set(&store, "key").await?;
        let transaction = store.transaction().await?;
        let mut changed = Vec::new();
        for sql in [
            "INSERT INTO outbox SELECT 'row' FROM generate_series(1, 3)",
            "UPDATE outbox SET body = 'other' RETURNING body",
            "DELETE FROM outbox WHERE body = 'row'",
            "SELECT FROM outbox",
            "CREATE TEMPORARY TABLE inbox (body text)",
        ] {
            changed.push(transaction.execute(sql, &[]).await?);
        }
        let body: (&(dyn ToSql + Sync), Type) = (&"other", Type::TEXT);
        changed.push(transaction.execute("DELETE FROM outbox WHERE body = $1", &[body]).await?);
        Ok::<_, CryptoStoreError>(changed)
    });
    assert_eq!(changed.await.unwrap(), [3, 3, 0, 3, 0, 3]);
    assert!(has(&store, "key").await);
    assert_eq!(number(&client, ROWS).await, 0);
}

const ROWS: &str = "SELECT count(*) FROM outbox";
const INSERT: &str = "INSERT INTO outbox VALUES ('row')";

/// Ending the transaction would commit a part of it, or run the rest outside of it.
#[tokio::test]
async fn transaction_control_is_refused_and_nothing_is_committed() {
    let (_database, store, client) = with_outbox().await;
    for sql in ["COMMIT", "/* now */ rollback", "END", "ABORT", "PREPARE TRANSACTION 'x'"] {
        let scope = store.atomically(async {
            set(&store, "key").await?;
            run(&store, INSERT).await?;
            let refused = store.transaction().await?.query(sql, &[]).await;
            assert_matches!(refused, Err(Error::TransactionControl), "{sql}");
            // The application ignores the error.
            set(&store, "another").await.unwrap_or_default();
            Ok::<_, CryptoStoreError>(())
        });
        assert!(scope.await.is_err(), "{sql}");
        store.reopen().await.unwrap();
        assert!(!has(&store, "key").await && !has(&store, "another").await, "{sql}");
        assert_eq!(number(&client, ROWS).await, 0, "{sql}");
    }
}

/// In each case the save is sent by a read, by the application's next statement, or not yet.
#[tokio::test]
async fn a_savepoint_that_undoes_a_save_is_detected_and_nothing_is_committed() {
    let (_database, store, client) = with_outbox().await;
    for (reads, nested) in [(true, false), (false, true), (true, true), (false, false)] {
        let scope = store.atomically(async {
            set(&store, "before").await?;
            run(&store, INSERT).await?;
            run(&store, "SAVEPOINT here").await?;
            set(&store, "undone").await?;
            if reads {
                assert!(has(&store, "undone").await);
            }
            if nested {
                run(&store, "SAVEPOINT inner_one").await?;
            }
            let _ = run(&store, "ROLLBACK TO SAVEPOINT here").await;
            set(&store, "after").await.unwrap_or_default();
            Ok::<_, CryptoStoreError>(())
        });
        assert!(scope.await.is_err(), "reads {reads}, nested {nested}");
        store.reopen().await.unwrap();
        for key in ["before", "undone", "after"] {
            assert!(!has(&store, key).await, "{key}: reads {reads}, nested {nested}");
        }
        assert_eq!(number(&client, ROWS).await, 0);
    }
}

#[tokio::test]
async fn a_savepoint_may_undo_rows_of_the_application() {
    let (_database, store, client) = with_outbox().await;
    let scope = store.atomically(async {
        set(&store, "before").await?;
        run(&store, "SAVEPOINT here").await?;
        run(&store, INSERT).await?;
        assert!(has(&store, "before").await);
        run(&store, "ROLLBACK TO here").await?;
        run(&store, INSERT).await?;
        run(&store, "RELEASE here").await?;
        set(&store, "after").await?;
        run(&store, "SAVEPOINT here").await?;
        run(&store, INSERT).await?;
        run(&store, "ROLLBACK TRANSACTION TO here").await
    });
    scope.await.unwrap();
    assert!(has(&store, "before").await && has(&store, "after").await);
    assert_eq!(number(&client, ROWS).await, 1);
    // The store continues.
    store.set_custom_value("later", vec![1]).await.unwrap();
}
