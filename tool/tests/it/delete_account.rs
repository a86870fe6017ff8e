//! `delete-account`.

use std::collections::BTreeMap;

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{OwnershipSettings, PostgresCryptoStore, PostgresStoreConfig};
use test_support::child_process::{self, ChildProcess};

use crate::support::Place;

/// How many rows an account has in each table that has a column `account_id`.
async fn rows_of(place: &Place, account_id: i64) -> BTreeMap<String, i64> {
    let client = place.client().await;
    let tables = "SELECT c.relname::text FROM pg_class c
                  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'account_id'
                  WHERE c.relkind = 'r' AND c.relnamespace = 'matrix_sdk'::regnamespace";
    let mut rows = BTreeMap::new();
    for table in client.query(tables, &[]).await.unwrap() {
        let table: String = table.get(0);
        let sql = format!("SELECT count(*) FROM matrix_sdk.{table} WHERE account_id = $1");
        let count = client.query_one(&sql, &[&account_id]).await.unwrap().get(0);
        rows.insert(table, count);
    }
    rows
}

async fn id_of(place: &Place, account: &str) -> i64 {
    place.number(&format!("SELECT id FROM matrix_sdk.accounts WHERE name = '{account}'")).await
}

/// Rows in the tables that only a crash and an operator fill.
async fn crash_and_set_aside(place: &Place, account_id: i64) {
    let sql = format!(
        "INSERT INTO matrix_sdk.heartbeats (id, alive_until)
             VALUES ('\\x00', now() - interval '1 hour');
         INSERT INTO matrix_sdk.account_handles (account_id, id, heartbeat_id)
             VALUES ({account_id}, '\\x00', '\\x00');
         INSERT INTO matrix_sdk.quarantined_rows (account_id, id, table_name, reason, contents)
             VALUES ({account_id}, gen_random_uuid(), 'devices', 'a test', '{{}}')"
    );
    place.client().await.batch_execute(&sql).await.unwrap();
}

#[tokio::test]
async fn an_account_is_deleted_with_all_its_rows_and_no_others() {
    let place = Place::new();
    let (old, _) = place.filled("old").await;
    let (kept, _) = place.filled("kept").await;
    let delete = ["delete-account", "--account", "old", "--yes"];

    let refused = place.run(&delete).await.expect(4);
    assert!(refused.err.contains("is in use by matrix-sdk-postgres on "), "{refused:?}");
    // A refusal disturbs no bot.
    old.set_custom_value("key", b"value".to_vec()).await.unwrap();
    old.close().await.unwrap();

    let (old, kept_id) = (id_of(&place, "old").await, id_of(&place, "kept").await);
    crash_and_set_aside(&place, old).await;
    let before = rows_of(&place, kept_id).await;
    for (table, rows) in rows_of(&place, old).await {
        assert!(rows > 0, "{table} has no row that could stay");
    }

    let counted = place.run(&["delete-account", "--account", "old", "--dry-run"]).await.expect(0);
    assert!(counted.out.contains("megolm_inbound_sessions"), "{counted:?}");
    let unanswered = place.run(&["delete-account", "--account", "old"]).await.expect(4);
    assert!(unanswered.err.contains("nothing was changed"), "{unanswered:?}");
    assert_eq!(place.number("SELECT count(*) FROM matrix_sdk.accounts").await, 2);

    let deleted = place.run(&delete).await.expect(0).out;
    assert!(deleted.contains("deleted account \"old\""), "{deleted}");
    for (table, rows) in rows_of(&place, old).await {
        assert_eq!(rows, 0, "{table}");
    }
    assert_eq!(rows_of(&place, kept_id).await, before);
    kept.set_custom_value("key", b"value".to_vec()).await.unwrap();
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

/// A bot that was killed on this machine has ended, whatever its heartbeat says.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_bot_is_not_waited_for() {
    let hour = std::time::Duration::from_secs(3_600);
    if let Some(url) = child_process::task() {
        let access = OwnershipSettings { heartbeat_interval: hour, ..Default::default() };
        let config = PostgresStoreConfig::new(url, "bot").access(access);
        let _store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
        child_process::send("open");
        return std::future::pending().await;
    }
    let place = Place::new();
    let test = "delete_account::a_killed_bot_is_not_waited_for";
    for command in ["reset-device", "delete-account"] {
        let mut bot = ChildProcess::start(test, &place.url());
        assert_eq!(bot.receive().as_deref(), Some("open"));
        let args = [command, "--account", "bot", "--yes"];
        let refused = place.run(&args).await.expect(4).err;
        assert!(
            refused.contains("is in use by") && !refused.contains("take the account over"),
            "{refused}"
        );
        bot.kill();
        place.run(&args).await.expect(0);
    }
}
