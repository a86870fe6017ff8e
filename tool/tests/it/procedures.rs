//! Every command of the pages for operators is run as it is written.

use std::{collections::BTreeSet, path::Path, process::Command};

use matrix_sdk_crypto::store::CryptoStore;
use serde_json::json;

use crate::{
    doctor::{Homeserver, durable},
    support::{PASSPHRASE, Place, run},
};

const PAGES: [&str; 2] =
    [include_str!("../../../docs/operations.md"), include_str!("../../../docs/troubleshooting.md")];

const ACCOUNTS: [&str; 2] = ["alerts-bot", "old-bot"];

const HOMESERVER: &str = "https://matrix.example.org";

/// The commands of a page, in order: those in blocks, and those between backticks.
fn commands(page: &str) -> Vec<String> {
    let pieces = page.split('`').flat_map(|piece| piece.lines());
    let commands = pieces.map(str::trim).filter(|line| line.starts_with("matrix-postgres"));
    // The name alone is no command.
    let commands = commands.filter(|line| line.contains(' ') && !line.contains('…'));
    commands.map(ToOwned::to_owned).collect()
}

/// The bots' accounts, filled, and closed.
async fn fill(place: &Place) {
    for account in ACCOUNTS {
        let count = format!(
            "SELECT count(*) FROM matrix_sdk.sync_tokens t JOIN matrix_sdk.accounts a \
             ON a.id = t.account_id WHERE a.name = '{account}'"
        );
        if place.number(&count).await == 0 {
            place.filled(account).await.0.close().await.unwrap();
        }
    }
}

/// As a shell runs it, with the answer that a person would type.
fn shell(place: &Place, line: &str, homeserver: &Homeserver) -> Command {
    let binary = Path::new(env!("CARGO_BIN_EXE_matrix-postgres"));
    let path = [binary.parent().unwrap().to_str().unwrap(), "/usr/bin", "/bin"].join(":");
    let mut command = Command::new("sh");
    let line = line.replace(HOMESERVER, &homeserver.url);
    command.args(["-c", &format!("{line} --yes")]).env_clear().env("PATH", path);
    command.env("DATABASE_URL", place.url()).env("STORE_PASSPHRASE", PASSPHRASE);
    command.env("NEW_STORE_PASSPHRASE", PASSPHRASE).env("MATRIX_ACCESS_TOKEN", "secret-token");
    command
}

#[tokio::test]
async fn every_command_of_the_pages_works_as_it_is_written() {
    let (_server, place) = durable();
    place.run(&["migrate"]).await.expect(0);
    let homeserver = Homeserver::start();
    let own = test_support::fixture::own_device();
    homeserver
        .set("whoami", json!({ "user_id": test_support::fixture::own_user(), "device_id": own }));
    homeserver.set("keys/query", json!({ "device_keys": {} }));
    homeserver.set("keys/upload", json!({ "one_time_key_counts": {} }));
    let mut seen = BTreeSet::new();
    for line in PAGES.iter().flat_map(|page| commands(page)) {
        fill(&place).await;
        let mut command = shell(&place, &line, &homeserver);
        let ran = tokio::task::spawn_blocking(move || run(&mut command)).await.unwrap();
        // A check may find something.
        let may_find = ["doctor", "migrate status"].iter().any(|word| line.contains(word));
        assert!(ran.code == 0 || (may_find && ran.code == 3), "{line}: {ran:?}");
        if line.contains("--homeserver") {
            assert!(ran.out.contains("device keys"), "{line}: {ran:?}");
        }
        seen.insert(line.split(' ').nth(1).unwrap().to_owned());
    }
    for command in ["doctor", "self-test", "stats", "verify", "migrate", "rekey", "prune"] {
        assert!(seen.contains(command), "{command}: {seen:?}");
    }
    assert!(seen.contains("reset-device") && seen.contains("delete-account"), "{seen:?}");
}
