//! Everything that a file can hold, made by the version of matrix-sdk-sqlite that the library is for.

use std::{collections::HashSet, path::Path};

use matrix_sdk_base::{RoomInfo, RoomState, StateChanges, StateStore};
use matrix_sdk_crypto::{
    olm::PrivateCrossSigningIdentity,
    store::{
        CryptoStore,
        types::{Changes, PendingChanges, RoomSettings, SecretsInboxItem},
    },
};
use matrix_sdk_sqlite::{SqliteCryptoStore, SqliteStateStore};
use ruma::{RoomId, events::secret::request::SecretName, room_id};
use serde_json::json;

use super::files::{Folder, KEY, Mode, PASSPHRASE, check, close, import};
use test_support::fixture::{self, Fixture};

use crate::support::Place;

/// A room that only the state store knows.
fn silent_room() -> &'static RoomId {
    room_id!("!silent:hidden.example")
}

/// A room of which only the hash is known.
fn lost_room() -> &'static RoomId {
    room_id!("!lost:hidden.example")
}

/// A row in every table.
async fn fill(store: &SqliteCryptoStore, fixture: &Fixture) {
    let account = Some(fixture.account.deep_clone());
    store.save_pending_changes(PendingChanges { account }).await.unwrap();
    store.save_changes(fixture.changes()).await.unwrap();
    let ids = [(fixture::room(), fixture.inbound.session_id())];
    store.mark_inbound_group_sessions_as_backed_up("1", &ids).await.unwrap();
    store.save_tracked_users(&[(fixture::other_user(), true)]).await.unwrap();
    store.set_custom_value(fixture::CUSTOM_KEY, fixture::CUSTOM_VALUE.to_vec()).await.unwrap();
    store.try_take_leased_lock(60_000, "lease", "holder").await.unwrap();
    // A second request for the same, the same secret again, and rooms with settings only.
    let mut request = fixture.key_request.clone();
    request.request_id = "a-newer-request".into();
    let secret = SecretsInboxItem {
        secret_name: SecretName::RecoveryKey,
        secret: "a recovery key".to_owned().into(),
    };
    let settings = RoomSettings { only_allow_trusted_devices: true, ..Default::default() };
    for _ in 0..2 {
        let changes = Changes {
            key_requests: vec![request.clone()],
            secrets: vec![secret.clone()],
            room_settings: [silent_room(), lost_room()]
                .map(|room_id| (room_id.to_owned(), settings.clone()))
                .into(),
            room_key_backups_fully_downloaded: HashSet::from([silent_room().to_owned()]),
            ..Changes::default()
        };
        store.save_changes(changes).await.unwrap();
    }
}

