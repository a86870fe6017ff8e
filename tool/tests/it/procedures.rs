//! Every command of the pages for operators is run as it is written.

use std::{collections::BTreeSet, path::Path, process::Command};

use matrix_sdk_crypto::store::CryptoStore;
use serde::Serialize;
use serde_json::json;
use test_support::{fixture, pages};

use crate::{
    doctor::durable,
    homeserver::Homeserver,
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

/// A homeserver that knows the device with these keys.
fn homeserver(keys: &impl Serialize) -> Homeserver {
    let (homeserver, user, device) =
        (Homeserver::start(), fixture::own_user(), fixture::own_device());
    homeserver.set("whoami", json!({ "user_id": user, "device_id": device }));
    homeserver.set("keys/query", json!({ "device_keys": { user: { device: keys } } }));
    homeserver.set("keys/upload", json!({ "one_time_key_counts": {} }));
    homeserver
}

/// The command and what it must print, from each row of the checklist.
fn checklist() -> Vec<(&'static str, &'static str)> {
    let rows = pages::section(PAGES[0], "Production checklist").lines().map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let code = |cell: usize| cells.get(cell)?.split('`').nth(1);
        Some((code(3)?, code(4)?))
    });
    rows.flatten().collect()
}

#[tokio::test]
async fn the_checklists_commands_print_what_it_says() {
    let (_server, place) = durable();
    let (bot, _) = place.filled("alerts-bot").await;
    let keys = bot.load_account().await.unwrap().unwrap().device_keys();
    let homeserver = homeserver(&keys);
    let own = bot.own_device().await.unwrap().unwrap();
    let (version, key) = (own.backup_version, own.backup_key);
    let backup = json!({ "version": version, "auth_data": { "public_key": key } });
    homeserver.set("room_keys/version", backup);
    let checklist = checklist();
    assert_eq!(checklist.len(), 12, "{checklist:?}");
    for (line, expected) in checklist {
        let mut command = shell(&place, line, &homeserver);
        let ran = tokio::task::spawn_blocking(move || run(&mut command)).await.unwrap();
        assert_eq!(ran.code, 0, "{line}: {ran:?}");
        let mut lines =
            ran.out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        let is_check = expected.starts_with("ok ");
        let is_printed = lines.any(|line| match is_check {
            true => line.starts_with(expected),
            false => line.contains(expected),
        });
        assert!(is_printed, "{line} does not print {expected:?}: {}", ran.out);
    }
}

#[tokio::test]
async fn every_command_of_the_pages_works_as_it_is_written() {
    let (_server, place) = durable();
    place.run(&["migrate"]).await.expect(0);
    let homeserver = homeserver(&json!({}));
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
