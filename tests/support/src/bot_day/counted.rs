//! A store that counts the calls it passes on.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use matrix_sdk_common::cross_process_lock::CrossProcessLockGeneration;
use matrix_sdk_crypto::{
    Account, DeviceData, GossipRequest, SecretInfo, TrackedUser, UserIdentityData,
    olm::{
        InboundGroupSession, OlmMessageHash, OutboundGroupSession, PrivateCrossSigningIdentity,
        SenderDataType, Session,
    },
    store::{
        CryptoStore, CryptoStoreError, DynCryptoStore,
        types::{
            BackupKeys, Changes, DehydratedDeviceKey, PendingChanges, RoomKeyCounts,
            RoomKeyWithheldEntry, RoomPendingKeyBundleDetails, RoomSettings,
            StoredRoomKeyBundleData,
        },
    },
    vodozemac::Curve25519PublicKey,
};
use ruma::{
    DeviceId, OwnedDeviceId, RoomId, TransactionId, UserId, events::secret::request::SecretName,
};
use zeroize::Zeroizing;

/// Forwards every call to the inner store.
#[derive(Debug)]
pub struct Counted {
    pub store: Arc<DynCryptoStore>,
    pub calls: Arc<AtomicUsize>,
    /// The methods that were called by spawned tasks.
    pub spawned: Arc<Mutex<BTreeSet<&'static str>>>,
}

macro_rules! counted {
    ($(fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        #[async_trait]
        impl CryptoStore for Counted {
            type Error = CryptoStoreError;

            $(async fn $name(&self, $($argument: $type),*) -> Result<$result, CryptoStoreError> {
                self.calls.fetch_add(1, Ordering::Relaxed);
                if tokio::task::try_id().is_some() {
                    self.spawned.lock().unwrap().insert(stringify!($name));
                }
                self.store.$name($($argument),*).await
            })*
        }
    };
}

counted! {
    fn load_account() -> Option<Account>;
    fn load_identity() -> Option<PrivateCrossSigningIdentity>;
    fn save_changes(changes: Changes) -> ();
    fn save_pending_changes(changes: PendingChanges) -> ();
    fn save_inbound_group_sessions(
        sessions: Vec<InboundGroupSession>, version: Option<&str>) -> ();
    fn get_sessions(sender_key: &str) -> Option<Vec<Session>>;
    fn get_inbound_group_session(
        room_id: &RoomId, session_id: &str) -> Option<InboundGroupSession>;
    fn get_withheld_info(
        room_id: &RoomId, session_id: &str) -> Option<RoomKeyWithheldEntry>;
    fn get_withheld_sessions_by_room_id(room_id: &RoomId) -> Vec<RoomKeyWithheldEntry>;
    fn get_inbound_group_sessions() -> Vec<InboundGroupSession>;
    fn inbound_group_session_counts(version: Option<&str>) -> RoomKeyCounts;
    fn get_inbound_group_sessions_by_room_id(room_id: &RoomId) -> Vec<InboundGroupSession>;
    fn get_inbound_group_sessions_for_device_batch(
        sender_key: Curve25519PublicKey, kind: SenderDataType, after: Option<String>,
        limit: usize) -> Vec<InboundGroupSession>;
    fn inbound_group_sessions_for_backup(
        version: &str, limit: usize) -> Vec<InboundGroupSession>;
    fn mark_inbound_group_sessions_as_backed_up(
        version: &str, ids: &[(&RoomId, &str)]) -> ();
    fn reset_backup_state() -> ();
    fn load_backup_keys() -> BackupKeys;
    fn load_dehydrated_device_pickle_key() -> Option<DehydratedDeviceKey>;
    fn delete_dehydrated_device_pickle_key() -> ();
    fn get_outbound_group_session(room_id: &RoomId) -> Option<OutboundGroupSession>;
    fn load_tracked_users() -> Vec<TrackedUser>;
    fn save_tracked_users(users: &[(&UserId, bool)]) -> ();
    fn get_device(user_id: &UserId, device_id: &DeviceId) -> Option<DeviceData>;
    fn get_user_devices(user_id: &UserId) -> HashMap<OwnedDeviceId, DeviceData>;
    fn get_own_device() -> DeviceData;
    fn get_user_identity(user_id: &UserId) -> Option<UserIdentityData>;
    fn is_message_known(hash: &OlmMessageHash) -> bool;
    fn get_outgoing_secret_requests(request_id: &TransactionId) -> Option<GossipRequest>;
    fn get_secret_request_by_info(info: &SecretInfo) -> Option<GossipRequest>;
    fn get_unsent_secret_requests() -> Vec<GossipRequest>;
    fn delete_outgoing_secret_requests(request_id: &TransactionId) -> ();
    fn get_secrets_from_inbox(name: &SecretName) -> Vec<Zeroizing<String>>;
    fn delete_secrets_from_inbox(name: &SecretName) -> ();
    fn get_room_settings(room_id: &RoomId) -> Option<RoomSettings>;
    fn get_received_room_key_bundle_data(
        room_id: &RoomId, user_id: &UserId) -> Option<StoredRoomKeyBundleData>;
    fn get_pending_key_bundle_details_for_room(
        room_id: &RoomId) -> Option<RoomPendingKeyBundleDetails>;
    fn get_all_rooms_pending_key_bundles() -> Vec<RoomPendingKeyBundleDetails>;
    fn has_downloaded_all_room_keys(room_id: &RoomId) -> bool;
    fn get_custom_value(key: &str) -> Option<Vec<u8>>;
    fn set_custom_value(key: &str, value: Vec<u8>) -> ();
    fn remove_custom_value(key: &str) -> ();
    fn try_take_leased_lock(
        duration_ms: u32, key: &str, holder: &str) -> Option<CrossProcessLockGeneration>;
    fn next_batch_token() -> Option<String>;
    fn close() -> ();
    fn reopen() -> ();
    fn get_size() -> Option<usize>;
}
