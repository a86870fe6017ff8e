//! Two runs that write one file, and runs that are ended while they write it.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{testing::PostgresServer, tokio_postgres::Client};

use crate::{
    keys,
    support::{Place, Ran},
};

/// What each command is reading when it is at this table.
const WRITTEN: [(&str, &str); 2] =
    [("custom_values", "backup"), ("megolm_inbound_sessions", "export")];

/// Keeps a table from everyone, for as long as the client is there.
async fn hold_up(place: &Place, table: &str) -> Client {
    let client = place.client().await;
    client.batch_execute(&format!("BEGIN; LOCK TABLE matrix_sdk.{table}")).await.unwrap();
    client
}

/// Starts it, and waits until it is at the table.
async fn start(place: &Place, command: &mut Command) -> Child {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE wait_event_type = 'Lock' AND datname = current_database()";
    while place.number(waiting).await == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    child
}

async fn ended(running: Child) -> Ran {
    let output = tokio::task::spawn_blocking(|| running.wait_with_output().unwrap());
    Ran::of(output.await.unwrap())
}

fn backup(place: &Place, file: &Path) -> Command {
    let mut command = place.command(&["backup", "--account", "bot", file.to_str().unwrap()]);
    command.env("BACKUP_PASSPHRASE", "backup");
    command
}

/// The command that writes a backup, or an export.
fn write(name: &str, place: &Place, file: &Path) -> Command {
    match name {
        "backup" => backup(place, file),
        _ => keys::tool(place, "export-keys", "bot", file.to_str().unwrap()),
    }
}

/// A backup with SIGHUP ignored or not, whatever the tests were started with.
fn backup_with_hangups(how: &str, place: &Place, file: &Path) -> Command {
    let direct = backup(place, file);
    let mut command = Command::new("env");
    command.arg(format!("--{how}-signal=HUP")).arg(direct.get_program()).args(direct.get_args());
    command.env_clear();
    command.envs(direct.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_one_leaves_the_file_of_the_first_alone() {
    let (place, folder) = (Place::new(), tempfile::tempdir().unwrap());
    let store = keys::filled(&place, "bot", 3).await;
    for (table, name) in WRITTEN {
        let file = folder.path().join(name);
        let command = || write(name, &place, &file);
        let held = hold_up(&place, table).await;
        let first = start(&place, &mut command()).await;
        let second = place.run_command(command()).await.expect(1);
        assert!(second.err.contains("is being written by another run"), "{second:?}");
        drop(held);
        ended(first).await.expect(0);
        assert!(file.exists() && !folder.path().join(format!("{name}.partial")).exists());
    }
    let exported = folder.path().join("export");
    assert_eq!(keys::read(exported.to_str().unwrap()), keys::keys_of(&store).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_asked_to_end_leaves_nothing() {
    let (place, folder) = (Place::new(), tempfile::tempdir().unwrap());
    drop(place.filled("bot").await);
    let file = folder.path().join("bot.age");
    for signal in ["INT", "TERM", "HUP"] {
        let _held = hold_up(&place, "custom_values").await;
        let running = start(&place, &mut backup_with_hangups("default", &place, &file)).await;
        test_support::process::signal(running.id(), signal);
        let ran = ended(running).await.expect(130);
        assert_eq!(ran.err, "error: interrupted\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{signal}");
    }
    // Who started it with nohup means it to go on when the terminal is closed.
    let held = hold_up(&place, "custom_values").await;
    let running = start(&place, &mut backup_with_hangups("ignore", &place, &file)).await;
    test_support::process::signal(running.id(), "HUP");
    drop(held);
    ended(running).await.expect(0);
    fs::remove_file(&file).unwrap();

    let _held = hold_up(&place, "custom_values").await;
    let running = start(&place, &mut backup(&place, &file)).await;
    test_support::process::signal(running.id(), "KILL");
    running.wait_with_output().unwrap();
    let refused = place.run_command(backup(&place, &file)).await.expect(1);
    assert!(refused.err.contains("was left by a run that was killed: delete it"), "{refused:?}");
}

/// As when it crashes.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_goes_away_leaves_no_half_file() {
    let mut server = PostgresServer::start().unwrap();
    let (place, folder) =
        (Place { database: server.create_database().unwrap() }, tempfile::tempdir().unwrap());
    keys::filled(&place, "bot", 3).await.close().await.unwrap();
    for (table, name) in WRITTEN {
        let file = folder.path().join(name);
        let command = || write(name, &place, &file);
        let held = hold_up(&place, table).await;
        let running = start(&place, &mut command()).await;
        tokio::task::block_in_place(|| server.kill());
        let gone = ended(running).await.expect(5);
        assert!(gone.err.starts_with("error: "), "{gone:?}");
        drop(held);
        let partial = folder.path().join(format!("{name}.partial"));
        assert!(!file.exists() && partial.exists() == (name == "export"), "{name}");
        tokio::task::block_in_place(|| server.start_again()).unwrap();
        place.run_command(command()).await.expect(0);
        assert!(file.exists() && !partial.exists());
    }
}
