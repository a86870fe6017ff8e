//! The crypto store: the SDK's trait. Each kind of data has a file.

mod account_data;
mod backups;
mod custom_values;
mod deferred;
mod device_rows;
mod devices;
mod encrypted_rooms;
mod error;
mod identities;
mod inbound_group_sessions;
mod inspect;
mod key_requests;
mod message_hashes;
mod olm_sessions;
mod outbound_group_sessions;
mod own_device;
mod room_key_bundles;
mod room_keys;
mod save_changes;
mod secrets;
mod size;
mod static_account;
mod store;
mod sync_tokens;
pub(crate) mod tables;
mod tracked_users;
mod transactions;
mod withheld;

use std::collections::HashMap;

use async_trait::async_trait;
use matrix_sdk_common::{
    cross_process_lock::CrossProcessLockGeneration,
    ruma::{
        DeviceId, OwnedDeviceId, RoomId, TransactionId, UserId, events::secret::request::SecretName,
    },
};
use matrix_sdk_crypto::{
    Account, DeviceData, GossipRequest, SecretInfo, TrackedUser, UserIdentityData,
    olm::{
        InboundGroupSession, OlmMessageHash, OutboundGroupSession, PrivateCrossSigningIdentity,
        SenderDataType, Session,
    },
    store::{
        CryptoStore,
        types::{
            BackupKeys, Changes, DehydratedDeviceKey, PendingChanges, RoomKeyCounts,
            RoomKeyWithheldEntry, RoomPendingKeyBundleDetails, RoomSettings,
            StoredRoomKeyBundleData,
        },
    },
    vodozemac::Curve25519PublicKey,
};
use tracing::instrument;
use zeroize::Zeroizing;

pub(crate) use self::{
    device_rows::{OF_THE_DEVICE, OLM_ACCOUNT},
    inspect::{INSPECTED, Inspected},
    size::TABLES,
    store::CRYPTO_STORE,
};
pub use self::{own_device::OwnDevice, store::PostgresCryptoStore};
use crate::Error;

type Result<T> = std::result::Result<T, Error>;

#[async_trait]
impl CryptoStore for PostgresCryptoStore {
    type Error = Error;

    #[instrument(skip_all)]
    async fn load_account(&self) -> Result<Option<Account>> {
        let account = self.operation()?;
        account_data::load_account(&account, &self.saves(&account)?, self.static_account()).await
    }

    #[instrument(skip_all)]
    async fn load_identity(&self) -> Result<Option<PrivateCrossSigningIdentity>> {
        let account = self.operation()?;
        account_data::load_identity(&account, &self.saves(&account)?).await
    }

    #[instrument(skip_all)]
    async fn save_changes(&self, changes: Changes) -> Result<()> {
        let account = self.operation()?;
        save_changes::save(&account, self.saves(&account)?, changes).await
    }

    #[instrument(skip_all)]
    async fn save_pending_changes(&self, changes: PendingChanges) -> Result<()> {
        let account = self.operation()?;
        let (saves, cell) = (self.saves(&account)?, self.static_account().clone());
        account_data::save_pending_changes(&account, saves, changes, cell).await
    }

    #[instrument(skip_all, fields(count = sessions.len()))]
    async fn save_inbound_group_sessions(
        &self,
        sessions: Vec<InboundGroupSession>,
        backed_up_to_version: Option<&str>,
    ) -> Result<()> {
        let account = self.operation()?;
        save_changes::save_inbound_group_sessions(&account, sessions, backed_up_to_version).await
    }

    #[instrument(skip_all)]
    async fn get_sessions(&self, sender_key: &str) -> Result<Option<Vec<Session>>> {
        let account = self.operation_of_sync()?;
        let saves = self.saves(&account)?;
        olm_sessions::get(&account, &saves, self.own(&account)?, sender_key).await
    }

    #[instrument(skip_all)]
    async fn get_inbound_group_session(
        &self,
        room_id: &RoomId,
        session_id: &str,
    ) -> Result<Option<InboundGroupSession>> {
        inbound_group_sessions::get(&*self.operation()?, room_id, session_id).await
    }

    #[instrument(skip_all)]
    async fn get_withheld_info(
        &self,
        room_id: &RoomId,
        session_id: &str,
    ) -> Result<Option<RoomKeyWithheldEntry>> {
        withheld::get(&*self.operation()?, room_id, session_id).await
    }

