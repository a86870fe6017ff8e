//! A disk that is full: the server's, and that of the file that is written.
//!
//! Each is tested with a limit for the size of a file, which needs no privilege, and where it may be mounted
//! with a small file system, too.

use std::{
    ffi::OsString,
    fs,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::PathBuf,
    process::Command,
};

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::testing::PostgresServer;
use tempfile::TempDir;
use test_support::{connect, disk::Disk, privileges::may_mount};

use crate::{
    import_sqlite::files::{self, Folder, Mode},
    keys,
    support::{Place, Ran},
};

/// What makes a disk full.
#[derive(Debug, Clone, Copy)]
enum Means {
    Limit,
    FileSystem,
}

fn means() -> Vec<Means> {
    match may_mount() {
        true => vec![Means::Limit, Means::FileSystem],
        false => {
            println!("NOT TESTED, root is required: small file systems; tested with limits");
            vec![Means::Limit]
        }
    }
}

/// Of large values, which cannot be compressed.
fn random(bytes: usize) -> Vec<u8> {
    std::iter::repeat_with(|| fastrand::u8(..)).take(bytes).collect()
}

/// A folder for files that has room for 256 kB.
enum Room {
    Limit(TempDir),
    FileSystem(Disk),
}

impl Room {
    fn new(means: Means) -> Self {
        match means {
            Means::Limit => Self::Limit(tempfile::tempdir().unwrap()),
            Means::FileSystem => Self::FileSystem(Disk::new("256k")),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        match self {
            Self::Limit(folder) => folder.path().join(name),
            Self::FileSystem(disk) => disk.path().join(name),
        }
    }

    /// The command within the limit, if that is what there is. Without the trap its signal would end it.
    fn within(&self, command: &Command) -> Command {
        let mut wrapped = Command::new("sh");
        if let Self::Limit(_) = self {
            wrapped.args(["-c", r#"trap "" XFSZ; exec prlimit --fsize=262144 "$@""#, "sh"]);
        } else {
            wrapped.args(["-c", r#"exec "$@""#, "sh"]);
        }
        wrapped.arg(command.get_program()).args(command.get_args()).env_clear();
        wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        wrapped
    }

    fn grow(&self) {
        if let Self::FileSystem(disk) = self {
            disk.resize("64m");
        }
    }

    fn names(&self) -> Vec<OsString> {
        let folder = self.file("").read_dir().unwrap();
        folder.map(|entry| entry.unwrap().file_name()).collect()
    }
}

fn says_full(ran: &Ran) -> bool {
    ran.err.contains("No space left on device") || ran.err.contains("File too large")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_to_a_full_disk_goes_on_when_there_is_room() {
    let place = Place::new();
    let store = keys::filled(&place, "bot", 1_500).await;
    for means in means() {
        let room = Room::new(means);
        let file = room.file("keys.txt");
        let path = file.to_str().unwrap();
        let export = || keys::tool(&place, "export-keys", "bot", path);
        // However often.
        for _ in 0..2 {
            let failed = place.run_command(room.within(&export())).await.expect(1);
            assert!(says_full(&failed) && failed.err.contains("keys.txt.partial"), "{failed:?}");
            assert!(failed.err.contains("the same command goes on"), "{failed:?}");
            assert_eq!(room.names(), ["keys.txt.partial"], "{means:?}");
        }
        room.grow();
        let ran = place.run_command(export()).await.expect(0);
        assert!(ran.out.contains("of them before"), "{means:?}: {ran:?}");
        assert_eq!(room.names(), ["keys.txt"]);
        assert_eq!(keys::read(path), keys::keys_of(&store).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_to_a_full_disk_leaves_nothing() {
    let place = Place::new();
    let store = place.open("bot").await;
    store.set_custom_value("large", random(1_000_000)).await.unwrap();
    for means in means() {
        let room = Room::new(means);
        let file = room.file("bot.age");
        let backup = || {
            let args = ["backup", "--account", "bot", file.to_str().unwrap()];
            let mut command = place.command(&args);
            command.env("BACKUP_PASSPHRASE", "backup");
            command
        };
        let failed = place.run_command(room.within(&backup())).await.expect(1);
        assert!(says_full(&failed) && failed.err.contains("bot.age.partial"), "{failed:?}");
        assert!(failed.err.contains("nothing is left of it"), "{failed:?}");
        assert!(room.names().is_empty(), "{means:?}: {:?}", room.names());
        room.grow();
        place.run_command(backup()).await.expect(0);
        assert_eq!(room.names(), ["bot.age"]);
    }
}

/// How many MB the tests below write: more than there is room for.
const VALUES: usize = 4;
/// What another account has in the same table. A limit must leave room for files of the log, of 16 MiB.
const OTHER: &str = "
INSERT INTO matrix_sdk.custom_values (account_id, key, data)
SELECT id, '\\x01', (SELECT decode(string_agg(md5(random()::text), ''), 'hex') FROM generate_series(1, 950000))
FROM matrix_sdk.accounts";

/// A database on a server with room for less.
struct FullServer {
    place: Place,
    server: PostgresServer,
    disk: Option<Disk>,
}

impl FullServer {
    async fn new(means: Means) -> Self {
        let server = PostgresServer::start().unwrap();
        let place = Place { database: server.create_database().unwrap() };
        place.open("other").await.close().await.unwrap();
        place.client().await.batch_execute(OTHER).await.unwrap();
        let mut full = Self { place, server, disk: None };
        match means {
            Means::Limit => full.limit("18000000:"),
            Means::FileSystem => full.disk = Some(full.move_to_disk().await),
        }
        full
    }

    /// Moves the database to a disk of its own.
    async fn move_to_disk(&self) -> Disk {
        let disk = Disk::new("26m");
        let folder = disk.path().join("tables");
        fs::create_dir(&folder).unwrap();
        let owner = format!("--reference={}", self.server.data_directory().display());
        let status = Command::new("chown").arg(owner).arg(disk.path()).arg(&folder).status();
        assert!(status.unwrap().success());
        let admin = connect(&self.server.url()).await;
        let make = format!("CREATE TABLESPACE small LOCATION '{}'", folder.display());
        admin.batch_execute(&make).await.unwrap();
        let name = self.place.database.name();
        let moved = format!("ALTER DATABASE {name} SET TABLESPACE small");
        admin.batch_execute(&moved).await.unwrap();
        disk
    }

    /// For the size of the files of processes that start from now on.
    fn limit(&self, limit: &str) {
        let pid = self.server.pid().unwrap().to_string();
        let limit = format!("--fsize={limit}");
        let owner = fs::metadata(self.server.data_directory()).unwrap();
        // As the server's own user: root may not have the right in a container.
        let mut prlimit = Command::new("prlimit");
        prlimit.args(["--pid", &pid, &limit]).uid(owner.uid()).gid(owner.gid());
        assert!(prlimit.status().unwrap().success());
    }

    fn grow(&self) {
        match &self.disk {
            Some(disk) => disk.resize("500m"),
            None => self.limit("unlimited:"),
        }
    }
}

fn says_full_server(ran: &Ran) -> bool {
    ran.err.contains("could not extend file") || ran.err.contains("53100")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_into_a_full_database_goes_on_when_there_is_room() {
    let (folder, fixture) = (Folder::new(), test_support::fixture::Fixture::new().await);
    let store = Mode::Passphrase.open(folder.path()).await;
    files::fill(&store, &fixture).await;
    for number in 0..VALUES {
        store.set_custom_value(&format!("large {number}"), random(1_000_000)).await.unwrap();
    }
    files::close(store, &folder).await;
    for means in means() {
        let full = FullServer::new(means).await;
        let before = folder.state();
        let import = || files::import(&full.place, &folder, Mode::Passphrase, "bot");
        let failed = full.place.run_command(import()).await.expect(1);
        assert!(says_full_server(&failed), "{failed:?}");
        assert!(failed.err.contains("run the same command again, and it goes on"), "{failed:?}");
        assert_eq!(folder.state(), before);
        let device = "SELECT count(*) FROM matrix_sdk.account_data WHERE item = 1";
        assert_eq!(full.place.number(device).await, 0, "{means:?}");
        full.grow();
        let ran = full.place.run_command(import()).await.expect(0);
        assert!(ran.out.contains("read back and is the same"), "{}", ran.out);
        let account = full.place.open("bot").await.load_account().await.unwrap().unwrap();
        assert_eq!(account.identity_keys(), fixture.account.identity_keys());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_into_a_full_database_leaves_nothing() {
    let (source, folder) = (Place::new(), tempfile::tempdir().unwrap());
    let store = source.open("bot").await;
    for number in 0..VALUES {
        store.set_custom_value(&format!("large {number}"), random(1_000_000)).await.unwrap();
    }
    store.close().await.unwrap();
    let file = folder.path().join("bot.age").to_str().unwrap().to_owned();
    let tool = |place: &Place, args: &[&str]| {
        let mut command = place.command(args);
        command.env("BACKUP_PASSPHRASE", "backup");
        command
    };
    let backup = tool(&source, &["backup", "--account", "bot", &file]);
    source.run_command(backup).await.expect(0);
    for means in means() {
        let full = FullServer::new(means).await;
        let restore = || tool(&full.place, &["restore", &file]);
        let failed = full.place.run_command(restore()).await.expect(1);
        assert!(says_full_server(&failed), "{failed:?}");
        for table in ["accounts", "custom_values"] {
            let count = format!("SELECT count(*) FROM matrix_sdk.{table}");
            assert_eq!(full.place.number(&count).await, 1, "{means:?}");
        }
        full.grow();
        full.place.run_command(restore()).await.expect(0);
        let values = "SELECT count(*) FROM matrix_sdk.custom_values";
        assert_eq!(full.place.number(values).await, 1 + VALUES as i64);
    }
}