/// The state store in the same folder, with one room.
async fn add_state_store(folder: &Path, mode: Mode) {
    let store = match mode {
        Mode::Plain => SqliteStateStore::open(folder, None).await,
        Mode::Passphrase => SqliteStateStore::open(folder, Some(PASSPHRASE)).await,
        Mode::Key => SqliteStateStore::open_with_key(folder, Some(&KEY)).await,
    }
    .unwrap();
    let mut changes = StateChanges::default();
    changes.add_room(RoomInfo::new(silent_room(), RoomState::Joined));
    store.save_changes(&changes).await.unwrap();
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_comes_along_and_what_does_not_is_named() {
    for mode in Mode::ALL {
        let (place, folder, fixture) = (Place::new(), Folder::new(), Fixture::new().await);
        let store = mode.open(folder.path()).await;
        fill(&store, &fixture).await;
        add_state_store(folder.path(), mode).await;
        close(store, &folder).await;
        let before = folder.state();

        let mut json = check(&folder, mode);
        json.arg("--json");
        let checked = place.run_command(json).await.expect(0).json();
        let left = |table: &str| checked["tables"][table]["left"].to_string();
        assert_eq!(checked["tables"]["inbound_group_session"]["carried"], 1, "{checked:#}");
        assert!(left("key_requests").contains("a later row says the same"), "{checked:#}");
        assert!(left("lease_locks").contains("which ends by itself"), "{checked:#}");
        let is_hashed = mode != Mode::Plain;
        assert_eq!(left("room_settings").contains("its room's id is hashed"), is_hashed);
        assert_eq!(left("secrets_inbox").contains("its name is hashed"), is_hashed);

        let ran = place.run_command(import(&place, &folder, mode, "bot")).await.expect(0);
        assert!(ran.out.contains("device ALICESDEVICE of @clandestine-alice"), "{}", ran.out);
        assert_eq!(folder.state(), before);
        look_into(&place, &fixture, mode).await;
    }
}

async fn look_into(place: &Place, fixture: &Fixture, mode: Mode) {
    let store = place.open("bot").await;
    let account = store.load_account().await.unwrap().unwrap();
    assert_eq!(account.identity_keys(), fixture.account.identity_keys());
    let identity = store.load_identity().await.unwrap().unwrap();
    assert_eq!(pickle(&identity).await, pickle(&fixture.identity).await);
    let token = store.next_batch_token().await.unwrap();
    assert_eq!(token.as_deref(), Some(fixture::SYNC_TOKEN));
    let version = Some(fixture::BACKUP_VERSION);
    let counts = store.inbound_group_session_counts(version).await.unwrap();
    assert_eq!((counts.total, counts.backed_up), (1, 1));
    let keys = store.load_backup_keys().await.unwrap();
    assert_eq!(keys.backup_version.as_deref(), version);
    assert_eq!(keys.decryption_key.unwrap().to_base64(), fixture.backup_key.to_base64());
    let key = store.load_dehydrated_device_pickle_key().await.unwrap().unwrap();
    assert_eq!(key.to_base64(), fixture.dehydration_key.to_base64());
    assert!(store.is_message_known(&fixture.message_hash).await.unwrap());
    let value = store.get_custom_value(fixture::CUSTOM_KEY).await.unwrap();
    assert_eq!(value.as_deref(), Some(fixture::CUSTOM_VALUE));
    assert_eq!(store.get_custom_value("matrix-postgres.import-sqlite").await.unwrap(), None);

    let room_id = fixture::room();
    let sessions = store.get_sessions(&fixture.olm_session.sender_key().to_base64()).await.unwrap();
    assert_eq!(sessions.unwrap()[0].session_id(), fixture.olm_session.session_id());
    let outbound = store.get_outbound_group_session(room_id).await.unwrap().unwrap();
    assert_eq!(outbound.session_id(), fixture.outbound.session_id());
    let withheld = store.get_withheld_sessions_by_room_id(room_id).await.unwrap();
    assert_eq!(withheld.len(), 1);
    let bundle = store.get_received_room_key_bundle_data(room_id, fixture::other_user()).await;
    assert!(bundle.unwrap().is_some());
    assert_eq!(store.get_all_rooms_pending_key_bundles().await.unwrap().len(), 1);

    // Of two requests for the same the later one counts.
    let requests = store.get_unsent_secret_requests().await.unwrap();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].request_id.as_str(), "a-newer-request");
    let secrets = store.get_secrets_from_inbox(&SecretName::RecoveryKey).await.unwrap();
    assert_eq!(
        secrets.iter().map(|secret| secret.as_str()).collect::<Vec<_>>(),
        ["a recovery key"]
    );

    for (room_id, is_known) in
        [(room_id, true), (silent_room(), true), (lost_room(), mode == Mode::Plain)]
    {
        let settings = store.get_room_settings(room_id).await.unwrap();
        assert_eq!(settings.is_some(), is_known, "{mode:?} {room_id}");
    }
    for room_id in [room_id, silent_room()] {
        assert!(store.has_downloaded_all_room_keys(room_id).await.unwrap());
    }
}

async fn pickle(identity: &PrivateCrossSigningIdentity) -> String {
    json!(identity.pickle().await).to_string()
}
