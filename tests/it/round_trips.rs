//! Round trips of every trait method, counted on the wire. `tests/golden/round_trips.txt` lists them, so that a
//! change shows as a diff; `UPDATE_GOLDEN=1` rewrites it.

use std::fmt::Write;

use matrix_sdk_crypto::{
    DeviceData, SecretInfo,
    olm::{Account, OlmMessageHash, SenderDataType},
    store::{
        CryptoStore,
        types::{Changes, DeviceChanges, PendingChanges},
    },
};
use matrix_sdk_postgres::{OwnershipSettings, PoolSettings, testing};
use ruma::{TransactionId, device_id, events::secret::request::SecretName, room_id, user_id};
use test_support::{Mode, proxy::Proxy, without_heartbeats};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/round_trips.txt");

#[tokio::test]
async fn every_method_takes_the_round_trips_that_the_golden_file_lists() {
    let database = testing::database().unwrap();
    let (proxy, url) = Proxy::before(&database);
    let mut report = String::new();
    for (name, prepared, cache_bytes) in [
        ("prepared statements", true, 0),
        ("unnamed statements", false, 0),
        ("prepared statements, and the cache", true, 16 << 20),
    ] {
        let pool =
            PoolSettings { max_size: 1, prepared_statements: prepared, ..Default::default() };
        let config = Mode::Key
            .config(&url, name)
            .pool(pool)
            .access(OwnershipSettings { cache_bytes, ..without_heartbeats() });
        writeln!(report, "{name}").unwrap();
        count(&mut report, &proxy, &config).await;
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(GOLDEN, &report).unwrap();
    }
    let golden = std::fs::read_to_string(GOLDEN).unwrap_or_default();
    assert_eq!(report, golden, "round trips changed; UPDATE_GOLDEN=1 accepts them");
}

