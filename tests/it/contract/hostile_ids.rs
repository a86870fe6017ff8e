//! Ids that a hostile server or user may choose: NUL bytes, any length, any prefix.

use std::collections::BTreeMap;

use matrix_sdk_crypto::{
    DeviceData,
    olm::{Account, OlmMessageHash},
    store::{
        CryptoStore,
        types::{Changes, DeviceChanges},
    },
};
use matrix_sdk_postgres::testing;
use ruma::OwnedDeviceId;
use test_support::{
    Mode, connect,
    fixture::{key_request, own_user, room, withheld},
};

/// All different, some only in a part that a careless store would truncate.
fn ids() -> Vec<String> {
    // Not repetitive: PostgreSQL would compress that, and could index it.
    let long: String =
        (0..25_000u32).map(|n| format!("{:04x}", n.wrapping_mul(40_503) >> 8 & 0xffff)).collect();
    vec![
        String::new(),
        "\0".to_owned(),
        "a\0".to_owned(),
        "a\0b".to_owned(),
        "a".to_owned(),
        " a ".to_owned(),
        "A".to_owned(),
        r"\x61".to_owned(),
        "%".to_owned(),
        "'; DROP TABLE devices; --".to_owned(),
        "\u{fffd}\u{10ffff}".to_owned(),
        // The longest id that is stored unhashed, and the shortest that is hashed.
        "y".repeat(255),
        "y".repeat(256),
        format!("{long}1"),
        format!("{long}2"),
        format!("{long}\0"),
    ]
}

#[tokio::test]
async fn custom_keys_of_any_form_are_kept_apart() {
    for mode in [Mode::Plain, Mode::Key] {
        let database = testing::database().unwrap();
        let store = mode.open(&database.url(), "bot").await;
        for (number, key) in (0u8..).zip(ids()) {
            store.set_custom_value(&key, vec![number]).await.unwrap();
        }
        for (number, key) in (0u8..).zip(ids()) {
            let value = store.get_custom_value(&key).await.unwrap();
            assert_eq!(value, Some(vec![number]), "{mode:?} {number}");
            store.remove_custom_value(&key).await.unwrap();
            assert_eq!(store.get_custom_value(&key).await.unwrap(), None);
        }
    }
}

/// A long id is stored as a hash in a plain account, too; an id equal to that hash is a different id.
#[tokio::test]
async fn the_stored_form_of_a_long_key_is_not_taken_for_a_short_one() {
    let database = testing::database().unwrap();
    let store = Mode::Plain.open(&database.url(), "bot").await;
    let client = connect(&database.url()).await;
    store.set_custom_value(&ids()[13], b"theirs".to_vec()).await.unwrap();
    let sql = "SELECT key FROM matrix_sdk.custom_values";
    let stored: Vec<u8> = client.query_one(sql, &[]).await.unwrap().get(0);
    assert!(stored.len() < 255, "{} bytes", stored.len());
    // No UTF-8 text begins with this byte, so it cannot be a short id.
    assert_eq!(stored[0], 0xff);
}

#[tokio::test]
async fn device_ids_of_any_form_are_kept_apart() {
    for mode in [Mode::Plain, Mode::Key] {
        let database = testing::database().unwrap();
        let store = mode.open(&database.url(), "bot").await;
        let devices: Vec<DeviceData> = ids()
            .into_iter()
            .map(|id| Account::with_device_id(own_user(), &OwnedDeviceId::from(id)))
            .map(|account| DeviceData::from_account(&account))
            .collect();
        let count = devices.len();
        let changes = DeviceChanges { new: devices, ..Default::default() };
        store.save_changes(Changes { devices: changes, ..Default::default() }).await.unwrap();
        let stored = store.get_user_devices(own_user()).await.unwrap();
        assert_eq!(stored.len(), count, "{mode:?}");
        for id in ids() {
            let id = OwnedDeviceId::from(id);
            let device = store.get_device(own_user(), &id).await.unwrap().unwrap();
            assert_eq!(device.device_id(), id);
            assert_eq!(stored[&id].device_id(), id);
        }
        let deleted = vec![stored.into_values().next().unwrap()];
        let changes = DeviceChanges { deleted, ..Default::default() };
        store.save_changes(Changes { devices: changes, ..Default::default() }).await.unwrap();
        assert_eq!(store.get_user_devices(own_user()).await.unwrap().len(), count - 1);
    }
}

#[tokio::test]
async fn session_ids_requests_hashes_versions_and_leases_of_any_form_are_kept_apart() {
    for mode in [Mode::Plain, Mode::Key] {
        let database = testing::database().unwrap();
        let store = mode.open(&database.url(), "bot").await;
        let account = Account::with_device_id(own_user(), "DEVICE".into());
        let entry = withheld("session", account.identity_keys().curve25519);
        let entries: BTreeMap<_, _> = ids().into_iter().map(|id| (id, entry.clone())).collect();
        let info = |id: &str| ruma::events::secret::request::SecretName::from(id).into();
        let hash = |id: &str| OlmMessageHash { sender_key: id.to_owned(), hash: id.to_owned() };
        let changes = Changes {
            withheld_session_info: BTreeMap::from([(room().to_owned(), entries)]),
            key_requests: ids().iter().map(|id| key_request(id, info(id), false)).collect(),
            message_hashes: ids().iter().map(|id| hash(id)).collect(),
            ..Default::default()
        };
        store.save_changes(changes).await.unwrap();
        let count = ids().len();
        let stored = store.get_withheld_sessions_by_room_id(room()).await.unwrap();
        assert_eq!(stored.len(), count, "{mode:?}");
        assert_eq!(store.get_unsent_secret_requests().await.unwrap().len(), count);
        for id in ids() {
            assert!(store.get_withheld_info(room(), &id).await.unwrap().is_some());
            let request = store.get_secret_request_by_info(&info(&id)).await.unwrap().unwrap();
            assert_eq!(request.request_id.as_str(), id);
            assert!(store.is_message_known(&hash(&id)).await.unwrap());
            store.mark_inbound_group_sessions_as_backed_up(&id, &[(room(), &id)]).await.unwrap();
            let lease = store.try_take_leased_lock(60_000, &id, &id).await.unwrap();
            assert_eq!(lease, Some(1));
        }
    }
}

/// The schema's name is quoted in every statement.
#[tokio::test]
async fn unusual_schema_names() {
    let longest = "s".repeat(63);
    let names = [r#"we"ird schema"#, "Schéma ☃", "select", "a.b; --", "{schema}", "$1", &longest];
    let database = testing::database().unwrap();
    for name in names {
        let config = Mode::Plain.config(&database.url(), "bot").schema(name);
        let store =
            matrix_sdk_postgres::PostgresCryptoStore::open_with_config(&config).await.unwrap();
        let fixture = test_support::fixture::Fixture::new().await;
        fixture.fill(&store).await;
        test_support::reads::assert_complete(&store, &fixture).await;
        store.reset_backup_state().await.unwrap();
        store.get_size().await.unwrap().unwrap();
        store.close().await.unwrap();
    }
    // No other schema was created.
    let client = connect(&database.url()).await;
    let sql = "SELECT count(*) FROM pg_class WHERE relname = 'devices' AND relkind = 'r'";
    assert_eq!(test_support::number(&client, sql).await, names.len() as i64);
}
