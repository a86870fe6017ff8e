//! `export-keys` and `import-keys`.

use std::{collections::BTreeMap, fs, io::Cursor, process::Command};

use matrix_sdk_crypto::{
    Account, decrypt_room_key_export, encrypt_room_key_export,
    olm::{ExportedRoomKey, InboundGroupSession, SenderDataType},
    store::{
        CryptoStore,
        types::{Changes, DeviceChanges, PendingChanges},
    },
};
use matrix_sdk_postgres::PostgresCryptoStore;
use ruma::{RoomId, device_id, user_id};
use tempfile::TempDir;

use test_support::fixture;

use crate::support::{PASSPHRASE, Place};

pub const KEYS_PASSPHRASE: &str = "the key file's own passphrase";
/// Few rounds: the passphrase is stretched in each run.
const ROUNDS: &str = "1000";

pub fn account() -> Account {
    Account::with_device_id(user_id!("@bot:example.org"), device_id!("BOT"))
}

/// An account with a device, and with this number of room keys.
pub async fn filled(place: &Place, name: &str, count: usize) -> PostgresCryptoStore {
    let (store, account) = (place.open(name).await, account());
    let device = matrix_sdk_crypto::DeviceData::from_account(&account);
    let mut sessions = Vec::new();
    for number in 0..count {
        let room_id = RoomId::parse(format!("!room{}:example.org", number % 7)).unwrap();
        let kind = SenderDataType::UnknownDevice;
        sessions.push(fixture::inbound_session(&account, &room_id, kind));
    }
    let devices = DeviceChanges { new: vec![device], ..Default::default() };
    store.save_changes(Changes { devices, ..Default::default() }).await.unwrap();
    store.save_pending_changes(PendingChanges { account: Some(account) }).await.unwrap();
    store.save_inbound_group_sessions(sessions, None).await.unwrap();
    store
}

pub fn tool(place: &Place, command: &str, account: &str, file: &str) -> Command {
    let mut tool = place.command(&[command, "--account", account, file]);
    tool.env("STORE_PASSPHRASE", PASSPHRASE).env("KEYS_PASSPHRASE", KEYS_PASSPHRASE);
    if command == "export-keys" {
        tool.args(["--rounds", ROUNDS]);
    }
    tool
}

/// Session keys by id.
pub type Keys = BTreeMap<String, String>;

fn keys(exported: &[ExportedRoomKey]) -> Keys {
    let keys = exported.iter().map(|key| (key.session_id.clone(), key.session_key.to_base64()));
    let keys: Keys = keys.collect();
    assert_eq!(keys.len(), exported.len(), "a key twice");
    keys
}

pub async fn keys_of(store: &PostgresCryptoStore) -> Keys {
    let mut keys = Keys::new();
    for session in store.get_inbound_group_sessions().await.unwrap() {
        let key = session.export().await.session_key.to_base64();
        keys.insert(session.session_id().to_owned(), key);
    }
    keys
}

/// What the SDK reads in a file.
pub fn read(file: &str) -> Keys {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.lines().all(|line| line.len() <= 128));
    keys(&decrypt_room_key_export(Cursor::new(text), KEYS_PASSPHRASE).unwrap())
}

