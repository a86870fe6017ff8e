//! Changes whose COMMIT did not wait for its synchronous standby: somebody has cancelled the wait.

use std::process::Command;

use matrix_sdk_crypto::store::CryptoStore;
use test_support::{
    connect,
    standby::{Cancelling, wait_for_standby},
};

use crate::{
    doctor::durable,
    support::{PASSPHRASE, Place, TextFile},
};

const ACCOUNTS: &str = "SELECT count(*) FROM matrix_sdk.accounts";

fn tool(place: &Place, args: &[&str]) -> Command {
    let mut command = place.command(args);
    command.env("STORE_PASSPHRASE", PASSPHRASE).env("NEW_STORE_PASSPHRASE", "new");
    command.env("BACKUP_PASSPHRASE", "backup");
    command
}

/// Runs it; it must say that a failover may undo the change.
async fn is_reported(place: &Place, args: &[&str]) {
    let ran = place.run_command(tool(place, args)).await.expect(3);
    let says = ran.err.starts_with("error: the change is committed on this server")
        && ran.err.contains("a failover may still undo it: do not repeat it");
    assert!(says && ran.out.is_empty(), "{args:?}: {ran:?}");
}

/// Of two tables with a corrupt row, each run sets one aside, and says so.
async fn rows_are_reported(place: &Place) {
    let aside = ["verify", "--account", "bot", "--quarantine", "--yes", "--json"];
    let ran = place.run_command(tool(place, &aside)).await.expect(3);
    let report = ran.json();
    let tables = report["tables"].as_array().unwrap();
    let aside: u64 = tables.iter().map(|table| table["quarantined"].as_u64().unwrap()).sum();
    assert_eq!((aside, &report["is_complete"]), (1, &false.into()));
    assert_eq!(place.number("SELECT count(*) FROM matrix_sdk.quarantined_rows").await, 1);
    let again = ["verify", "--account", "bot", "--quarantine", "--yes"];
    let ran = place.run_command(tool(place, &again)).await.expect(3);
    assert!(ran.out.contains("the rest was not looked at"), "{ran:?}");
    place.run_command(tool(place, &again)).await.expect(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_no_standby_has_is_reported() {
    let (server, place) = durable();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bot.age").to_str().unwrap().to_owned();
    let [migrated, empty] =
        [(), ()].map(|()| Place { database: server.create_database().unwrap() });
    place.filled("bot").await.0.close().await.unwrap();
    place.run_command(tool(&place, &["backup", "--account", "bot", &file])).await.expect(0);
    migrated.run(&["migrate"]).await.expect(0);
    let damage = "UPDATE matrix_sdk.custom_values SET data = '\\x00';
                  UPDATE matrix_sdk.megolm_inbound_sessions SET data = '\\x00'";
    place.client().await.batch_execute(damage).await.unwrap();
    let admin = connect(&server.url()).await;
    admin.batch_execute("SET synchronous_commit = local").await.unwrap();
    // With this setting the server does not send the warning by itself.
    for place in [&place, &migrated, &empty] {
        let silent = "SET client_min_messages = error";
        let sql = format!("ALTER DATABASE {} {silent}", place.database.name());
        admin.batch_execute(&sql).await.unwrap();
    }
    wait_for_standby(&admin, "ghost").await;
    let cancelling = Cancelling::start(&server.url());

    rows_are_reported(&place).await;
    is_reported(&place, &["prune", "--account", "bot", "--withheld", "0s", "--yes"]).await;
    is_reported(&place, &["reset-device", "--account", "bot", "--yes"]).await;
    is_reported(&place, &["rekey", "--account", "bot", "--yes"]).await;
    is_reported(&place, &["delete-account", "--account", "bot", "--yes"]).await;
    is_reported(&migrated, &["restore", &file]).await;
    is_reported(&empty, &["migrate"]).await;
    assert!(cancelling.stop().await >= 8);

    // All of it was done.
    assert_eq!(place.number(ACCOUNTS).await, 0);
    assert_eq!(migrated.number(ACCOUNTS).await, 1);
    empty.run(&["migrate", "status"]).await.expect(0);
    wait_for_standby(&admin, "").await;
    drop(migrated.open("bot").await);
}

/// Rather nowhere than twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_moved_only_when_the_standby_there_knows_it() {
    let (server, place) = durable();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bot.age").to_str().unwrap().to_owned();
    let other = Place::new();
    other.run(&["migrate"]).await.expect(0);
    place.filled("bot").await.0.close().await.unwrap();
    place.run_command(tool(&place, &["backup", "--account", "bot", &file])).await.expect(0);
    let admin = connect(&server.url()).await;
    admin.batch_execute("SET synchronous_commit = local").await.unwrap();
    wait_for_standby(&admin, "ghost").await;

    let url = TextFile::new(&place.url());
    let restore = ["restore", &file, "--same-device", "--from-url-file", url.path(), "--yes"];
    let cancelling = Cancelling::start(&server.url());
    let failed = other.run_command(tool(&other, &restore)).await.expect(1);
    assert!(failed.err.contains("nothing was restored"), "{failed:?}");
    assert!(cancelling.stop().await > 0);
    assert_eq!(other.number(ACCOUNTS).await, 0);
    let device = "SELECT count(*) FROM matrix_sdk.account_data WHERE item = 1";
    assert_eq!(place.number(device).await, 0);

    wait_for_standby(&admin, "").await;
    other.run_command(tool(&other, &restore)).await.expect(4);
    let commits = place.number("SELECT commits FROM matrix_sdk.account_lanes").await.to_string();
    assert!(failed.err.contains(&format!("--same-device --checkpoint {commits}")), "{failed:?}");
    let same = ["restore", &file, "--same-device", "--checkpoint", &commits];
    other.run_command(tool(&other, &same)).await.expect(0);
    assert!(other.open("bot").await.load_account().await.unwrap().is_some());
}
