//! What `restore` refuses before it changes anything, and a move of a device that fails at its end.

use matrix_sdk_crypto::store::CryptoStore;

use crate::{
    backup::{backed_up, path, tool},
    support::{Place, TextFile},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_not_restored_into_another_account_than_was_named() {
    let (place, other, folder) = (Place::new(), Place::new(), tempfile::tempdir().unwrap());
    let file = path(&folder, "bot.age");
    place.filled("bot").await.0.close().await.unwrap();
    backed_up(&place, &file).await;
    let named = tool(&other, &["restore", &file, "--account", "another"]);
    let mut in_environment = tool(&other, &["restore", &file]);
    in_environment.env("STORE_ACCOUNT", "another");
    for command in [named, in_environment] {
        let refused = other.run_command(command).await.expect(4);
        assert!(refused.err.contains("of the account \"bot\", not of \"another\""), "{refused:?}");
    }
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'matrix_sdk'";
    assert_eq!(other.number(schemas).await, 0);
    other.run_command(tool(&other, &["restore", &file, "--account", "bot"])).await.expect(0);
}

/// Programs of that schema may be running.
#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_is_there_is_not_migrated_by_the_way() {
    let (place, folder) = (Place::new(), tempfile::tempdir().unwrap());
    let file = path(&folder, "bot.age");
    place.filled("bot").await.0.close().await.unwrap();
    backed_up(&place, &file).await;
    let older =
        "DELETE FROM matrix_sdk.schema_migrations m WHERE part = 'crypto_store' AND version =
                     (SELECT max(version) FROM matrix_sdk.schema_migrations WHERE part = m.part)";
    place.client().await.batch_execute(older).await.unwrap();
    let failed = place.run_command(tool(&place, &["restore", &file])).await.expect(1);
    assert!(failed.err.contains("run matrix-postgres migrate"), "{failed:?}");
}

/// The device is nowhere then. Only the operator knows that, who has looked for the account here.
#[tokio::test(flavor = "multi_thread")]
async fn a_move_whose_last_commit_fails_is_ended_with_a_checkpoint() {
    let (place, other, folder) = (Place::new(), Place::new(), tempfile::tempdir().unwrap());
    let file = path(&folder, "bot.age");
    place.filled("bot").await.0.close().await.unwrap();
    backed_up(&place, &file).await;
    other.run(&["migrate"]).await.expect(0);
    let client = other.client().await;
    let fails = "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
                     $$ BEGIN RAISE EXCEPTION 'no'; END $$;
                 CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON matrix_sdk.accounts
                     DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fail()";
    client.batch_execute(fails).await.unwrap();
    let url = TextFile::new(&place.url());
    let moved = ["restore", &file, "--same-device", "--from-url-file", url.path(), "--yes"];
    let failed = other.run_command(tool(&other, &moved)).await.expect(1);
    assert!(failed.err.contains("removed from where it was"), "{failed:?}");
    let commits = place.number("SELECT commits FROM matrix_sdk.account_lanes").await.to_string();
    let way = format!("--same-device --checkpoint {commits}");
    assert!(failed.err.contains(&way), "{failed:?}");
    let store = place.open("bot").await;
    assert!(store.load_account().await.unwrap().is_none());
    store.close().await.unwrap();
    client.batch_execute("DROP TRIGGER fail ON matrix_sdk.accounts").await.unwrap();
    let refused = other.run_command(tool(&other, &moved)).await.expect(4);
    assert!(refused.err.contains(&way), "{refused:?}");
    assert_eq!(other.number("SELECT count(*) FROM matrix_sdk.accounts").await, 0);
    let same = ["restore", &file, "--same-device", "--checkpoint", &commits];
    other.run_command(tool(&other, &same)).await.expect(0);
    assert!(other.open("bot").await.load_account().await.unwrap().is_some());
}

/// Another bot of the same name, with as many commits.
#[tokio::test(flavor = "multi_thread")]
async fn another_device_is_not_removed_by_a_move() {
    let (place, elsewhere, folder) = (Place::new(), Place::new(), tempfile::tempdir().unwrap());
    let file = path(&folder, "bot.age");
    let (store, _) = place.filled("bot").await;
    store.close().await.unwrap();
    backed_up(&place, &file).await;
    let (store, stranger) = elsewhere.filled("bot").await;
    store.close().await.unwrap();
    let commits = "SELECT commits FROM matrix_sdk.account_lanes";
    assert_eq!(place.number(commits).await, elsewhere.number(commits).await);

    let (target, url) = (Place::new(), TextFile::new(&elsewhere.url()));
    let moved = ["restore", &file, "--same-device", "--from-url-file", url.path(), "--yes"];
    let refused = target.run_command(tool(&target, &moved)).await.expect(4);
    assert!(refused.err.contains("has another device than the backup"), "{}", refused.err);
    assert_eq!(target.number("SELECT count(*) FROM matrix_sdk.accounts").await, 0);
    let account = elsewhere.open("bot").await.load_account().await.unwrap().unwrap();
    assert_eq!(account.identity_keys(), stranger.account.identity_keys());
}
