//! What every command refuses, or must not depend on.

use matrix_sdk_crypto::store::CryptoStore;

use crate::support::{PASSPHRASE, Place};

/// What may change an account, and what reads all of it.
const OF_AN_ACCOUNT: [&[&str]; 7] = [
    &["delete-account", "--account", "bot", "--yes"],
    &["reset-device", "--account", "bot", "--yes"],
    &["prune", "--account", "bot", "--message-hashes", "1h", "--yes"],
    &["verify", "--account", "bot", "--put-back", "--yes"],
    &["rekey", "--account", "bot", "--yes"],
    &["backup", "--account", "bot", "/nonexistent/bot.age"],
    &["stats"],
];

async fn refuse_all(place: &Place, commands: &[&[&str]], error: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bot.age");
    for args in commands {
        let args: Vec<_> = args
            .iter()
            .map(|arg| if arg.starts_with('/') { file.to_str().unwrap() } else { arg })
            .collect();
        let mut command = place.command(&args);
        command.env("STORE_PASSPHRASE", PASSPHRASE).env("NEW_STORE_PASSPHRASE", "new");
        command.env("BACKUP_PASSPHRASE", "backup");
        let refused = place.run_command(command).await;
        assert!(refused.code != 0 && refused.err.contains(error), "{args:?}: {refused:?}");
    }
}

/// A newer program may have tables that this one does not know, which it would leave out or behind.
#[tokio::test(flavor = "multi_thread")]
async fn every_command_refuses_the_schema_that_opening_refuses() {
    let place = Place::new();
    refuse_all(&place, &OF_AN_ACCOUNT, "does not exist, or has no tables yet").await;
    place.filled("bot").await.0.close().await.unwrap();
    let newer = "INSERT INTO matrix_sdk.schema_migrations (part, version, compatible_with, name)
                 VALUES ('crypto_store', 99, 99, 'of the future')";
    place.client().await.batch_execute(newer).await.unwrap();
    refuse_all(&place, &OF_AN_ACCOUNT, "has version 99").await;
    assert_eq!(place.number("SELECT count(*) FROM matrix_sdk.olm_sessions").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_write_refuse_a_role_that_is_meant_to_read() {
    let place = Place::new();
    place.filled("bot").await.0.close().await.unwrap();
    let name = place.database.name();
    let sql = format!("ALTER DATABASE {name} SET default_transaction_read_only = on");
    place.client().await.batch_execute(&sql).await.unwrap();
    refuse_all(&place, &OF_AN_ACCOUNT[..5], "is read-only: default_transaction_read_only").await;
    place.run(&["stats"]).await.expect(0);
    assert_eq!(place.number("SELECT count(*) FROM matrix_sdk.olm_sessions").await, 1);
}

/// The role's limit is for its bot: a whole table takes longer.
#[tokio::test(flavor = "multi_thread")]
async fn a_short_time_limit_of_the_role_ends_no_command() {
    let place = Place::new();
    place.filled("bot").await.0.close().await.unwrap();
    place.slow_down_a_table().await;
    let (client, name) = (place.client().await, place.database.name());
    let limit = format!("ALTER DATABASE {name} SET statement_timeout = '200ms'");
    client.batch_execute(&limit).await.unwrap();
    place.run(&["stats"]).await.expect(0);
    place.run(&["delete-account", "--account", "bot", "--dry-run"]).await.expect(0);
    place.run_unlocked(&["verify", "--account", "bot"]).await.expect(0);
}