async fn count(
    report: &mut String,
    proxy: &Proxy,
    config: &matrix_sdk_postgres::PostgresStoreConfig,
) {
    macro_rules! count {
        ($name:expr, $operation:expr) => {{
            let before = proxy.round_trips();
            let result = $operation.await.unwrap();
            writeln!(report, "{:>4}  {}", proxy.round_trips() - before, $name).unwrap();
            result
        }};
    }
    let open = || matrix_sdk_postgres::PostgresCryptoStore::open_with_config(config);
    open().await.unwrap().close().await.unwrap();

    // Round trips of connecting: the TLS request, the start-up packet, and the two steps of SCRAM.
    let store = count!("open (4 of them connect)", open());
    count!("load_account, first use of a connection", store.load_account());
    let (alice, device) = (user_id!("@alice:example.org"), device_id!("DEVICE"));
    let room_id = room_id!("!room:example.org");
    let account = Account::with_device_id(alice, device);
    let (outbound, inbound) = account.create_group_session_pair_with_defaults(room_id).await;
    let own_device = DeviceData::from_account(&account);
    let sender_key = account.identity_keys().curve25519;
    let session_id = inbound.session_id().to_owned();
    let hash = OlmMessageHash { sender_key: "key".to_owned(), hash: "hash".to_owned() };

    let pending = PendingChanges { account: Some(account) };
    count!("save_pending_changes", store.save_pending_changes(pending));
    let changes = Changes {
        inbound_group_sessions: vec![inbound.clone()],
        outbound_group_sessions: vec![outbound],
        message_hashes: vec![hash.clone()],
        devices: DeviceChanges { new: vec![own_device], ..Default::default() },
        next_batch_token: Some("token".to_owned()),
        backup_version: Some("1".to_owned()),
        ..Default::default()
    };
    count!("save_changes, of six tables", store.save_changes(changes));
    let sessions = vec![inbound];
    count!("save_inbound_group_sessions", store.save_inbound_group_sessions(sessions, Some("1")));
    count!("save_tracked_users", store.save_tracked_users(&[(alice, true)]));
    count!("set_custom_value", store.set_custom_value("key", vec![1]));
    count!("set_custom_value, 3 MB", store.set_custom_value("key", vec![1; 3_000_000]));
    count!("remove_custom_value", store.remove_custom_value("key"));
    let ids = [(room_id, session_id.as_str())];
    count!(
        "mark_inbound_group_sessions_as_backed_up",
        store.mark_inbound_group_sessions_as_backed_up("1", &ids)
    );
    count!("reset_backup_state", store.reset_backup_state());
    count!("delete_dehydrated_device_pickle_key", store.delete_dehydrated_device_pickle_key());
    count!(
        "delete_outgoing_secret_requests",
        store.delete_outgoing_secret_requests(&TransactionId::new())
    );
    let end_of_sync = Changes { next_batch_token: Some("next".to_owned()), ..Default::default() };
    count!("save_changes, of a sync token and that deletion", store.save_changes(end_of_sync));
    count!("delete_secrets_from_inbox", store.delete_secrets_from_inbox(&SecretName::RecoveryKey));
    count!("try_take_leased_lock", store.try_take_leased_lock(100, "key", "holder"));

    count!("save_changes, empty", store.save_changes(Changes::default()));
    count!("save_pending_changes, empty", store.save_pending_changes(PendingChanges::default()));
    count!("save_inbound_group_sessions, empty", store.save_inbound_group_sessions(vec![], None));
    count!("save_tracked_users, empty", store.save_tracked_users(&[]));
    count!(
        "mark_inbound_group_sessions_as_backed_up, empty",
        store.mark_inbound_group_sessions_as_backed_up("1", &[])
    );

    count!("load_account", store.load_account());
    count!("load_identity", store.load_identity());
    count!("get_sessions", store.get_sessions("sender key"));
    count!("get_inbound_group_session", store.get_inbound_group_session(room_id, &session_id));
    count!("get_inbound_group_sessions", store.get_inbound_group_sessions());
    count!(
        "get_inbound_group_sessions_by_room_id",
        store.get_inbound_group_sessions_by_room_id(room_id)
    );
    count!(
        "get_inbound_group_sessions_for_device_batch",
        store.get_inbound_group_sessions_for_device_batch(
            sender_key,
            SenderDataType::UnknownDevice,
            None,
            10
        )
    );
    count!("inbound_group_session_counts", store.inbound_group_session_counts(Some("1")));
    count!("inbound_group_sessions_for_backup", store.inbound_group_sessions_for_backup("1", 10));
    count!("get_withheld_info", store.get_withheld_info(room_id, "session"));
    count!("get_withheld_sessions_by_room_id", store.get_withheld_sessions_by_room_id(room_id));
    count!("load_backup_keys", store.load_backup_keys());
    count!("load_dehydrated_device_pickle_key", store.load_dehydrated_device_pickle_key());
    count!("get_outbound_group_session", store.get_outbound_group_session(room_id));
    count!("load_tracked_users", store.load_tracked_users());
    count!("get_device", store.get_device(alice, device));
    count!("get_user_devices", store.get_user_devices(alice));
    count!("get_own_device", store.get_own_device());
    count!("get_user_identity", store.get_user_identity(alice));
    count!("is_message_known", store.is_message_known(&hash));
    count!(
        "get_outgoing_secret_requests",
        store.get_outgoing_secret_requests(&TransactionId::new())
    );
    let info = SecretInfo::SecretRequest(SecretName::RecoveryKey);
    count!("get_secret_request_by_info", store.get_secret_request_by_info(&info));
    count!("get_unsent_secret_requests", store.get_unsent_secret_requests());
    count!("get_secrets_from_inbox", store.get_secrets_from_inbox(&SecretName::RecoveryKey));
    count!("get_room_settings", store.get_room_settings(room_id));
    count!(
        "get_received_room_key_bundle_data",
        store.get_received_room_key_bundle_data(room_id, alice)
    );
    count!(
        "get_pending_key_bundle_details_for_room",
        store.get_pending_key_bundle_details_for_room(room_id)
    );
    count!("get_all_rooms_pending_key_bundles", store.get_all_rooms_pending_key_bundles());
    count!("has_downloaded_all_room_keys", store.has_downloaded_all_room_keys(room_id));
    count!("get_custom_value", store.get_custom_value("key"));
    count!("next_batch_token", store.next_batch_token());
    count!("get_size", store.get_size());
}
