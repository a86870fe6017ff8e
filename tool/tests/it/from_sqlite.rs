//! `docs/from-sqlite.md`: its commands, as they are written.

use std::{env, fs, path::Path, process::Command};

use matrix_sdk_crypto::store::CryptoStore;

use crate::{
    import_sqlite::files::{Folder, Mode, PASSPHRASE},
    support::{self, Place, run},
};

const PAGE: &str = include_str!("../../../docs/from-sqlite.md");

/// The blocks of commands, one after the other.
fn commands() -> Vec<String> {
    let blocks = PAGE.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks
        .flat_map(str::lines)
        .map(|line| line.trim().to_owned())
        .filter(|l| !l.is_empty())
        .collect()
}

/// A shell in the folder, which finds the tool and the secrets.
fn shell(place: &Place, folder: &Path, line: &str) -> Command {
    let tool = Path::new(env!("CARGO_BIN_EXE_matrix-postgres")).parent().unwrap();
    let path = env::join_paths(
        std::iter::once(tool.to_owned()).chain(env::split_paths(&env::var_os("PATH").unwrap())),
    );
    let mut shell = Command::new("sh");
    shell.args(["-ec", line]).current_dir(folder).env("PATH", path.unwrap());
    shell.env("DATABASE_URL", place.url()).env("STORE_PASSPHRASE", support::PASSPHRASE);
    shell.env("SQLITE_PASSPHRASE", PASSPHRASE).env("KEYS_PASSPHRASE", "a key file's");
    shell.env("BACKUP_PASSPHRASE", "a backup's");
    shell
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_the_page_does_what_it_says() {
    let (place, folder) = (Place::new(), tempfile::tempdir().unwrap());
    let packed = Folder::of_version("sqlite-0.14.0", Mode::Passphrase.name());
    fs::create_dir(folder.path().join("store")).unwrap();
    fs::copy(packed.file(), folder.path().join("store/matrix-sdk-crypto.sqlite3")).unwrap();
    let commands = commands();
    assert_eq!(commands.len(), 8, "{commands:#?}");
    let restored = Place::new();
    for line in &commands {
        let mut at = &place;
        if line.starts_with("matrix-postgres import-keys") {
            // It has a device of its own.
            let account = matrix_sdk_crypto::Account::with_device_id(
                ruma::user_id!("@other:example.org"),
                ruma::device_id!("OTHER"),
            );
            let store = place.open("my-other-bot").await;
            let pending =
                matrix_sdk_crypto::store::types::PendingChanges { account: Some(account) };
            store.save_pending_changes(pending).await.unwrap();
            store.close().await.unwrap();
        }
        if line == "matrix-postgres restore my-bot.age" {
            at = &restored;
        }
        let mut shell = shell(at, folder.path(), line);
        let ran = tokio::task::spawn_blocking(move || run(&mut shell)).await.unwrap();
        assert_eq!(ran.code, 0, "{line}\n{}\n{}", ran.out, ran.err);
    }
    assert!(folder.path().join("store-moved-to-postgresql").is_dir());
    let mine = place.open("my-bot").await.get_inbound_group_sessions().await.unwrap().len();
    let imported = place.open("my-other-bot").await;
    assert_eq!(imported.get_inbound_group_sessions().await.unwrap().len(), mine);
    let restored = restored.open("my-bot").await;
    assert_eq!(restored.get_inbound_group_sessions().await.unwrap().len(), mine);
    assert!(mine > 0);
}
