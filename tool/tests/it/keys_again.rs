//! Exports that go on with what an earlier run has left, and key files that have a key twice.

use std::fs;

use matrix_sdk_crypto::{encrypt_room_key_export, olm::SenderDataType, store::CryptoStore};
use ruma::RoomId;
use test_support::fixture;

use crate::{
    keys::{KEYS_PASSPHRASE, account, filled, keys_of, path, read, tool},
    support::Place,
};

/// The first part of an export of the account.
async fn interrupted(place: &Place, account: &str, file: &str) -> Vec<u8> {
    let whole = format!("{file}.whole");
    place.run_command(tool(place, "export-keys", account, &whole)).await.expect(0);
    let bytes = fs::read(&whole).unwrap();
    let part = bytes[..bytes.len() * 3 / 4].to_vec();
    fs::write(format!("{file}.partial"), &part).unwrap();
    part
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_of_another_account_is_not_continued() {
    let (place, folder) = (Place::new(), tempfile::tempdir().unwrap());
    let file = path(&folder, "keys.txt");
    for name in ["a", "b"] {
        filled(&place, name, 40).await.close().await.unwrap();
    }
    let part = interrupted(&place, "a", &file).await;
    let refused = place.run_command(tool(&place, "export-keys", "b", &file)).await.expect(4);
    assert!(refused.err.contains("that the account \"b\" does not have"), "{}", refused.err);
    assert_eq!(fs::read(format!("{file}.partial")).unwrap(), part);
    assert!(!fs::exists(&file).unwrap());
}

/// Days may pass in between. They are in the order of hashes, so that they belong before its end, too.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_came_since_the_interruption_are_exported() {
    let (place, folder) = (Place::new(), tempfile::tempdir().unwrap());
    let file = path(&folder, "keys.txt");
    let store = filled(&place, "bot", 40).await;
    interrupted(&place, "bot", &file).await;
    let room_id = RoomId::parse("!new:example.org").unwrap();
    let session = || fixture::inbound_session(&account(), &room_id, SenderDataType::UnknownDevice);
    let more = (0..40).map(|_| session()).collect();
    store.save_inbound_group_sessions(more, None).await.unwrap();
    let ran = place.run_command(tool(&place, "export-keys", "bot", &file)).await.expect(0);
    assert!(ran.out.starts_with("80 room keys"), "{}", ran.out);
    assert_eq!(read(&file), keys_of(&store).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_with_other_rounds_is_not_continued() {
    let (place, folder) = (Place::new(), tempfile::tempdir().unwrap());
    let file = path(&folder, "keys.txt");
    filled(&place, "bot", 40).await.close().await.unwrap();
    let part = interrupted(&place, "bot", &file).await;
    let mut other = place.command(&["export-keys", "--account", "bot", &file]);
    other.env("STORE_PASSPHRASE", crate::support::PASSPHRASE);
    other.env("KEYS_PASSPHRASE", KEYS_PASSPHRASE).args(["--rounds", "2000"]);
    let refused = place.run_command(other).await.expect(4);
    assert!(refused.err.contains("--rounds 1000"), "{}", refused.err);
    assert_eq!(fs::read(format!("{file}.partial")).unwrap(), part);
}

/// In a file that was put together from several, say.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_copies_in_one_file_the_better_one_stays() {
    let (place, folder) = (Place::new(), tempfile::tempdir().unwrap());
    filled(&place, "bot", 0).await.close().await.unwrap();
    let room_id = RoomId::parse("!room:example.org").unwrap();
    let mut sessions = Vec::new();
    for (name, indices) in [("rising.txt", [2, 9]), ("falling.txt", [9, 2])] {
        let session = fixture::inbound_session(&account(), &room_id, SenderDataType::UnknownDevice);
        let [first, second] = indices;
        let exported =
            [session.export_at_index(first).await, session.export_at_index(second).await];
        let file = path(&folder, name);
        let text = encrypt_room_key_export(&exported, KEYS_PASSPHRASE, 1_000).unwrap();
        fs::write(&file, text).unwrap();
        place.run_command(tool(&place, "import-keys", "bot", &file)).await.expect(0);
        sessions.push((name, session));
    }
    let store = place.open("bot").await;
    for (name, session) in sessions {
        let found = store.get_inbound_group_session(&room_id, session.session_id()).await.unwrap();
        assert_eq!(found.unwrap().first_known_index(), 2, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_key_that_ends_an_export_can_be_set_aside() {
    let (place, folder) = (Place::new(), tempfile::tempdir().unwrap());
    let file = path(&folder, "keys.txt");
    filled(&place, "bot", 3).await.close().await.unwrap();
    let damage = "UPDATE matrix_sdk.megolm_inbound_sessions SET data = '\\x00'
                  WHERE ctid = (SELECT min(ctid) FROM matrix_sdk.megolm_inbound_sessions)";
    place.client().await.batch_execute(damage).await.unwrap();
    let failed = place.run_command(tool(&place, "export-keys", "bot", &file)).await.expect(1);
    assert!(failed.err.contains("matrix-postgres verify --quarantine"), "{}", failed.err);
    let aside = ["verify", "--account", "bot", "--quarantine", "--yes"];
    place.run_unlocked(&aside).await.expect(0);
    let ran = place.run_command(tool(&place, "export-keys", "bot", &file)).await.expect(0);
    assert!(ran.out.starts_with("2 room keys"), "{}", ran.out);
}
