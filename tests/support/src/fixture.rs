//! One row of every kind in a crypto store, with ids that can be searched for.

use std::collections::{BTreeMap, HashMap, HashSet};

use matrix_sdk_crypto::{
    DeviceData, GossipRequest, SecretInfo,
    olm::{
        Account, InboundGroupSession, OlmMessageHash, OutboundGroupSession,
        PrivateCrossSigningIdentity, SenderDataType, Session,
    },
    store::{
        CryptoStore,
        types::{
            BackupDecryptionKey, Changes, DehydratedDeviceKey, DeviceChanges, IdentityChanges,
            PendingChanges, RoomKeyWithheldEntry, RoomPendingKeyBundleDetails, RoomSettings,
            SecretsInboxItem, StoredRoomKeyBundleData,
        },
    },
    testing::get_other_identity,
    vodozemac::Curve25519PublicKey,
};
use matrix_sdk_postgres::PostgresCryptoStore;
use ruma::{
    DeviceId, MilliSecondsSinceUnixEpoch, OwnedTransactionId, RoomId, UserId, device_id,
    events::secret::request::SecretName, room_id, user_id,
};
use serde_json::json;

use super::values;

pub const BACKUP_VERSION: &str = "clandestine-backup-version";
pub const CUSTOM_KEY: &str = "clandestine-custom-key";
pub const CUSTOM_VALUE: &[u8] = b"clandestine-custom-value";
pub const LEASE_KEY: &str = "clandestine-lease-key";
pub const LEASE_HOLDER: &str = "clandestine-lease-holder";
pub const SYNC_TOKEN: &str = "clandestine-sync-token";
pub const SECRET: &str = "clandestine-gossiped-secret";
pub const EVENT_BODY: &str = "clandestine-event-body";
pub const BUNDLE_URI: &str = "mxc://clandestine.example/bundle";

pub fn own_user() -> &'static UserId {
    user_id!("@clandestine-alice:hidden.example")
}

pub fn own_device() -> &'static DeviceId {
    device_id!("ALICESDEVICE")
}

pub fn other_user() -> &'static UserId {
    user_id!("@clandestine-bob:hidden.example")
}

pub fn room() -> &'static RoomId {
    room_id!("!clandestine-room:hidden.example")
}

pub fn secret_name() -> SecretName {
    SecretName::from("clandestine.secret.name")
}

/// The rows of one account. They can be saved in other accounts, too.
pub struct Fixture {
    pub account: Account,
    pub other_device: DeviceData,
    pub identity: PrivateCrossSigningIdentity,
    pub backup_key: BackupDecryptionKey,
    pub dehydration_key: DehydratedDeviceKey,
    pub olm_session: Session,
    pub message_hash: OlmMessageHash,
    pub inbound: InboundGroupSession,
    pub outbound: OutboundGroupSession,
    pub key_request: GossipRequest,
}

impl Fixture {
    pub async fn new() -> Self {
        let account = Account::with_device_id(own_user(), own_device());
        let mut bob = Account::with_device_id(other_user(), device_id!("BOBSDEVICE"));
        let olm_session = values::olm_session(&account, &mut bob);
        let (outbound, inbound) = account.create_group_session_pair_with_defaults(room()).await;
        values::add_request(&outbound, other_user(), &json!({ "body": EVENT_BODY }));
        Self {
            identity: PrivateCrossSigningIdentity::new(own_user().to_owned()),
            backup_key: BackupDecryptionKey::new(),
            dehydration_key: DehydratedDeviceKey::new(),
            olm_session,
            message_hash: OlmMessageHash {
                sender_key: "clandestine-hash-sender".to_owned(),
                hash: "clandestine-message-hash".to_owned(),
            },
            inbound,
            outbound,
            key_request: key_request("clandestine-request-id", secret_name().into(), false),
            other_device: DeviceData::from_account(&bob),
            account,
        }
    }

    /// A `Changes` with every field set.
    pub fn changes(&self) -> Changes {
        let withheld = withheld(self.inbound.session_id(), self.account.identity_keys().curve25519);
        let pending = RoomPendingKeyBundleDetails {
            room_id: room().to_owned(),
            invite_accepted_at: MilliSecondsSinceUnixEpoch::now(),
            inviter: other_user().to_owned(),
        };
        let secret =
            SecretsInboxItem { secret_name: secret_name(), secret: SECRET.to_owned().into() };
        Changes {
            private_identity: Some(self.identity.clone()),
            backup_version: Some(BACKUP_VERSION.to_owned()),
            backup_decryption_key: Some(self.backup_key.clone()),
            dehydrated_device_pickle_key: Some(self.dehydration_key.clone()),
            sessions: vec![self.olm_session.clone()],
            message_hashes: vec![self.message_hash.clone()],
            inbound_group_sessions: vec![self.inbound.clone()],
            outbound_group_sessions: vec![self.outbound.clone()],
            key_requests: vec![self.key_request.clone()],
            identities: IdentityChanges {
                new: vec![get_other_identity().into()],
                ..Default::default()
            },
            devices: DeviceChanges {
                new: vec![DeviceData::from_account(&self.account), self.other_device.clone()],
                ..Default::default()
            },
            withheld_session_info: BTreeMap::from([(
                room().to_owned(),
                BTreeMap::from([(self.inbound.session_id().to_owned(), withheld)]),
            )]),
            room_settings: HashMap::from([(room().to_owned(), RoomSettings::default())]),
            secrets: vec![secret],
            next_batch_token: Some(SYNC_TOKEN.to_owned()),
            received_room_key_bundles: vec![bundle()],
            room_key_backups_fully_downloaded: HashSet::from([room().to_owned()]),
            rooms_pending_key_bundle: HashMap::from([(room().to_owned(), Some(pending))]),
        }
    }

    /// Saves all rows: afterwards no table is empty.
    pub async fn fill(&self, store: &PostgresCryptoStore) {
        let account = Some(self.account.deep_clone());
        store.save_pending_changes(PendingChanges { account }).await.unwrap();
        store.save_changes(self.changes()).await.unwrap();
        let ids = [(room(), self.inbound.session_id())];
        store.mark_inbound_group_sessions_as_backed_up(BACKUP_VERSION, &ids).await.unwrap();
        store.save_tracked_users(&[(other_user(), true)]).await.unwrap();
        store.set_custom_value(CUSTOM_KEY, CUSTOM_VALUE.to_vec()).await.unwrap();
        let lease = store.try_take_leased_lock(60_000, LEASE_KEY, LEASE_HOLDER).await.unwrap();
        assert_eq!(lease, Some(1));
    }

    pub fn sender_key(&self) -> Curve25519PublicKey {
        self.inbound.sender_key()
    }
}

/// A new room key of this sender.
pub fn inbound_session(
    account: &Account,
    room_id: &RoomId,
    kind: SenderDataType,
) -> InboundGroupSession {
    values::room_key(account, room_id, &values::megolm_ratchet(), kind)
}

pub fn key_request(id: &str, info: SecretInfo, sent_out: bool) -> GossipRequest {
    GossipRequest {
        request_recipient: own_user().to_owned(),
        request_id: OwnedTransactionId::from(id),
        info,
        sent_out,
    }
}

pub fn withheld(session_id: &str, sender_key: Curve25519PublicKey) -> RoomKeyWithheldEntry {
    let (sender, device) = (other_user(), own_device().to_owned());
    values::withheld(room(), session_id, sender, sender_key, device)
}

fn bundle() -> StoredRoomKeyBundleData {
    values::bundle(room(), other_user(), BUNDLE_URI, [7, 9])
}
