//! Files of every published version, and real machines that go on with them.

use std::fs;

use matrix_sdk_crypto::{OlmMachine, store::CryptoStore};
use ruma::{OwnedRoomId, RoomId, UserId};
use serde_json::Value;

use super::files::{Folder, Mode, expected, fixtures, import};
use test_support::machine::{Relay, SETTINGS, decrypt, encrypt, open_machine};

use crate::support::Place;

/// Those that `scripts/sqlite-fixtures` makes. 0.15 was withdrawn.
const VERSIONS: [&str; 12] = [
    "0.7.1", "0.8.0", "0.9.0", "0.10.0", "0.11.0", "0.12.0", "0.13.0", "0.14.0", "0.16.1",
    "0.17.0", "0.18.0", "0.19.1",
];

#[test]
fn every_version_has_fixtures() {
    for version in VERSIONS {
        assert!(fixtures().join(format!("sqlite-{version}")).is_dir(), "{version}");
    }
    assert_eq!(fs::read_dir(fixtures()).unwrap().count(), VERSIONS.len());
}

/// Messages that were on their way when the files were made are read, and more are exchanged, in both
/// directions, with the ratchets that were in the files.
#[tokio::test(flavor = "multi_thread")]
async fn machines_go_on_with_files_of_every_version() {
    let place = Place::new();
    for version in VERSIONS {
        let version = format!("sqlite-{version}");
        let said = expected(&version);
        let bob_folder = Folder::of_version(&version, "bob");
        let bob_name = format!("bob of {version}");
        place.run_command(import(&place, &bob_folder, Mode::Plain, &bob_name)).await.expect(0);
        let bob = open_machine(user_id(&said["bob"]), place.open(&bob_name).await).await;
        for mode in Mode::ALL.into_iter().filter(|mode| said.get(mode.name()).is_some()) {
            let said = &said[mode.name()];
            if version == "sqlite-0.19.1" && mode == Mode::Key {
                // Only a build with 0.19 can open it: `bad_files`.
                continue;
            }
            eprintln!("{version}, {}", mode.name());
            let folder = Folder::of_version(&version, mode.name());
            let before = folder.state();
            let name = format!("alice of {version}, {}", mode.name());
            let ran = place.run_command(import(&place, &folder, mode, &name)).await.expect(0);
            assert!(ran.out.contains("must not start again"), "{}", ran.out);
            assert_eq!(folder.state(), before);
            let store = place.open(&name).await;
            look_into(&store, said).await;
            let alice = open_machine(user_id(said), store).await;
            go_on(&alice, &bob, said).await;
        }
    }
}

fn user_id(said: &Value) -> &UserId {
    said["user_id"].as_str().unwrap().try_into().unwrap()
}

async fn look_into(store: &matrix_sdk_postgres::PostgresCryptoStore, said: &Value) {
    let counts = store.inbound_group_session_counts(Some("1")).await.unwrap();
    assert_eq!((counts.total as u64, counts.backed_up), (said["inbound"].as_u64().unwrap(), 1));
    let value = store.get_custom_value("my-value").await.unwrap();
    assert_eq!(value.as_deref(), Some(&b"a fixture"[..]));
    let room_id = room(&said["room_id"]);
    let settings = store.get_room_settings(&room_id).await.unwrap().unwrap();
    assert!(settings.only_allow_trusted_devices);
    let withheld = store.get_withheld_info(&room_id, "a-session-that-was-withheld").await.unwrap();
    assert!(withheld.is_some());
    assert_eq!(store.load_backup_keys().await.unwrap().backup_version.as_deref(), Some("1"));
    let request = store.get_outgoing_secret_requests("a-request".into()).await.unwrap().unwrap();
    assert!(request.sent_out);
}

fn room(id: &Value) -> OwnedRoomId {
    RoomId::parse(id.as_str().unwrap()).unwrap()
}

async fn go_on(alice: &OlmMachine, bob: &OlmMachine, said: &Value) {
    assert_eq!(alice.identity_keys().ed25519.to_base64(), said["ed25519"].as_str().unwrap());
    assert!(alice.cross_signing_status().await.is_complete());
    let room_id = room(&said["room_id"]);
    assert_eq!(decrypt(bob, &room_id, &said["to_bob"]).await, "from Alice, on its way");
    assert_eq!(decrypt(alice, &room_id, &said["to_alice"]).await, "from Bob, on its way");

    // An Olm message that was on its way brings a room key.
    let mut relay = Relay::default();
    for event in said["to_device"].as_array().unwrap() {
        relay.put(bob.user_id(), alice.user_id(), &event["content"]);
    }
    let sync = relay.next_sync(alice, "after the import");
    alice.receive_sync_changes(sync.changes(), &SETTINGS).await.unwrap();
    let third = room(&said["third"]);
    assert_eq!(decrypt(alice, &third, &said["in_third"]).await, "from Bob, with a new key");

    // Both go on with their room keys,
    let more = encrypt(alice, &room_id, "more from Alice").await;
    assert_eq!(more["content"]["session_id"], said["to_bob"]["content"]["session_id"]);
    assert_eq!(decrypt(bob, &room_id, &more).await, "more from Alice");
    let more = encrypt(bob, &room_id, "more from Bob").await;
    assert_eq!(more["content"]["session_id"], said["to_alice"]["content"]["session_id"]);
    assert_eq!(decrypt(alice, &room_id, &more).await, "more from Bob");

    // and with their Olm sessions.
    for (number, (from, to)) in [(alice, bob), (bob, alice), (alice, bob)].into_iter().enumerate() {
        let room_id = RoomId::parse(format!("!new-{number}:example.org")).unwrap();
        relay.share_directly(from, &room_id, &[to.user_id()]).await;
        let event = encrypt(from, &room_id, "with a new key").await;
        let sync = relay.next_sync(to, "again");
        to.receive_sync_changes(sync.changes(), &SETTINGS).await.unwrap();
        assert_eq!(decrypt(to, &room_id, &event).await, "with a new key");
    }
}
