//! Files whose names are not UTF-8.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, process::Command};

use matrix_sdk_crypto::store::CryptoStore;

use crate::{
    keys,
    support::{PASSPHRASE, Place},
};

fn tool(place: &Place, args: &[&str], file: &OsStr) -> Command {
    let mut command = place.command(args);
    command.env("STORE_PASSPHRASE", PASSPHRASE).env("KEYS_PASSPHRASE", "keys");
    command.env("BACKUP_PASSPHRASE", "backup").arg(file);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_is_not_utf_8_is_written_and_read() {
    let (place, other, folder) = (Place::new(), Place::new(), tempfile::tempdir().unwrap());
    keys::filled(&place, "bot", 3).await.close().await.unwrap();
    let [backup, exported] =
        [&b"b\xff.age"[..], b"k\xff.txt"].map(|name| folder.path().join(OsStr::from_bytes(name)));
    let file = backup.as_os_str();
    place
        .run_command(tool(&place, &["backup", "--account", "bot", "--json"], file))
        .await
        .expect(0);
    other.run_command(tool(&other, &["restore", "--check"], file)).await.expect(0);
    let ran = other.run_command(tool(&other, &["restore", "--json"], file)).await.expect(0);
    assert!(ran.json()["file"].as_str().unwrap().ends_with("b\u{fffd}.age"), "{}", ran.out);
    let export = ["export-keys", "--account", "bot", "--rounds", "1000"];
    place.run_command(tool(&place, &export, exported.as_os_str())).await.expect(0);
    let import = ["import-keys", "--account", "bot"];
    place.run_command(tool(&place, &import, exported.as_os_str())).await.expect(0);
}