    #[instrument(skip_all)]
    async fn get_withheld_sessions_by_room_id(
        &self,
        room_id: &RoomId,
    ) -> Result<Vec<RoomKeyWithheldEntry>> {
        withheld::by_room(&*self.operation()?, room_id).await
    }

    #[instrument(skip_all)]
    async fn get_inbound_group_sessions(&self) -> Result<Vec<InboundGroupSession>> {
        inbound_group_sessions::all(&*self.operation()?).await
    }

    #[instrument(skip_all)]
    async fn inbound_group_session_counts(
        &self,
        backup_version: Option<&str>,
    ) -> Result<RoomKeyCounts> {
        inbound_group_sessions::counts(&*self.operation()?, backup_version).await
    }

    #[instrument(skip_all)]
    async fn get_inbound_group_sessions_by_room_id(
        &self,
        room_id: &RoomId,
    ) -> Result<Vec<InboundGroupSession>> {
        inbound_group_sessions::by_room(&*self.operation()?, room_id).await
    }

    #[instrument(skip_all, fields(limit))]
    async fn get_inbound_group_sessions_for_device_batch(
        &self,
        curve_key: Curve25519PublicKey,
        sender_data_type: SenderDataType,
        after_session_id: Option<String>,
        limit: usize,
    ) -> Result<Vec<InboundGroupSession>> {
        inbound_group_sessions::by_sender(
            &*self.operation()?,
            curve_key,
            sender_data_type,
            after_session_id,
            limit,
        )
        .await
    }

    #[instrument(skip_all, fields(limit))]
    async fn inbound_group_sessions_for_backup(
        &self,
        backup_version: &str,
        limit: usize,
    ) -> Result<Vec<InboundGroupSession>> {
        inbound_group_sessions::for_backup(&*self.operation()?, backup_version, limit).await
    }

    #[instrument(skip_all, fields(count = room_and_session_ids.len()))]
    async fn mark_inbound_group_sessions_as_backed_up(
        &self,
        backup_version: &str,
        room_and_session_ids: &[(&RoomId, &str)],
    ) -> Result<()> {
        let account = self.operation()?;
        inbound_group_sessions::mark_backed_up(&account, backup_version, room_and_session_ids).await
    }

    #[instrument(skip_all)]
    async fn reset_backup_state(&self) -> Result<()> {
        backups::reset(&*self.operation()?).await
    }

    #[instrument(skip_all)]
    async fn load_backup_keys(&self) -> Result<BackupKeys> {
        account_data::load_backup_keys(&*self.operation()?).await
    }

    #[instrument(skip_all)]
    async fn load_dehydrated_device_pickle_key(&self) -> Result<Option<DehydratedDeviceKey>> {
        account_data::load_dehydrated_device_key(&*self.operation()?).await
    }

    #[instrument(skip_all)]
    async fn delete_dehydrated_device_pickle_key(&self) -> Result<()> {
        account_data::delete_dehydrated_device_key(&*self.operation()?).await
    }

    #[instrument(skip_all)]
    async fn get_outbound_group_session(
        &self,
        room_id: &RoomId,
    ) -> Result<Option<OutboundGroupSession>> {
        let account = self.operation()?;
        let saves = self.saves(&account)?;
        outbound_group_sessions::get(&account, &saves, self.own(&account)?, room_id).await
    }

    #[instrument(skip_all)]
    async fn load_tracked_users(&self) -> Result<Vec<TrackedUser>> {
        tracked_users::all(&*self.operation()?).await
    }

    #[instrument(skip_all, fields(count = users.len()))]
    async fn save_tracked_users(&self, users: &[(&UserId, bool)]) -> Result<()> {
        tracked_users::save(&*self.operation()?, users).await
    }

