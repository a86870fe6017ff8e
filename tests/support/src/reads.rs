//! Every read of a store, by the table it reads.

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{Error, PostgresCryptoStore};
use tokio_postgres::Client;

use super::fixture::{
    BACKUP_VERSION, CUSTOM_KEY, Fixture, other_user, own_device, own_user, room, secret_name,
};

/// One read: the number of values found, or the error.
pub struct Read {
    pub table: &'static str,
    pub method: &'static str,
    pub found: Result<usize, Error>,
}

/// Tables without a sealed value that could be damaged.
pub const TABLES_WITHOUT_DATA: [&str; 8] = [
    "message_hashes",
    "backup_versions",
    "backed_up_rooms",
    "lease_locks",
    "account_owners",
    "account_handles",
    "account_lanes",
    "quarantined_rows",
];

macro_rules! reads {
    ($($table:literal: $method:ident = $future:expr => $count:expr;)*) => {
        vec![$(Read {
            table: $table,
            method: stringify!($method),
            found: $future.await.map($count),
        }),*]
    };
}

/// Performs every read. Each finds a value after [`Fixture::fill`], unless a row is missing.
pub async fn read_all(store: &PostgresCryptoStore, fixture: &Fixture) -> Vec<Read> {
    let (session_id, sender_key) = (fixture.inbound.session_id(), fixture.sender_key());
    let kind = fixture.inbound.sender_data_type();
    let olm_sender = fixture.olm_session.sender_key().to_base64();
    let device = fixture.other_device.device_id();
    let identity = matrix_sdk_crypto::testing::get_other_identity();
    let request = &fixture.key_request;
    let name = secret_name();
    reads! {
        "account_data": load_account = store.load_account() => one;
        "account_data": load_identity = store.load_identity() => one;
        "account_data": load_backup_keys = store.load_backup_keys()
            => |keys| one(keys.decryption_key) + one(keys.backup_version);
        "account_data": load_dehydrated_device_pickle_key
            = store.load_dehydrated_device_pickle_key() => one;
        "sync_tokens": next_batch_token = store.next_batch_token() => one;
        "olm_sessions": get_sessions = store.get_sessions(&olm_sender)
            => |found| found.map_or(0, |sessions| sessions.len());
        "message_hashes": is_message_known = store.is_message_known(&fixture.message_hash)
            => usize::from;
        "megolm_inbound_sessions": get_inbound_group_session
            = store.get_inbound_group_session(room(), session_id) => one;
        "megolm_inbound_sessions": get_inbound_group_sessions
            = store.get_inbound_group_sessions() => many;
        "megolm_inbound_sessions": get_inbound_group_sessions_by_room_id
            = store.get_inbound_group_sessions_by_room_id(room()) => many;
        "megolm_inbound_sessions": get_inbound_group_sessions_for_device_batch
            = store.get_inbound_group_sessions_for_device_batch(sender_key, kind, None, 10) => many;
        "megolm_inbound_sessions": inbound_group_sessions_for_backup
            = store.inbound_group_sessions_for_backup("another version", 10) => many;
        "backup_versions": inbound_group_session_counts
            = store.inbound_group_session_counts(Some(BACKUP_VERSION)) => |count| count.backed_up;
        "megolm_outbound_sessions": get_outbound_group_session
            = store.get_outbound_group_session(room()) => one;
        "devices": get_device = store.get_device(other_user(), device) => one;
        "devices": get_user_devices = store.get_user_devices(other_user()) => |map| map.len();
        "user_identities": get_user_identity = store.get_user_identity(identity.user_id()) => one;
        "tracked_users": load_tracked_users = store.load_tracked_users() => many;
        "encrypted_rooms": get_room_settings = store.get_room_settings(room()) => one;
        "key_requests": get_outgoing_secret_requests
            = store.get_outgoing_secret_requests(&request.request_id) => one;
        "key_requests": get_secret_request_by_info
            = store.get_secret_request_by_info(&request.info) => one;
        "key_requests": get_unsent_secret_requests = store.get_unsent_secret_requests() => many;
        "withheld_sessions": get_withheld_info = store.get_withheld_info(room(), session_id) => one;
        "withheld_sessions": get_withheld_sessions_by_room_id
            = store.get_withheld_sessions_by_room_id(room()) => many;
        "secrets_inbox": get_secrets_from_inbox = store.get_secrets_from_inbox(&name) => many;
        "room_key_bundles": get_received_room_key_bundle_data
            = store.get_received_room_key_bundle_data(room(), other_user()) => one;
        "pending_key_bundles": get_pending_key_bundle_details_for_room
            = store.get_pending_key_bundle_details_for_room(room()) => one;
        "pending_key_bundles": get_all_rooms_pending_key_bundles
            = store.get_all_rooms_pending_key_bundles() => many;
        "backed_up_rooms": has_downloaded_all_room_keys
            = store.has_downloaded_all_room_keys(room()) => usize::from;
        "custom_values": get_custom_value = store.get_custom_value(CUSTOM_KEY) => one;
    }
}

/// The reads of the own device, which return an error if it is missing.
pub async fn read_own_device(store: &PostgresCryptoStore) -> Vec<Read> {
    reads! {
        "devices": get_own_device = store.get_own_device() => |_| 1;
        "devices": get_own_user_device = store.get_device(own_user(), own_device()) => one;
    }
}

/// Asserts that every read finds a value.
pub async fn assert_complete(store: &PostgresCryptoStore, fixture: &Fixture) {
    for read in read_all(store, fixture).await {
        assert!(matches!(read.found, Ok(1..)), "{}: {:?}", read.method, read.found);
    }
}

/// Asserts that every read finds nothing.
pub async fn assert_empty(store: &PostgresCryptoStore, fixture: &Fixture) {
    for read in read_all(store, fixture).await {
        // Without an account, reads of sessions are refused.
        let unset = matches!(read.found, Err(Error::AccountUnset));
        assert!(unset || matches!(read.found, Ok(0)), "{}: {:?}", read.method, read.found);
    }
}

/// The tables of the schema, by name.
pub async fn tables(client: &Client) -> Vec<String> {
    let sql = "SELECT relname::text FROM pg_class
               WHERE relnamespace = 'matrix_sdk'::regnamespace AND relkind = 'r' ORDER BY relname";
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// The tables with a sealed value, which the test of damaged rows must cover.
pub async fn tables_with_data(client: &Client) -> Vec<String> {
    let sql = "SELECT table_name::text FROM information_schema.columns
               WHERE table_schema = 'matrix_sdk' AND column_name = 'data' ORDER BY table_name";
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

fn one<T>(found: Option<T>) -> usize {
    usize::from(found.is_some())
}

fn many<T>(found: Vec<T>) -> usize {
    found.len()
}
