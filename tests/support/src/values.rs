//! Creates single values for which upstream has no simple constructor.

use matrix_sdk_crypto::{
    olm::{
        Account, InboundGroupSession, OutboundGroupSession, SenderData, SenderDataType, Session,
    },
    store::types::{RoomKeyWithheldEntry, StoredRoomKeyBundleData},
    types::{
        EventEncryptionAlgorithm,
        events::{
            ToDeviceEvent,
            room_key_bundle::RoomKeyBundleContent,
            room_key_withheld::{
                CommonWithheldCodeContent, MegolmV1AesSha2WithheldContent, RoomKeyWithheldContent,
            },
        },
        requests::ToDeviceRequest,
    },
    vodozemac::{
        Curve25519PublicKey,
        megolm::{GroupSession, SessionConfig},
        olm::OlmMessage,
    },
};
use ruma::{
    OwnedDeviceId, RoomId, TransactionId, UserId,
    events::room::{EncryptedFile, V2EncryptedFileInfo},
    serde::Raw,
    to_device::DeviceIdOrAllDevices,
};
use serde_json::Value;

/// A session of the own account with another device, whose one-time keys are replaced.
pub fn olm_session(own: &Account, other: &mut Account) -> Session {
    other.generate_one_time_keys(1);
    let one_time_key = *other.one_time_keys().values().next().unwrap();
    let session = own.create_outbound_session_helper(
        Default::default(),
        other.identity_keys().curve25519,
        one_time_key,
        false,
        own.device_keys(),
    );
    session.unwrap()
}

/// The session created by another device's first message, and that device's own session.
pub async fn received_session(own: &Account, other: &Account) -> [Session; 2] {
    let mut own = own.deep_clone();
    own.generate_one_time_keys(1);
    let one_time_key = *own.one_time_keys().values().next().unwrap();
    let sent = other.create_outbound_session_helper(
        Default::default(),
        own.identity_keys().curve25519,
        one_time_key,
        false,
        other.device_keys(),
    );
    let sent = sent.unwrap();
    let OlmMessage::PreKey(message) = sent.inner.lock().await.encrypt("hello").unwrap() else {
        panic!("the first message is not a pre-key message");
    };
    let (sender, keys) = (other.identity_keys().curve25519, own.device_keys());
    [own.create_inbound_session(sender, keys, &message).unwrap().session, sent]
}

/// An independent copy of the session: clones share their state.
pub async fn copy_of(own: &Account, session: &Session) -> Session {
    Session::from_pickle(own.device_keys(), session.pickle().await).unwrap()
}

pub fn megolm_ratchet() -> GroupSession {
    GroupSession::new(SessionConfig::default())
}

/// A room key of this sender, from this ratchet.
pub fn room_key(
    sender: &Account,
    room_id: &RoomId,
    ratchet: &GroupSession,
    kind: SenderDataType,
) -> InboundGroupSession {
    let sender_data = match kind {
        SenderDataType::DeviceInfo => SenderData::device_info(sender.device_keys()),
        _ => SenderData::unknown(),
    };
    InboundGroupSession::new(
        sender.identity_keys().curve25519,
        sender.identity_keys().ed25519,
        room_id,
        &ratchet.session_key(),
        sender_data,
        None,
        EventEncryptionAlgorithm::MegolmV1AesSha2,
        None,
        false,
    )
    .unwrap()
}

/// Adds a request that is still to be sent: raw JSON, which not every serialisation format preserves.
pub fn add_request(session: &OutboundGroupSession, to: &UserId, content: &Value) {
    let request = ToDeviceRequest::new(
        to,
        DeviceIdOrAllDevices::AllDevices,
        "m.dummy",
        Raw::from_json(serde_json::value::to_raw_value(content).unwrap()),
    );
    session.add_request(TransactionId::new(), request.into(), Default::default());
}

pub fn withheld(
    room_id: &RoomId,
    session_id: &str,
    sender: &UserId,
    sender_key: Curve25519PublicKey,
    device_id: OwnedDeviceId,
) -> RoomKeyWithheldEntry {
    let content = CommonWithheldCodeContent::new(
        room_id.to_owned(),
        session_id.to_owned(),
        sender_key,
        device_id,
    );
    let content = MegolmV1AesSha2WithheldContent::Unverified(content.into());
    let content = RoomKeyWithheldContent::MegolmV1AesSha2(content);
    ToDeviceEvent::new(sender.to_owned(), content).into()
}

/// A bundle whose keys are these bytes.
pub fn bundle(
    room_id: &RoomId,
    sender: &UserId,
    uri: &str,
    [file_key, sender_key]: [u8; 2],
) -> StoredRoomKeyBundleData {
    let info = V2EncryptedFileInfo::encode([file_key; 32], [8; 16]).into();
    let file = EncryptedFile::new(uri.into(), info, Default::default());
    StoredRoomKeyBundleData {
        sender_user: sender.to_owned(),
        sender_key: Curve25519PublicKey::from_bytes([sender_key; 32]),
        sender_data: SenderData::unknown(),
        bundle_data: RoomKeyBundleContent { room_id: room_id.to_owned(), file },
    }
}
