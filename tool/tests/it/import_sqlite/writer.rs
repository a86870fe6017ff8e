//! A file that a bot has open, and one that was left open by a bot that was killed.

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use matrix_sdk_crypto::store::{CryptoStore, types::Changes};
use matrix_sdk_sqlite::SqliteCryptoStore;

use super::files::{FILE, Folder, Mode, check, fill, filled, import};
use test_support::fixture::Fixture;

use crate::support::Place;

/// Both are saved in one transaction, so a copy that has one of them has the other.
async fn save_pair(store: &SqliteCryptoStore, number: u64) {
    let changes = Changes {
        next_batch_token: Some(number.to_string()),
        backup_version: Some(number.to_string()),
        ..Changes::default()
    };
    store.save_changes(changes).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_consistent_while_a_writer_commits() {
    let (place, folder, fixture) = (Place::new(), Folder::new(), Fixture::new().await);
    let store = Mode::Passphrase.open(folder.path()).await;
    fill(&store, &fixture).await;
    save_pair(&store, 0).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (store, stop) = (store.clone(), stop.clone());
        async move {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                save_pair(&store, number).await;
            }
            number
        }
    });
    let mut seen = Vec::new();
    for attempt in 0..5 {
        let account = format!("bot {attempt}");
        let ran = place.run_command(import(&place, &folder, Mode::Passphrase, &account)).await;
        ran.expect(0);
        let copied = place.open(&account).await;
        let token = copied.next_batch_token().await.unwrap().unwrap();
        let version = copied.load_backup_keys().await.unwrap().backup_version.unwrap();
        assert_eq!(token, version);
        seen.push(token.parse::<u64>().unwrap());
    }
    stop.store(true, Ordering::Relaxed);
    let last = writer.await.unwrap();
    // The writer went on, and each copy is newer than the one before.
    assert!(seen.is_sorted_by(|a, b| a < b) && seen[4] <= last, "{seen:?} {last}");
}

/// How a write to a file is detected. The `-shm` file holds locks and no data.
fn data(folder: &Folder) -> BTreeMap<std::path::PathBuf, (Vec<u8>, std::time::SystemTime)> {
    let mut state = folder.state();
    assert_eq!(state.len(), 3, "{:?}", state.keys());
    state.remove(&folder.path().join(format!("{FILE}-shm"))).unwrap();
    state
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_open_is_not_written_to() {
    let (place, folder, fixture) = (Place::new(), Folder::new(), Fixture::new().await);
    let store = Mode::Passphrase.open(folder.path()).await;
    fill(&store, &fixture).await;
    let before = data(&folder);
    let ran = place.run_command(import(&place, &folder, Mode::Passphrase, "bot")).await.expect(0);
    assert!(ran.out.contains("read back and is the same"), "{}", ran.out);
    assert_eq!(data(&folder), before);
    // And its owner goes on.
    save_pair(&store, 1).await;
}

/// Set in the process that is killed.
const VICTIM: &str = "IMPORT_SQLITE_VICTIM";

/// Not a test by itself: the program that the next test kills.
#[tokio::test(flavor = "multi_thread")]
async fn victim() {
    let Some(path) = std::env::var_os(VICTIM) else { return };
    let store = Mode::Passphrase.open(path.as_ref()).await;
    let fixture = Fixture::new().await;
    fill(&store, &fixture).await;
    fs::write(std::path::Path::new(&path).join("ready"), "").unwrap();
    std::future::pending().await
}

/// What a bot left that was killed before its log was written into the file.
async fn left_by_a_killed_bot() -> Folder {
    let folder = Folder::new();
    let mut victim = Command::new(std::env::current_exe().unwrap());
    victim.args(["--exact", "import_sqlite::writer::victim"]).env(VICTIM, folder.path());
    let mut victim = victim.stdout(Stdio::null()).spawn().unwrap();
    while !folder.path().join("ready").exists() {
        assert_eq!(victim.try_wait().unwrap(), None, "the victim has ended");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    victim.kill().unwrap();
    victim.wait().unwrap();
    fs::remove_file(folder.path().join("ready")).unwrap();
    assert_eq!(folder.state().len(), 3, "{:?}", folder.state().keys());
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_bot_left_is_read_with_its_log_and_not_written_to() {
    let (place, folder) = (Place::new(), left_by_a_killed_bot().await);
    let before = folder.state();
    place.run_command(import(&place, &folder, Mode::Passphrase, "bot")).await.expect(0);
    assert_eq!(folder.state(), before);

    // A copy of the file with its log, but without the lock file.
    let copied = Folder::new();
    for suffix in ["", "-wal"] {
        let name = format!("{FILE}{suffix}");
        fs::copy(folder.path().join(&name), copied.path().join(&name)).unwrap();
    }
    let before = copied.state();
    let ran = place.run_command(check(&copied, Mode::Passphrase)).await.expect(0);
    assert!(ran.out.contains("device ALICESDEVICE"), "{}", ran.out);
    assert_eq!(copied.state(), before);
}

/// SQLite keeps the log beside the file itself.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_found_behind_a_symbolic_link() {
    let (place, folder, linked) = (Place::new(), left_by_a_killed_bot().await, Folder::new());
    std::os::unix::fs::symlink(folder.file(), linked.file()).unwrap();
    let before = folder.state();
    place.run_command(import(&place, &linked, Mode::Passphrase, "bot")).await.expect(0);
    assert_eq!(folder.state(), before);
    assert!(place.open("bot").await.next_batch_token().await.unwrap().is_some());
}

/// Of a file without a write-ahead log, as on some network disks: a transaction that was not ended has
/// changed the file, and its journal takes that back.
#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_transaction_is_taken_back_with_its_journal() {
    let (folder, _) = filled(Mode::Plain).await;
    let copied = Folder::new();
    let connection = rusqlite::Connection::open(folder.file()).unwrap();
    connection
        .execute_batch(
            "PRAGMA journal_mode = DELETE; PRAGMA cache_size = 1; BEGIN IMMEDIATE;
             UPDATE kv SET value = x'14' WHERE key = 'version';
             CREATE TABLE filler (data BLOB);
             WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200)
             INSERT INTO filler SELECT randomblob(4096) FROM n",
        )
        .unwrap();
    for suffix in ["", "-journal"] {
        let name = format!("{FILE}{suffix}");
        fs::copy(folder.path().join(&name), copied.path().join(&name)).unwrap();
    }
    drop(connection);
    let before = copied.state();
    let ran = crate::support::run(&mut check(&copied, Mode::Plain)).expect(0);
    assert!(ran.out.contains("device ALICESDEVICE"), "{}", ran.out);
    assert_eq!(copied.state(), before);
}

/// A folder that cannot be written to, as of another user's bot.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_file_needs_no_right_to_write() {
    use std::os::unix::fs::PermissionsExt;
    let (place, (folder, _)) = (Place::new(), filled(Mode::Passphrase).await);
    fs::set_permissions(folder.file(), fs::Permissions::from_mode(0o400)).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o500)).unwrap();
    let before = folder.state();
    assert_eq!(before.len(), 1);
    place.run_command(check(&folder, Mode::Passphrase)).await.expect(0);
    assert_eq!(folder.state(), before);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
}
