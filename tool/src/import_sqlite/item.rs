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
    pub fn new(account: &Account) -> Self {
        Self(bytes(&account.pickle()))
    }

    pub fn account(&self) -> Option<Account> {
        Account::from_pickle(rmp_serde::from_slice(&self.0).ok()?).ok()
    }
}

/// Tells whether two values are the same.
pub type Fingerprint = [u8; 32];

impl Item {
    /// The fingerprint of what the SDK would store. An empty one is never equal to another's.
    pub async fn fingerprint(&self) -> Fingerprint {
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
            Self::OlmAccount(account) => account.0.clone(),
        };
        Sha256::digest(zeroize::Zeroizing::new(bytes).as_slice()).into()
    }
}

/// What the SDK's types are made of can always be written.
fn bytes(value: &impl Serialize) -> Vec<u8> {
    rmp_serde::to_vec_named(value).unwrap_or_default()
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}