pub fn path(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sdk_reads_what_is_exported_beside_a_running_bot() {
    let (place, folder) = (Place::new(), tempfile::tempdir().unwrap());
    for count in [0, 1, 7, 1_203] {
        let (name, file) = (format!("bot {count}"), path(&folder, &format!("{count}.txt")));
        let store = filled(&place, &name, count).await;
        let commits = store.commit_count().await.unwrap();
        let ran = place.run_command(tool(&place, "export-keys", &name, &file)).await.expect(0);
        assert!(ran.out.starts_with(&format!("{count} room keys")), "{}", ran.out);
        assert_eq!(read(&file), keys_of(&store).await);
        assert_eq!(store.commit_count().await.unwrap(), commits);
        store.set_custom_value("still", b"mine".to_vec()).await.unwrap();
        // Not over a file that is there.
        let refused = place.run_command(tool(&place, "export-keys", &name, &file)).await.expect(4);
        assert!(refused.err.contains("exists: nothing was changed"), "{}", refused.err);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(path(&folder, "7.txt")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_exported_is_imported_and_a_second_time_changes_nothing() {
    let (place, folder) = (Place::new(), tempfile::tempdir().unwrap());
    let file = path(&folder, "keys.txt");
    let from = filled(&place, "from", 1_203).await;
    place.run_command(tool(&place, "export-keys", "from", &file)).await.expect(0);
    let to = filled(&place, "to", 3).await;
    let mut all = keys_of(&to).await;
    all.extend(keys_of(&from).await);

    let refused = place.run_command(tool(&place, "import-keys", "to", &file)).await.expect(4);
    assert!(refused.err.contains("matrix-sdk-postgres on "), "{}", refused.err);
    to.close().await.unwrap();
    for (added, known) in [(1_203, 0), (0, 1_203)] {
        let ran = place.run_command(tool(&place, "import-keys", "to", &file)).await.expect(0);
        let wanted = format!("1203 room keys: {added} added or improved, {known} known already\n");
        assert_eq!(ran.out, wanted);
        assert_eq!(keys_of(&place.open("to").await).await, all);
    }
}

/// Known from a later message on.
async fn advanced(session: &InboundGroupSession, index: u32) -> InboundGroupSession {
    (&session.export_at_index(index).await).try_into().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_copies_of_a_key_the_better_one_stays() {
    let (place, folder) = (Place::new(), tempfile::tempdir().unwrap());
    let store = filled(&place, "bot", 0).await;
    let room_id = RoomId::parse("!room:example.org").unwrap();
    let session = || fixture::inbound_session(&account(), &room_id, SenderDataType::UnknownDevice);
    let [improved, kept] = [session(), session()];
    let stored = vec![advanced(&improved, 5).await, advanced(&kept, 5).await];
    store.save_inbound_group_sessions(stored, None).await.unwrap();
    store.close().await.unwrap();

    let exported = [improved.export_at_index(2).await, kept.export_at_index(9).await];
    let text = encrypt_room_key_export(&exported, KEYS_PASSPHRASE, 1_000).unwrap();
    // As the SDK writes it, in one line; and as Element does, padded and in short ones.
    let one_line = text.lines().nth(1).unwrap();
    let padding = "=".repeat((4 - one_line.len() % 4) % 4);
    let padded = format!("{one_line}{padding}").into_bytes();
    let short: Vec<_> = padded.chunks(76).map(|line| str::from_utf8(line).unwrap()).collect();
    let begin = text.lines().next().unwrap();
    let end = text.lines().last().unwrap();
    let short = format!("\r\n{begin}\r\n{}\r\n{end}\r\n\r\n", short.join("\r\n"));
    for (name, text, added) in [("sdk.txt", text, 1), ("element.txt", short, 0)] {
        let file = path(&folder, name);
        fs::write(&file, text).unwrap();
        let ran = place.run_command(tool(&place, "import-keys", "bot", &file)).await.expect(0);
        assert!(ran.out.starts_with(&format!("2 room keys: {added} added")), "{}", ran.out);
    }
    let store = place.open("bot").await;
    for (session, index) in [(improved, 2), (kept, 5)] {
        let found = store.get_inbound_group_session(&room_id, session.session_id()).await.unwrap();
        assert_eq!(found.unwrap().first_known_index(), index);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_was_interrupted_goes_on() {
    let (place, folder) = (Place::new(), tempfile::tempdir().unwrap());
    let store = filled(&place, "bot", 40).await;
    let all = keys_of(&store).await;
    let whole = path(&folder, "whole.txt");
    place.run_command(tool(&place, "export-keys", "bot", &whole)).await.expect(0);
    let bytes = fs::read(&whole).unwrap();
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let edges = [0, 10, 37, 165, 166, 167, bytes.len() - 40, bytes.len() - 100];
    let cuts = edges.into_iter().chain((0..12).map(|_| random.usize(..bytes.len() - 36)));
    let size = bytes.len() / 40;
    for cut in cuts {
        let file = path(&folder, "again.txt");
        fs::write(format!("{file}.partial"), &bytes[..cut]).unwrap();
        let ran = place.run_command(tool(&place, "export-keys", "bot", &file)).await.expect(0);
        assert!(ran.out.starts_with("40 room keys"), "{cut}: {}", ran.out);
        // The whole ones of what was there; the keys are of nearly the same size.
        let before = ran.out.split_once(", ").map_or(0, |(_, before)| {
            before.split_once(" of them before").unwrap().0.parse().unwrap()
        });
        assert!((cut / size).abs_diff(before) <= 1, "{cut}: {}", ran.out);
        assert!(before == 0 || cut >= size, "{cut}: {}", ran.out);
        assert!(before > 0 || cut <= 1_000, "{cut}: {}", ran.out);
        assert_eq!(read(&file), all, "{cut}");
        fs::remove_file(&file).unwrap();
    }
    // With another passphrase it does not.
    let file = path(&folder, "other.txt");
    fs::write(format!("{file}.partial"), &bytes[..5_000]).unwrap();
    let mut other = tool(&place, "export-keys", "bot", &file);
    other.env("KEYS_PASSPHRASE", "another passphrase");
    let failed = place.run_command(other).await.expect(1);
    assert!(failed.err.contains("not one with this passphrase"), "{}", failed.err);
    assert_eq!(fs::read(format!("{file}.partial")).unwrap(), &bytes[..5_000]);
}

/// A misspelt name is an error, and no account afterwards.
#[tokio::test]
async fn keys_are_imported_into_an_account_that_exists_only() {
    let (place, folder) = (Place::new(), tempfile::tempdir().unwrap());
    filled(&place, "bot", 1).await.close().await.unwrap();
    let file = path(&folder, "keys.txt");
    place.run_command(tool(&place, "export-keys", "bot", &file)).await.expect(0);
    let missing = place.run_command(tool(&place, "import-keys", "bto", &file)).await.expect(1);
    assert!(missing.err.contains("there is no account \"bto\""), "{}", missing.err);
    assert_eq!(place.number("SELECT count(*) FROM matrix_sdk.accounts").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_key_files_change_nothing() {
    let (place, folder) = (Place::new(), tempfile::tempdir().unwrap());
    let from = filled(&place, "from", 5).await;
    let whole = path(&folder, "whole.txt");
    place.run_command(tool(&place, "export-keys", "from", &whole)).await.expect(0);
    let (store, text) = (filled(&place, "bot", 1).await, fs::read_to_string(&whole).unwrap());
    let (before, commits) = (keys_of(&store).await, store.commit_count().await.unwrap());
    store.close().await.unwrap();
    drop(from);
    let lines: Vec<_> = text.lines().collect();
    let without = |at: usize| [&lines[..at], &lines[at + 1..]].concat().join("\n");
    let mut changed = text.clone().into_bytes();
    changed[1_000] = if changed[1_000] == b'A' { b'B' } else { b'A' };
    let changed = String::from_utf8(changed).unwrap();
    for (text, error) in [
        (String::new(), "it is no key file"),
        ("not a key file\n".repeat(100), "it is no key file"),
        (lines[..lines.len() - 1].join("\n"), "ends before its last line"),
        (text[..2_000].to_owned(), "ends before its last line"),
        (without(3), "wrong passphrase, or the file was changed"),
        (changed, "wrong passphrase, or the file was changed"),
        (text.replacen("\nA", "\nB", 1), "key file of version 5"),
    ] {
        let file = path(&folder, "bad.txt");
        fs::write(&file, text).unwrap();
        let failed = place.run_command(tool(&place, "import-keys", "bot", &file)).await.expect(1);
        assert!(failed.err.contains(error), "{error}: {}", failed.err);
    }
    let mut wrong = tool(&place, "import-keys", "bot", &whole);
    wrong.env("KEYS_PASSPHRASE", "wrong");
    let failed = place.run_command(wrong).await.expect(1);
    assert!(failed.err.contains("wrong passphrase, or the file was changed"), "{}", failed.err);
    // A name with a typing error makes no account.
    let failed = place.run_command(tool(&place, "import-keys", "bto", &whole)).await.expect(1);
    assert!(failed.err.contains("there is no account \"bto\""), "{}", failed.err);
    assert_eq!(place.number("SELECT count(*) FROM matrix_sdk.accounts").await, 2);
    let store = place.open("bot").await;
    assert_eq!(keys_of(&store).await, before);
    assert_eq!(store.commit_count().await.unwrap(), commits);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_fails_in_its_middle_goes_on() {
    let (place, folder) = (Place::new(), tempfile::tempdir().unwrap());
    let file = path(&folder, "keys.txt");
    let from = filled(&place, "from", 1_203).await;
    place.run_command(tool(&place, "export-keys", "from", &file)).await.expect(0);
    filled(&place, "to", 0).await.close().await.unwrap();
    let client = place.client().await;
    // As if the disk was full after the first 700 keys.
    let sql = "CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                   IF (SELECT count(*) FROM matrix_sdk.megolm_inbound_sessions) > 1903 THEN
                       RAISE EXCEPTION 'no room' USING ERRCODE = '53100';
                   END IF;
                   RETURN NULL;
               END $$;
               CREATE TRIGGER no_room AFTER INSERT ON matrix_sdk.megolm_inbound_sessions
                   EXECUTE FUNCTION no_room()";
    client.batch_execute(sql).await.unwrap();
    let failed = place.run_command(tool(&place, "import-keys", "to", &file)).await;
    assert!([1, 5].contains(&failed.code) && failed.err.contains("53100"), "{failed:?}");
    assert!(failed.err.contains("run the same command again"), "{failed:?}");
    client
        .batch_execute("DROP TRIGGER no_room ON matrix_sdk.megolm_inbound_sessions")
        .await
        .unwrap();
    let ran = place.run_command(tool(&place, "import-keys", "to", &file)).await.expect(0);
    assert_eq!(ran.out, "1203 room keys: 703 added or improved, 500 known already\n");
    assert_eq!(keys_of(&place.open("to").await).await, keys_of(&from).await);
}

/// How many keys, and how much memory the tool takes for them. Seconds for each ten thousand.
///
/// `KEYS=1000000 cargo test -p matrix-postgres --all-features --test it -- --ignored --nocapture memory`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long with the KEYS that it is for"]
async fn the_memory_does_not_grow_with_the_keys() {
    let count: usize = std::env::var("KEYS").map_or(10_000, |count| count.parse().unwrap());
    let (place, folder) = (Place::new(), tempfile::tempdir().unwrap());
    let file = path(&folder, "keys.txt");
    filled(&place, "to", 0).await.close().await.unwrap();
    let from = filled(&place, "from", 0).await;
    let sender = account();
    for start in (0..count).step_by(5_000) {
        let mut sessions = Vec::new();
        for number in start..count.min(start + 5_000) {
            let room_id = RoomId::parse(format!("!room{}:example.org", number % 1_000)).unwrap();
            let kind = SenderDataType::UnknownDevice;
            sessions.push(fixture::inbound_session(&sender, &room_id, kind));
        }
        from.save_inbound_group_sessions(sessions, None).await.unwrap();
    }
    from.close().await.unwrap();
    for (command, account) in [("export-keys", "from"), ("import-keys", "to")] {
        let began = std::time::Instant::now();
        let mut running = tool(&place, command, account, &file).spawn().unwrap();
        let status = format!("/proc/{}/status", running.id());
        let mut peak = String::new();
        while running.try_wait().unwrap().is_none() {
            let text = fs::read_to_string(&status).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            peak = line.map_or(peak, |line| line.trim().to_owned());
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert!(running.wait().unwrap().success());
        let size = fs::metadata(&file).unwrap().len();
        println!("{command}: {count} keys, {size} bytes, {:?}, peak {peak}", began.elapsed());
        let kilobytes: u64 = peak.split(' ').next().unwrap().parse().unwrap();
        assert!(kilobytes < 400_000, "{peak}");
    }
}
