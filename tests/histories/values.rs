//! How single values are made, where upstream needs more than a constructor.

use matrix_sdk_crypto::{
    UserIdentityData,
    olm::{Account, InboundGroupSession, OutboundGroupSession, SenderData, Session},
    store::types::{RoomKeyWithheldEntry, StoredRoomKeyBundleData},
    testing::get_other_identity,
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
    },
};
use ruma::{
    RoomId, TransactionId, UserId,
    events::room::{EncryptedFile, V2EncryptedFileInfo},
    serde::Raw,
    to_device::DeviceIdOrAllDevices,
};
use serde_json::json;

use crate::universe::device_id;

/// Upstream gives one identity: its user and a flag are replaced. Nobody looks at the signatures.
pub fn identity(user_id: &UserId, form: u8) -> UserIdentityData {
    let template = UserIdentityData::from(get_other_identity());
    let mut value = serde_json::to_value(&template).unwrap();
    value["Other"]["previously_verified"] = (form % 2 == 1).into();
    if form == 2 {
        value["Other"]["pinned_master_key"]["signatures"] = json!({});
    }
    let text = value.to_string().replace(template.user_id().as_str(), user_id.as_str());
    serde_json::from_str(&text).unwrap()
}

pub fn olm_session(own: &Account, sender: &mut Account) -> Session {
    sender.generate_one_time_keys(1);
    let one_time_key = *sender.one_time_keys().values().next().unwrap();
    let session = own.create_outbound_session_helper(
        Default::default(),
        sender.identity_keys().curve25519,
        one_time_key,
        false,
        own.device_keys(),
    );
    session.unwrap()
}

pub fn megolm_ratchet() -> GroupSession {
    GroupSession::new(SessionConfig::default())
}

pub fn room_key(
    sender: &Account,
    room_id: &RoomId,
    ratchet: &GroupSession,
    is_device_known: bool,
) -> InboundGroupSession {
    let sender_data = if is_device_known {
        SenderData::device_info(sender.device_keys())
    } else {
        SenderData::unknown()
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

pub async fn outbound_session(own: &Account, room_id: &RoomId, form: u8) -> OutboundGroupSession {
    let (session, _) = own.create_group_session_pair_with_defaults(room_id).await;
    if form > 0 {
        // Raw JSON, which not every form of serialisation keeps.
        let content = json!({ "body": form });
        let request = ToDeviceRequest::new(
            own.user_id(),
            DeviceIdOrAllDevices::AllDevices,
            "m.dummy",
            Raw::from_json(serde_json::value::to_raw_value(&content).unwrap()),
        );
        session.add_request(TransactionId::new(), request.into(), Default::default());
    }
    session
}

pub fn withheld(
    room_id: &RoomId,
    session_id: &str,
    sender: &UserId,
    form: u8,
) -> RoomKeyWithheldEntry {
    let content = CommonWithheldCodeContent::new(
        room_id.to_owned(),
        session_id.to_owned(),
        Curve25519PublicKey::from_bytes([form; 32]),
        device_id(1, 0),
    );
    let content = MegolmV1AesSha2WithheldContent::Unverified(content.into());
    let content = RoomKeyWithheldContent::MegolmV1AesSha2(content);
    ToDeviceEvent::new(sender.to_owned(), content).into()
}

pub fn bundle(room_id: &RoomId, sender: &UserId, form: u8) -> StoredRoomKeyBundleData {
    let info = V2EncryptedFileInfo::encode([form; 32], [8; 16]).into();
    let file = EncryptedFile::new("mxc://example.org/bundle".into(), info, Default::default());
    StoredRoomKeyBundleData {
        sender_user: sender.to_owned(),
        sender_key: Curve25519PublicKey::from_bytes([form; 32]),
        sender_data: SenderData::unknown(),
        bundle_data: RoomKeyBundleContent { room_id: room_id.to_owned(), file },
    }
}