    #[instrument(skip_all)]
    async fn get_device(
        &self,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> Result<Option<DeviceData>> {
        let account = self.operation()?;
        devices::get(&account, &self.saves(&account)?, user_id, device_id).await
    }

    #[instrument(skip_all)]
    async fn get_user_devices(
        &self,
        user_id: &UserId,
    ) -> Result<HashMap<OwnedDeviceId, DeviceData>> {
        let account = self.operation_of_sync()?;
        devices::by_user(&account, &self.saves(&account)?, user_id).await
    }

    #[instrument(skip_all)]
    async fn get_own_device(&self) -> Result<DeviceData> {
        let account = self.operation()?;
        devices::own(&account, &self.saves(&account)?, self.own(&account)?).await
    }

    #[instrument(skip_all)]
    async fn get_user_identity(&self, user_id: &UserId) -> Result<Option<UserIdentityData>> {
        identities::get(&*self.operation()?, user_id).await
    }

    #[instrument(skip_all)]
    async fn is_message_known(&self, message_hash: &OlmMessageHash) -> Result<bool> {
        message_hashes::is_known(&*self.operation()?, message_hash).await
    }

    #[instrument(skip_all)]
    async fn get_outgoing_secret_requests(
        &self,
        request_id: &TransactionId,
    ) -> Result<Option<GossipRequest>> {
        let account = self.operation()?;
        key_requests::get(&account, &self.saves(&account)?, request_id).await
    }

    #[instrument(skip_all)]
    async fn get_secret_request_by_info(
        &self,
        secret_info: &SecretInfo,
    ) -> Result<Option<GossipRequest>> {
        let account = self.operation()?;
        key_requests::by_info(&account, &self.saves(&account)?, secret_info).await
    }

    #[instrument(skip_all)]
    async fn get_unsent_secret_requests(&self) -> Result<Vec<GossipRequest>> {
        let account = self.operation()?;
        key_requests::unsent(&account, &self.saves(&account)?).await
    }

    #[instrument(skip_all)]
    async fn delete_outgoing_secret_requests(&self, request_id: &TransactionId) -> Result<()> {
        let account = self.operation()?;
        key_requests::delete(&account, self.saves(&account)?, request_id).await
    }

    #[instrument(skip_all)]
    async fn get_secrets_from_inbox(
        &self,
        secret_name: &SecretName,
    ) -> Result<Vec<Zeroizing<String>>> {
        secrets::by_name(&*self.operation()?, secret_name).await
    }

    #[instrument(skip_all)]
    async fn delete_secrets_from_inbox(&self, secret_name: &SecretName) -> Result<()> {
        secrets::delete(&*self.operation()?, secret_name).await
    }

    #[instrument(skip_all)]
    async fn get_room_settings(&self, room_id: &RoomId) -> Result<Option<RoomSettings>> {
        encrypted_rooms::get(&*self.operation()?, room_id).await
    }

    #[instrument(skip_all)]
    async fn get_received_room_key_bundle_data(
        &self,
        room_id: &RoomId,
        user_id: &UserId,
    ) -> Result<Option<StoredRoomKeyBundleData>> {
        room_key_bundles::received(&*self.operation()?, room_id, user_id).await
    }

    #[instrument(skip_all)]
    async fn get_pending_key_bundle_details_for_room(
        &self,
        room_id: &RoomId,
    ) -> Result<Option<RoomPendingKeyBundleDetails>> {
        room_key_bundles::pending(&*self.operation()?, room_id).await
    }

    #[instrument(skip_all)]
    async fn get_all_rooms_pending_key_bundles(&self) -> Result<Vec<RoomPendingKeyBundleDetails>> {
        room_key_bundles::all_pending(&*self.operation()?).await
    }

    #[instrument(skip_all)]
    async fn has_downloaded_all_room_keys(&self, room_id: &RoomId) -> Result<bool> {
        room_key_bundles::is_backed_up(&*self.operation()?, room_id).await
    }

    #[instrument(skip_all)]
    async fn get_custom_value(&self, key: &str) -> Result<Option<Vec<u8>>> {
        custom_values::get(&*self.operation()?, key).await
    }

    #[instrument(skip_all)]
    async fn set_custom_value(&self, key: &str, value: Vec<u8>) -> Result<()> {
        custom_values::set(&*self.operation()?, key, value).await
    }

    #[instrument(skip_all)]
    async fn remove_custom_value(&self, key: &str) -> Result<()> {
        custom_values::remove(&*self.operation()?, key).await
    }

    #[instrument(skip_all, fields(lease_duration_ms))]
    async fn try_take_leased_lock(
        &self,
        lease_duration_ms: u32,
        key: &str,
        holder: &str,
    ) -> Result<Option<CrossProcessLockGeneration>> {
        self.operation()?.take_lease(lease_duration_ms, key, holder).await
    }

    #[instrument(skip_all)]
    async fn next_batch_token(&self) -> Result<Option<String>> {
        sync_tokens::get(&*self.operation()?).await
    }

    #[instrument(skip_all)]
    async fn close(&self) -> Result<()> {
        self.handle().close().await
    }

    #[instrument(skip_all)]
    async fn reopen(&self) -> Result<()> {
        self.handle().reopen().await
    }

    #[instrument(skip_all)]
    async fn get_size(&self) -> Result<Option<usize>> {
        size::estimate(&*self.operation()?).await.map(Some)
    }
}
