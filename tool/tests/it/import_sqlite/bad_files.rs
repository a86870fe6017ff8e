//! Files that cannot be imported: a clear error, the file and the account as they were.

use std::fs::{self, OpenOptions};

use matrix_sdk_crypto::{
    Account,
    store::{CryptoStore, types::PendingChanges},
};
use rusqlite::Connection;

use super::files::{FILE, Folder, KEY, Mode, PASSPHRASE, check, close, filled, import};
use crate::support::{Place, Ran, run};

/// Runs the check and the import: both fail alike, and change nothing.
async fn fails(folder: &Folder, mode: Mode, code: i32) -> Ran {
    let place = Place::new();
    let before = folder.state();
    let checked = place.run_command(check(folder, mode)).await.expect(code);
    let imported = place.run_command(import(&place, folder, mode, "bot")).await.expect(code);
    assert_eq!(checked.err, imported.err);
    assert_eq!(folder.state(), before);
    // Not even the schema was made.
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'matrix_sdk'";
    assert_eq!(place.number(schemas).await, 0);
    checked
}

fn change(folder: &Folder, sql: &str) {
    let connection = Connection::open(folder.file()).unwrap();
    connection.execute_batch(sql).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_database_an_empty_file_and_none_at_all() {
    let folder = Folder::new();
    let ran = fails(&folder, Mode::Plain, 1).await;
    assert!(ran.err.contains("No such file"), "{}", ran.err);
    for content in [&b""[..], b"SQLite", b"this is a text of more than sixteen bytes"] {
        fs::write(folder.file(), content).unwrap();
        let ran = fails(&folder, Mode::Plain, 1).await;
        assert!(ran.err.contains("is not a SQLite database"), "{}", ran.err);
    }
    // A pipe without a writer.
    fs::remove_file(folder.file()).unwrap();
    let made = std::process::Command::new("mkfifo").arg(folder.file()).status().unwrap();
    assert!(made.success());
    let ran = run(&mut check(&folder, Mode::Plain)).expect(1);
    assert!(ran.err.contains("is not a SQLite database"), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_file() {
    let (folder, _) = filled(Mode::Plain).await;
    let whole = fs::metadata(folder.file()).unwrap().len();
    for length in [whole - 4096, whole / 2, 4096, 100] {
        let file = OpenOptions::new().write(true).open(folder.file()).unwrap();
        file.set_len(length).unwrap();
        let ran = fails(&folder, Mode::Plain, 1).await;
        assert!(ran.err.contains("truncated or damaged"), "{length}: {}", ran.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_schema_and_another_database() {
    let (folder, _) = filled(Mode::Plain).await;
    change(&folder, "UPDATE kv SET value = x'14' WHERE key = 'version'");
    let ran = fails(&folder, Mode::Plain, 1).await;
    assert!(ran.err.contains("has version 20 of the schema, this program knows 19"), "{}", ran.err);

    let other = Folder::new();
    change(&other, "CREATE TABLE kv (key TEXT, value BLOB); CREATE TABLE room_info (data BLOB)");
    let ran = fails(&other, Mode::Plain, 1).await;
    assert!(ran.err.contains("no crypto store of matrix-sdk-sqlite"), "{}", ran.err);

    let empty = Folder::new();
    close(Mode::Plain.open(empty.path()).await, &empty).await;
    let ran = fails(&empty, Mode::Plain, 1).await;
    assert!(ran.err.contains("holds no account yet"), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_secrets() {
    for mode in Mode::ALL {
        let (folder, _) = filled(mode).await;
        let before = folder.state();
        for (variable, value, opens, error) in [
            ("SQLITE_PASSPHRASE", "not the secret".to_owned(), None, "wrong passphrase or key"),
            ("SQLITE_KEY", "08".repeat(32), None, "wrong passphrase or key"),
            ("SQLITE_PASSPHRASE", PASSPHRASE.to_owned(), Some(Mode::Passphrase), ""),
            ("SQLITE_KEY", hex(&KEY), Some(Mode::Key), ""),
        ] {
            let mut command = check(&folder, Mode::Plain);
            command.env(variable, &value);
            let ran = run(&mut command);
            let fits = (variable == "SQLITE_KEY") == (mode == Mode::Key);
            let error = match mode {
                Mode::Plain => "is not encrypted, but a passphrase or key for it was given",
                _ if opens == Some(mode) => "",
                _ if fits => error,
                Mode::Key => "is encrypted with a key, but a passphrase was given",
                Mode::Passphrase => "is encrypted with a passphrase, but a key was given",
            };
            assert_eq!(ran.code, i32::from(!error.is_empty()), "{mode:?} {variable} {}", ran.err);
            assert!(ran.err.contains(error), "{mode:?} {variable} {}", ran.err);
            assert!(!ran.err.contains(&value), "{}", ran.err);
        }
        let ran = run(&mut check(&folder, Mode::Plain));
        assert_eq!(ran.code, i32::from(mode != Mode::Plain));
        assert_eq!(folder.state(), before);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_only_a_newer_build_can_open_is_named() {
    let folder = Folder::of_version("sqlite-0.19.1", "key");
    let ran = fails(&folder, Mode::Key, 1).await;
    assert!(ran.err.contains("sealed by matrix-sdk-sqlite 0.19 or newer"), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_cannot_be_decoded_are_named_and_left_behind_only_if_asked() {
    for mode in Mode::ALL {
        let (place, (folder, _)) = (Place::new(), filled(mode).await);
        change(&folder, "UPDATE inbound_group_session SET data = x'00', rowid = 77");
        let before = folder.state();
        let checked = place.run_command(check(&folder, mode)).await.expect(3);
        assert!(checked.out.contains("1 left: cannot be decoded (rowid 77)"), "{}", checked.out);
        let refused = place.run_command(import(&place, &folder, mode, "bot")).await.expect(4);
        assert!(refused.err.contains("1 rows cannot be decoded"), "{}", refused.err);
        let mut command = import(&place, &folder, mode, "bot");
        command.arg("--skip-undecodable");
        place.run_command(command).await.expect(0);
        assert_eq!(folder.state(), before);
        let store = place.open("bot").await;
        assert_eq!(store.inbound_group_session_counts(None).await.unwrap().total, 0);
        assert!(store.load_account().await.unwrap().is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_file_into_an_account_that_is_not_must_be_asked_for() {
    let (place, (folder, _)) = (Place::new(), filled(Mode::Passphrase).await);
    let mut command = import(&place, &folder, Mode::Passphrase, "bot");
    command.env_remove("STORE_PASSPHRASE");
    let refused = place.run_command(command).await.expect(4);
    assert!(refused.err.contains("--unencrypted"), "{}", refused.err);
    let mut both = import(&place, &folder, Mode::Passphrase, "bot");
    both.arg("--unencrypted");
    let failed = place.run_command(both).await.expect(1);
    assert!(failed.err.contains("give one of them"), "{}", failed.err);
    let mut command = import(&place, &folder, Mode::Passphrase, "bot");
    command.env_remove("STORE_PASSPHRASE").arg("--unencrypted");
    place.run_command(command).await.expect(0);
}

/// The copy needs room in the folder for temporary files.
#[tokio::test(flavor = "multi_thread")]
async fn no_room_for_the_copy() {
    let (folder, _) = filled(Mode::Plain).await;
    // Larger than what SQLite keeps in memory.
    change(
        &folder,
        "CREATE TABLE filler (data BLOB);
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400)
         INSERT INTO filler SELECT randomblob(32768) FROM n; PRAGMA wal_checkpoint(TRUNCATE);",
    );
    let before = folder.state();
    let tool = check(&folder, Mode::Plain);
    // The signal would end the process before SQLite sees the error.
    let script = "trap '' XFSZ; ulimit -f 4000; exec \"$0\" \"$@\"";
    let mut limited = std::process::Command::new("bash");
    limited.args(["-c", script]).arg(tool.get_program()).args(tool.get_args());
    let ran = run(&mut limited).expect(1);
    assert!(ran.err.contains("the temporary copy cannot be written"), "{}", ran.err);
    assert_eq!(folder.state(), before);
    assert!(folder.path().join(FILE).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_id_is_not_sent_to_the_terminal_as_it_is() {
    let (folder, place) = (Folder::new(), Place::new());
    let store = Mode::Plain.open(folder.path()).await;
    let device_id = ruma::OwnedDeviceId::from("\u{1b}]0;title\u{7}DEVICE");
    let account = Account::with_device_id(ruma::user_id!("@bot:example.org"), &device_id);
    store.save_pending_changes(PendingChanges { account: Some(account) }).await.unwrap();
    close(store, &folder).await;
    let checked = place.run_command(check(&folder, Mode::Plain)).await.expect(0);
    let command = || import(&place, &folder, Mode::Plain, "bot");
    let imported = place.run_command(command()).await.expect(0);
    let refused = place.run_command(command()).await.expect(4);
    for text in [checked.out, imported.out, refused.err] {
        assert!(!text.contains(['\u{1b}', '\u{7}']), "{text:?}");
        assert!(text.contains("\\u{1b}]0;title\\u{7}DEVICE"), "{text:?}");
    }
}
