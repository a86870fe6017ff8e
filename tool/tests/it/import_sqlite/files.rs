//! SQLite files, and how a change of them is detected.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use flate2::read::GzDecoder;
use matrix_sdk_crypto::store::{CryptoStore, types::PendingChanges};
use matrix_sdk_sqlite::SqliteCryptoStore;
use serde_json::Value;
use tempfile::TempDir;
use test_support::fixture::Fixture;

use crate::support::Place;

pub const FILE: &str = "matrix-sdk-crypto.sqlite3";
/// What `scripts/sqlite-fixtures` encrypts with.
pub const PASSPHRASE: &str = "fixture passphrase";
pub const KEY: [u8; 32] = [7; 32];

/// How a file is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Plain,
    Passphrase,
    Key,
}

impl Mode {
    pub const ALL: [Self; 3] = [Self::Plain, Self::Passphrase, Self::Key];

    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Passphrase => "passphrase",
            Self::Key => "key",
        }
    }

    /// Gives the tool what opens the file.
    pub fn unlock(self, command: &mut Command) {
        match self {
            Self::Plain => {}
            Self::Passphrase => _ = command.env("SQLITE_PASSPHRASE", PASSPHRASE),
            Self::Key => _ = command.env("SQLITE_KEY", "07".repeat(32)),
        }
    }

    /// Opens a store with matrix-sdk-sqlite of this version.
    pub async fn open(self, folder: &Path) -> SqliteCryptoStore {
        match self {
            Self::Plain => SqliteCryptoStore::open(folder, None).await,
            Self::Passphrase => SqliteCryptoStore::open(folder, Some(PASSPHRASE)).await,
            Self::Key => SqliteCryptoStore::open_with_key(folder, Some(&KEY)).await,
        }
        .unwrap()
    }
}

/// Saves a row in nearly every table.
pub async fn fill(store: &SqliteCryptoStore, fixture: &Fixture) {
    let account = Some(fixture.account.deep_clone());
    store.save_pending_changes(PendingChanges { account }).await.unwrap();
    store.save_changes(fixture.changes()).await.unwrap();
}

/// A closed file with a row in nearly every table.
pub async fn filled(mode: Mode) -> (Folder, Fixture) {
    let (folder, fixture) = (Folder::new(), Fixture::new().await);
    let store = mode.open(folder.path()).await;
    fill(&store, &fixture).await;
    close(store, &folder).await;
    (folder, fixture)
}

/// A folder with the files of a bot.
pub struct Folder(TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// With a file that another version of matrix-sdk-sqlite made.
    pub fn of_version(version: &str, name: &str) -> Self {
        let folder = Self::new();
        let packed = fixtures().join(version).join(format!("{name}.sqlite3.gz"));
        let packed = fs::File::open(packed).unwrap();
        let mut file = fs::File::create(folder.file()).unwrap();
        io::copy(&mut GzDecoder::new(packed), &mut file).unwrap();
        folder
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn file(&self) -> PathBuf {
        self.path().join(FILE)
    }

    /// Name, content and time of change of every file, but for the lock file of SQLite's log.
    pub fn state(&self) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
        let files = fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().path());
        // One that is deleted meanwhile is not there.
        let state = |path: PathBuf| {
            let changed = fs::metadata(&path).ok()?.modified().unwrap();
            Some((path.clone(), (fs::read(path).ok()?, changed)))
        };
        files.filter_map(state).collect()
    }
}

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Closes a store. Its connections are closed on threads of their own; the last one of the folder
/// deletes the logs.
pub async fn close(store: SqliteCryptoStore, folder: &Folder) {
    store.close().await.unwrap();
    drop(store);
    let has_log = || folder.state().keys().any(|file| file.to_str().unwrap().contains("-wal"));
    while has_log() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// What the fixtures of a version expect.
pub fn expected(version: &str) -> Value {
    let text = fs::read_to_string(fixtures().join(version).join("expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The tool, about to import the folder's file into an encrypted account.
pub fn import(place: &Place, folder: &Folder, mode: Mode, account: &str) -> Command {
    let path = folder.path().to_str().unwrap();
    let mut command = place.command(&["import", "sqlite", path, "--account", account]);
    command.env("STORE_PASSPHRASE", crate::support::PASSPHRASE);
    mode.unlock(&mut command);
    command
}

/// The tool, about to read the folder's file; without a database.
pub fn check(folder: &Folder, mode: Mode) -> Command {
    let path = folder.path().to_str().unwrap();
    let mut command = crate::support::binary();
    command.args(["import", "sqlite", path, "--check"]);
    mode.unlock(&mut command);
    command
}
