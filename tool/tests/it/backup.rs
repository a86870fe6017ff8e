//! `backup` and `restore`.

use std::{fs, process::Command};

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::PostgresStoreConfig;
use ruma::{room_id, user_id};
use tempfile::TempDir;
use test_support::{
    fixture::{CUSTOM_KEY, CUSTOM_VALUE, room},
    machine::{Relay, decrypt, encrypt, machine_of_device, open_machine},
    pooler::{self, Pooler, Release},
};

use crate::{
    doctor::durable,
    support::{Place, Ran, TextFile},
};

pub const BACKUP_PASSPHRASE: &str = "the backup's own passphrase";

pub fn path(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).to_str().unwrap().to_owned()
}

pub fn tool(place: &Place, args: &[&str]) -> Command {
    let mut tool = place.command(args);
    tool.env("BACKUP_PASSPHRASE", BACKUP_PASSPHRASE);
    tool
}

pub async fn backed_up(place: &Place, file: &str) -> Ran {
    place.run_command(tool(place, &["backup", "--account", "bot", file])).await.expect(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_restored_as_a_new_device_with_its_room_keys() {
    let (place, folder) = (Place::new(), tempfile::tempdir().unwrap());
    let file = path(&folder, "bot.age");
    let (store, fixture) = place.filled("bot").await;
    let commits = store.commit_count().await.unwrap();
    // While its owner runs, and without the account's passphrase.
    let ran = backed_up(&place, &file).await;
    assert!(ran.out.contains(&format!("{commits} commits")) && ran.out.contains("read back"));
    assert_eq!(store.commit_count().await.unwrap(), commits);
    store.set_custom_value("still", b"mine".to_vec()).await.unwrap();
    // Nothing that identifies or reveals anything is in the file.
    let bytes = fs::read(&file).unwrap();
    assert!(bytes.starts_with(b"age-encryption.org/v1"));
    assert!(!bytes.windows(3).any(|window| window == b"bot"));
    let refused = place.run_command(tool(&place, &["backup", "--account", "bot", &file])).await;
    assert!(refused.expect(4).err.contains("exists"));

    // Not over an account that is in use, or not empty.
    let restore = ["restore", &file];
    let refused = place.run_command(tool(&place, &restore)).await.expect(4);
    assert!(refused.err.contains("is in use"), "{}", refused.err);
    store.close().await.unwrap();
    let refused = place.run_command(tool(&place, &restore)).await.expect(4);
    assert!(refused.err.contains("is not empty"), "{}", refused.err);

    let other = Place::new();
    let ran = other.run_command(tool(&other, &restore)).await.expect(0);
    assert!(ran.out.contains("with a new device id"), "{}", ran.out);
    let restored = other.open("bot").await;
    assert!(restored.load_account().await.unwrap().is_none());
    assert_eq!(restored.next_batch_token().await.unwrap(), None);
    let found = restored.get_inbound_group_session(room(), fixture.inbound.session_id()).await;
    let found = found.unwrap().unwrap();
    assert!(found.backed_up());
    assert_eq!(
        found.export().await.session_key.to_base64(),
        fixture.inbound.export().await.session_key.to_base64()
    );
    let value = restored.get_custom_value(CUSTOM_KEY).await.unwrap();
    assert_eq!(value.as_deref(), Some(CUSTOM_VALUE));
    assert!(restored.load_identity().await.unwrap().is_some());
    assert!(restored.commit_count().await.unwrap() >= commits);
}

/// Sealed or not, the account's key is in the file, and nowhere else.
#[tokio::test(flavor = "multi_thread")]
async fn the_account_key_is_not_printed() {
    let (place, folder) = (Place::new(), tempfile::tempdir().unwrap());
    let file = path(&folder, "bot.age");
    drop(place.filled("bot").await);
    let sql = "SELECT encode(cipher, 'hex') FROM matrix_sdk.accounts";
    let cipher: String = place.client().await.query_one(sql, &[]).await.unwrap().get(0);
    let other = Place::new();
    for (at, args) in [
        (&place, vec!["backup", "--account", "bot", "--json", &file]),
        (&other, vec!["restore", "--check", "--json", &file]),
        (&other, vec!["restore", "--json", &file]),
    ] {
        let ran = at.run_command(tool(at, &args)).await.expect(0);
        assert_eq!(ran.json()["backup"]["account"], "bot");
        assert!(ran.json()["backup"].get("cipher").is_none(), "{}", ran.out);
        assert!(!ran.out.contains(&cipher[..64]), "{}", ran.out);
    }
}

/// Real machines: the new device reads what the old one could, and talks.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_bot_reads_old_messages_and_goes_on_as_another_device() {
    let (place, folder) = (Place::new(), tempfile::tempdir().unwrap());
    let file = path(&folder, "bot.age");
    let (bot_id, bob_id) = (user_id!("@bot:example.org"), user_id!("@bob:example.org"));
    let room_id = room_id!("!room:example.org");
    let mut relay = Relay::default();
    let bot = open_machine(bot_id, place.open("bot").await).await;
    let bob = open_machine(bob_id, place.open("bob").await).await;
    relay.serve(&bot).await;
    relay.serve(&bob).await;
    relay.track(&bob, &[bot_id]).await;
    relay.share(&bob, room_id, &[bot_id]).await;
    let old = encrypt(&bob, room_id, "before the backup").await;
    relay.sync(&bot, "s1").await;
    backed_up(&place, &file).await;
    drop(bot);

    let other = Place::new();
    other.run_command(tool(&other, &["restore", &file])).await.expect(0);
    let bot = machine_of_device(bot_id, "ANOTHER", other.open("bot").await).await;
    assert_eq!(decrypt(&bot, room_id, &old).await, "before the backup");
    relay.serve(&bot).await;
    relay.fetch(&bob, bot_id).await;
    let second = room_id!("!second:example.org");
    relay.share(&bob, second, &[bot_id]).await;
    let new = encrypt(&bob, second, "after the restore").await;
    let waiting = relay.waiting_for(bot_id);
    assert!(!waiting.is_empty());
    relay.sync(&bot, "s2").await;
    assert_eq!(decrypt(&bot, second, &new).await, "after the restore");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_device_goes_on_only_with_a_proof() {
    let (place, folder) = (Place::new(), tempfile::tempdir().unwrap());
    let file = path(&folder, "bot.age");
    let (store, fixture) = place.filled("bot").await;
    store.close().await.unwrap();
    let commits = place.number("SELECT commits FROM matrix_sdk.account_lanes").await;
    backed_up(&place, &file).await;

    let other = Place::new();
    let without = tool(&other, &["restore", &file, "--same-device"]);
    let refused = other.run_command(without).await.expect(4);
    assert!(refused.err.contains("needs a proof"), "{}", refused.err);
    let newer = (commits + 1).to_string();
    let old = tool(&other, &["restore", &file, "--same-device", "--checkpoint", &newer]);
    let refused = other.run_command(old).await.expect(4);
    assert!(refused.err.contains("its ratchets are old"), "{}", refused.err);
    let checkpoint = commits.to_string();
    let same = tool(&other, &["restore", &file, "--same-device", "--checkpoint", &checkpoint]);
    other.run_command(same).await.expect(0);
    let account = other.open("bot").await.load_account().await.unwrap().unwrap();
    assert_eq!(account.identity_keys(), fixture.account.identity_keys());

    // Or it is taken from where it is now.
    let url = TextFile::new(&place.url());
    let moved = ["restore", &file, "--same-device", "--from-url-file", url.path(), "--yes"];
    let third = Place::new();
    let unanswered = tool(&third, &moved[..moved.len() - 1]);
    let refused = third.run_command(unanswered).await.expect(4);
    assert!(refused.err.contains("it is removed there"), "{}", refused.err);
    let store = place.open("bot").await;
    let refused = third.run_command(tool(&third, &moved)).await.expect(4);
    assert!(refused.err.contains("is in use"), "{}", refused.err);
    store.close().await.unwrap();
    third.run_command(tool(&third, &moved)).await.expect(0);
    let account = third.open("bot").await.load_account().await.unwrap().unwrap();
    assert_eq!(account.identity_keys(), fixture.account.identity_keys());
    let store = place.open("bot").await;
    assert!(store.load_account().await.unwrap().is_none());
    store.close().await.unwrap();
    // Not a second time, although the source has as many commits as the backup still.
    let fourth = Place::new();
    let refused = fourth.run_command(tool(&fourth, &moved)).await.expect(4);
    let way = format!("--same-device --checkpoint {commits}");
    assert!(refused.err.contains("has no device"), "{}", refused.err);
    assert!(refused.err.contains(&way), "{}", refused.err);
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'matrix_sdk'";
    assert_eq!(fourth.number(schemas).await, 0);
    // Or the source has gone on.
    let store = place.open("bot").await;
    store.set_custom_value("more", b"more".to_vec()).await.unwrap();
    store.close().await.unwrap();
    let failed = fourth.run_command(tool(&fourth, &moved)).await.expect(4);
    assert!(failed.err.contains("its ratchets are old"), "{}", failed.err);
    // Not even the schema was made.
    assert_eq!(fourth.number(schemas).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn for_a_public_key() {
    let (place, folder) = (Place::new(), tempfile::tempdir().unwrap());
    let file = path(&folder, "bot.age");
    drop(place.filled("bot").await);
    let identity = age::x25519::Identity::generate();
    let public = identity.to_public().to_string();
    let args = ["backup", "--account", "bot", "--recipient", &public, &file];
    place.run_command(place.command(&args)).await.expect(0);

    let other = Place::new();
    let failed = other.run_command(tool(&other, &["restore", &file])).await.expect(1);
    assert!(failed.err.contains("--identity-file"), "{}", failed.err);
    use age::secrecy::ExposeSecret;
    let key = TextFile::new(&format!("# a comment\n{}\n", identity.to_string().expose_secret()));
    let check = other.command(&["restore", &file, "--check", "--identity-file", key.path()]);
    let checked = other.run_command(check).await.expect(0);
    assert!(checked.out.contains("account \"bot\""), "{}", checked.out);
    let restore = other.command(&["restore", &file, "--identity-file", key.path()]);
    other.run_command(restore).await.expect(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_backups_change_nothing() {
    let (place, folder) = (Place::new(), tempfile::tempdir().unwrap());
    let whole = path(&folder, "bot.age");
    drop(place.filled("bot").await);
    backed_up(&place, &whole).await;
    let bytes = fs::read(&whole).unwrap();
    let (file, other) = (path(&folder, "bad.age"), Place::new());
    let mut changed = bytes.clone();
    let at = changed.len() - 20;
    changed[at] ^= 1;
    for bytes in [&b""[..], b"no backup", &bytes[..bytes.len() - 1], &bytes[..300], &changed] {
        fs::write(&file, bytes).unwrap();
        for args in [&["restore", &file, "--check"][..], &["restore", &file]] {
            let failed = other.run_command(tool(&other, args)).await.expect(1);
            assert!(failed.err.starts_with("error: "), "{}", failed.err);
        }
    }
    let mut wrong = tool(&other, &["restore", &whole]);
    wrong.env("BACKUP_PASSPHRASE", "wrong");
    let failed = other.run_command(wrong).await.expect(1);
    assert!(failed.err.contains("wrong passphrase"), "{}", failed.err);
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'matrix_sdk'";
    assert_eq!(other.number(schemas).await, 0);
}

/// Rows that were set aside are the account's, too.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_with_rows_that_were_set_aside_is_not_empty() {
    let (place, folder) = (Place::new(), tempfile::tempdir().unwrap());
    let file = path(&folder, "bot.age");
    drop(place.filled("bot").await);
    backed_up(&place, &file).await;
    let other = Place::new();
    let store = other.open("bot").await;
    store.set_custom_value("key", b"value".to_vec()).await.unwrap();
    store.close().await.unwrap();
    let damage = "UPDATE matrix_sdk.custom_values SET data = '\\x00' || data";
    other.client().await.batch_execute(damage).await.unwrap();
    let aside = ["verify", "--account", "bot", "--quarantine", "--yes"];
    other.run_unlocked(&aside).await.expect(0);
    let refused = other.run_command(tool(&other, &["restore", &file])).await.expect(4);
    assert!(refused.err.contains("is not empty"), "{}", refused.err);
    assert_eq!(other.number("SELECT count(*) FROM matrix_sdk.quarantined_rows").await, 1);
}

/// As after a restore that does not copy sequences.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_sequence_that_is_behind_its_rows_does_no_harm() {
    let (place, folder) = (Place::new(), tempfile::tempdir().unwrap());
    let file = path(&folder, "bot.age");
    drop(place.filled("bot").await);
    backed_up(&place, &file).await;
    let other = Place::new();
    other.open("other").await.close().await.unwrap();
    let behind = "ALTER SEQUENCE matrix_sdk.accounts_id_seq RESTART WITH 1";
    other.client().await.batch_execute(behind).await.unwrap();
    other.run_command(tool(&other, &["restore", &file])).await.expect(0);
    let created = "SELECT extract(epoch FROM created_at)::bigint FROM matrix_sdk.accounts \
                   WHERE name = 'bot'";
    assert_eq!(other.number(created).await, place.number(created).await);
}

/// Behind pgbouncer in transaction mode.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_behind_a_pooler_is_whole() {
    if !pooler::is_wanted("a backup behind PgBouncer") {
        return;
    }
    let (server, place) = durable();
    drop(place.filled("bot").await);
    let (folder, pooler) = (tempfile::tempdir().unwrap(), Pooler::start(Release::New, &server));
    let file = path(&folder, "bot.age");
    let mut backup = tool(&place, &["backup", "--account", "bot", &file]);
    backup.env("DATABASE_URL", pooler.url(&place.url(), &server));
    place.run_command(backup).await.expect(0);
    let empty = Place { database: server.create_database().unwrap() };
    let mut restore = tool(&empty, &["restore", &file]);
    restore.env("DATABASE_URL", pooler.url(&empty.url(), &server));
    empty.run_command(restore).await.expect(0);
    drop(empty.open("bot").await);
}

/// What fails in the middle leaves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_fails_in_its_middle_leaves_nothing() {
    let (place, folder) = (Place::new(), tempfile::tempdir().unwrap());
    let file = path(&folder, "bot.age");
    drop(place.filled("bot").await);
    backed_up(&place, &file).await;
    let other = Place::new();
    PostgresStoreConfig::new(other.url(), "bot").migrate().await.unwrap();
    let client = other.client().await;
    let sql =
        "ALTER TABLE matrix_sdk.withheld_sessions ADD CONSTRAINT no_room CHECK (account_id < 0)";
    client.batch_execute(sql).await.unwrap();
    let failed = other.run_command(tool(&other, &["restore", &file])).await.expect(1);
    assert!(failed.err.contains("23514"), "{}", failed.err);
    assert_eq!(other.number("SELECT count(*) FROM matrix_sdk.accounts").await, 0);
    assert_eq!(other.number("SELECT count(*) FROM matrix_sdk.devices").await, 0);
    let sql = "ALTER TABLE matrix_sdk.withheld_sessions DROP CONSTRAINT no_room";
    client.batch_execute(sql).await.unwrap();
    other.run_command(tool(&other, &["restore", &file])).await.expect(0);
    // The restored account opens with the passphrase that it had, and with no other.
    drop(other.open("bot").await);
    let wrong = PostgresStoreConfig::new(other.url(), "bot").passphrase(Some("wrong"));
    assert!(matrix_sdk_postgres::PostgresCryptoStore::open_with_config(&wrong).await.is_err());
}

/// A frame of the stream holds up to 1 MiB.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_larger_than_a_frame_is_backed_up() {
    let (place, folder) = (Place::new(), tempfile::tempdir().unwrap());
    let file = path(&folder, "bot.age");
    place.open("bot").await.close().await.unwrap();
    let row = "INSERT INTO matrix_sdk.custom_values (account_id, key, data)
               SELECT id, '\\x01', convert_to(repeat('x', 3000000), 'UTF8') FROM matrix_sdk.accounts";
    place.client().await.batch_execute(row).await.unwrap();
    backed_up(&place, &file).await;
    let other = Place::new();
    other.run_command(tool(&other, &["restore", &file])).await.expect(0);
    let length = "SELECT length(data)::bigint FROM matrix_sdk.custom_values";
    assert_eq!(other.number(length).await, 3_000_000);
}
