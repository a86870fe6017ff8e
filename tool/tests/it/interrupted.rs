//! What is ended in its middle: by Ctrl-C, or by the server.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use matrix_sdk_crypto::store::CryptoStore;

use crate::support::{PASSPHRASE, Place};

/// Slows a table's writes down, so that there is a middle.
const SLOW: &str = "
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_sleep(60); RETURN coalesce(NEW, OLD); END $$;
CREATE TRIGGER slow BEFORE DELETE ON matrix_sdk.withheld_sessions FOR EACH ROW EXECUTE FUNCTION slow();
CREATE TRIGGER slow BEFORE UPDATE ON matrix_sdk.accounts FOR EACH ROW EXECUTE FUNCTION slow()";

const WAITING: &str = "SELECT count(*) FROM pg_stat_activity\n    WHERE wait_event = 'PgSleep' AND datname = current_database()";

/// An account, and a digest of all that belongs to it.
async fn account(place: &Place) -> i64 {
    let (bot, _) = place.filled("bot").await;
    bot.close().await.unwrap();
    place.client().await.batch_execute(SLOW).await.unwrap();
    digest(place).await
}

async fn digest(place: &Place) -> i64 {
    let tables = ["accounts", "account_data", "withheld_sessions", "megolm_inbound_sessions"];
    let digests = tables
        .map(|table| format!("(SELECT sum(hashtext(t::text))::bigint FROM matrix_sdk.{table} t)"));
    place.number(&format!("SELECT {}", digests.join(" + "))).await
}

/// Starts it, and waits until it is in its middle.
async fn start(place: &Place, args: &[&str]) -> Child {
    let mut command = place.command(args);
    command.env("STORE_PASSPHRASE", PASSPHRASE).env("NEW_STORE_PASSPHRASE", "new");
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while place.number(WAITING).await == 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    child
}

const COMMANDS: [&[&str]; 3] = [
    &["delete-account", "--account", "bot", "--yes"],
    &["prune", "--account", "bot", "--withheld", "0s", "--yes"],
    &["rekey", "--account", "bot", "--yes"],
];

#[tokio::test]
async fn ctrl_c_in_the_middle_leaves_everything_as_it_was() {
    let place = Place::new();
    let before = account(&place).await;
    for command in COMMANDS {
        let child = start(&place, command).await;
        let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
        assert!(killed.unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{command:?}");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "error: interrupted\n");
        end_backends(&place).await;
        assert_eq!(digest(&place).await, before, "{command:?}");
    }
}

/// As when it crashes, or an administrator ends the connection.
#[tokio::test]
async fn a_server_that_goes_away_in_the_middle_leaves_everything_as_it_was() {
    let place = Place::new();
    let before = account(&place).await;
    for command in COMMANDS {
        let child = start(&place, command).await;
        end_backends(&place).await;
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(matches!(output.status.code(), Some(1 | 5)), "{command:?}: {error}");
        assert!(error.starts_with("error: ") && error.contains("57P01"), "{command:?}: {error}");
        assert_eq!(digest(&place).await, before, "{command:?}");
    }
}

/// Ends the server's processes that are in the middle, and waits for their end.
async fn end_backends(place: &Place) {
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
               WHERE application_name = 'matrix-postgres' AND datname = current_database()";
    place.number(end).await;
    let left = "SELECT count(*) FROM pg_stat_activity
                WHERE application_name = 'matrix-postgres' AND datname = current_database()";
    while place.number(left).await > 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
