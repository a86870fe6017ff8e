//! `delete-account`.

use matrix_sdk_crypto::store::CryptoStore;

use crate::support::Place;

/// Rows of an account that is not there, in any table.
async fn orphans(place: &Place) -> i64 {
    let client = place.client().await;
    let tables = "SELECT c.relname::text FROM pg_class c
                  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'account_id'
                  WHERE c.relkind = 'r' AND c.relnamespace = 'matrix_sdk'::regnamespace";
    let mut count = 0;
    for row in client.query(tables, &[]).await.unwrap() {
        let table: String = row.get(0);
        let sql = format!(
            "SELECT count(*) FROM matrix_sdk.{table}
             WHERE account_id NOT IN (SELECT id FROM matrix_sdk.accounts)"
        );
        count += client.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0);
    }
    count
}

#[tokio::test]
async fn an_account_is_deleted_with_all_its_rows_and_no_others() {
    let place = Place::new();
    let (old, _) = place.filled("old").await;
    let (kept, _) = place.filled("kept").await;
    let delete = ["delete-account", "--account", "old", "--yes"];

    let refused = place.run(&delete).await.expect(4);
    assert!(refused.err.contains("is in use by matrix-sdk-postgres on "), "{refused:?}");
    // A refusal disturbs nobody.
    old.set_custom_value("key", b"value".to_vec()).await.unwrap();
    old.close().await.unwrap();

    let counted = place.run(&["delete-account", "--account", "old", "--dry-run"]).await.expect(0);
    assert!(counted.out.contains("megolm_inbound_sessions"), "{counted:?}");
    let unanswered = place.run(&["delete-account", "--account", "old"]).await.expect(4);
    assert!(unanswered.err.contains("nothing was changed"), "{unanswered:?}");
    assert_eq!(place.number("SELECT count(*) FROM matrix_sdk.accounts").await, 2);

    let deleted = place.run(&delete).await.expect(0).out;
    assert!(deleted.contains("deleted account \"old\""), "{deleted}");
    assert_eq!(orphans(&place).await, 0);
    kept.set_custom_value("key", b"value".to_vec()).await.unwrap();
    let kept = place.run(&["stats", "--json"]).await.expect(0).json();
    let tables = kept["accounts"][0]["tables"].as_array().unwrap().clone();
    assert!(tables.iter().all(|table| table["rows"].as_u64() > Some(0)), "{tables:?}");
    place.run(&delete).await.expect(1);
}

/// All or nothing: what fails at the last table leaves all.
#[tokio::test]
async fn a_deletion_that_fails_in_its_middle_deletes_nothing() {
    let place = Place::new();
    let (bot, _) = place.filled("bot").await;
    bot.close().await.unwrap();
    let client = place.client().await;
    let fail = "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
                    $$ BEGIN RAISE EXCEPTION 'no'; END $$;
                CREATE TRIGGER fail BEFORE DELETE ON matrix_sdk.withheld_sessions
                    FOR EACH ROW EXECUTE FUNCTION fail()";
    client.batch_execute(fail).await.unwrap();
    place.run(&["delete-account", "--account", "bot", "--yes"]).await.expect(1);
    let stats = place.run(&["stats", "--json"]).await.expect(0).json();
    let tables = stats["accounts"][0]["tables"].as_array().unwrap().clone();
    assert!(tables.iter().all(|table| table["rows"].as_u64() > Some(0)), "{tables:?}");
}

/// An error at the commit may also be a pooler's, which has lost its server: it proves no rollback.
#[tokio::test]
async fn an_error_at_the_commit_is_a_commit_of_unknown_outcome() {
    let place = Place::new();
    let (bot, _) = place.filled("bot").await;
    bot.close().await.unwrap();
    let fail = "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
                    $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '08P01'; END $$;
                CREATE CONSTRAINT TRIGGER fail AFTER DELETE ON matrix_sdk.withheld_sessions
                    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fail()";
    place.client().await.batch_execute(fail).await.unwrap();
    let failed = place.run(&["delete-account", "--account", "bot", "--yes"]).await.expect(5);
    assert!(failed.err.contains("the outcome of COMMIT is unknown"), "{failed:?}");
    assert!(failed.err.contains("08P01"), "{failed:?}");
}
