//! One value of a store, decoded.

use matrix_sdk_crypto::{
    Account, DeviceData, GossipRequest, TrackedUser, UserIdentityData,
    olm::{
        InboundGroupSession, OlmMessageHash, OutboundGroupSession, PrivateCrossSigningIdentity,
        Session,
    },
    store::types::{
        BackupDecryptionKey, DehydratedDeviceKey, RoomKeyWithheldEntry,
        RoomPendingKeyBundleDetails, RoomSettings, SecretsInboxItem, StoredRoomKeyBundleData,
    },
};
use ruma::OwnedRoomId;
use serde::Serialize;
use sha2::{Digest, Sha256};

/// A value of a crypto store. What the SDK keeps behind a lock is cloned as a handle.
#[derive(Clone)]
pub enum Item {
    Device(Box<DeviceData>),
    UserIdentity(Box<UserIdentityData>),
    TrackedUser(TrackedUser),
    OlmSession(Box<Session>),
    InboundSession(Box<InboundGroupSession>),
    OutboundSession(Box<OutboundGroupSession>),
    MessageHash(OlmMessageHash),
    KeyRequest(Box<GossipRequest>),
    Secret(SecretsInboxItem),
    Withheld(OwnedRoomId, String, Box<RoomKeyWithheldEntry>),
    RoomSettings(OwnedRoomId, RoomSettings),
    RoomKeyBundle(Box<StoredRoomKeyBundleData>),
    PendingKeyBundle(RoomPendingKeyBundleDetails),
    BackedUpRoom(OwnedRoomId),
    CustomValue(String, Vec<u8>),
    PrivateIdentity(Box<PrivateCrossSigningIdentity>),
    BackupVersion(String),
    BackupDecryptionKey(BackupDecryptionKey),
    DehydratedDeviceKey(DehydratedDeviceKey),
    SyncToken(String),
    OlmAccount(Box<PickledAccountOf>),
}

/// The Olm account, which has no `Clone`: as its pickle.
#[derive(Clone)]
pub struct PickledAccountOf(pub Vec<u8>);

impl PickledAccountOf {
    pub fn new(account: &Account) -> Option<Self> {
        bytes(&account.pickle()).map(Self)
    }

    pub fn account(&self) -> Option<Account> {
        Account::from_pickle(rmp_serde::from_slice(&self.0).ok()?).ok()
    }
}

type Fingerprint = [u8; 32];

impl Item {
    /// Whether the SDK would store the same of both. A value that cannot be serialised is equal to none.
    pub async fn is_same(&self, other: &Self) -> bool {
        let fingerprint = self.fingerprint().await;
        fingerprint.is_some() && fingerprint == other.fingerprint().await
    }

    /// The fingerprint of what the SDK would store.
    async fn fingerprint(&self) -> Option<Fingerprint> {
        let bytes = match self {
            Self::Device(device) => bytes(device),
            Self::UserIdentity(identity) => bytes(identity),
            Self::TrackedUser(user) => bytes(user),
            Self::OlmSession(session) => bytes(&session.pickle().await),
            Self::InboundSession(session) => bytes(&session.pickle().await),
            // It may hold raw JSON, which MessagePack cannot.
            Self::OutboundSession(session) => json(&session.pickle().await),
            Self::MessageHash(hash) => bytes(hash),
            Self::KeyRequest(request) => bytes(request),
            Self::Secret(secret) => bytes(&(&secret.secret_name, secret.secret.as_str())),
            Self::Withheld(room_id, session_id, entry) => json(&(room_id, session_id, entry)),
            Self::RoomSettings(room_id, settings) => bytes(&(room_id, settings)),
            Self::RoomKeyBundle(bundle) => bytes(bundle),
            Self::PendingKeyBundle(details) => bytes(details),
            Self::BackedUpRoom(room_id) => bytes(room_id),
            Self::CustomValue(name, value) => bytes(&(name, value)),
            Self::PrivateIdentity(identity) => bytes(&identity.pickle().await),
            Self::BackupVersion(version) => bytes(version),
            Self::BackupDecryptionKey(key) => bytes(key),
            Self::DehydratedDeviceKey(key) => bytes(key),
            Self::SyncToken(token) => bytes(token),
            Self::OlmAccount(account) => Some(account.0.clone()),
        };
        let bytes = zeroize::Zeroizing::new(bytes?);
        Some(Sha256::digest(bytes.as_slice()).into())
    }
}

fn bytes(value: &impl Serialize) -> Option<Vec<u8>> {
    rmp_serde::to_vec_named(value).ok()
}

fn json(value: &impl Serialize) -> Option<Vec<u8>> {
    serde_json::to_vec(value).ok()
}
