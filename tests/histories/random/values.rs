//! Creates the values of the fixtures.

use matrix_sdk_crypto::{
    UserIdentityData,
    olm::{Account, InboundGroupSession, OutboundGroupSession, SenderDataType},
    store::types::{RoomKeyWithheldEntry, StoredRoomKeyBundleData},
    testing::get_other_identity,
    vodozemac::{Curve25519PublicKey, megolm::GroupSession},
};
use ruma::{RoomId, UserId};
use serde_json::json;

use test_support::values;
pub use test_support::values::{copy_of, megolm_ratchet, received_session};

use super::fixtures::device_id;

/// Upstream's test identity with the user and a flag replaced. Signatures are not verified.
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

pub fn room_key(
    sender: &Account,
    room_id: &RoomId,
    ratchet: &GroupSession,
    is_device_known: bool,
) -> InboundGroupSession {
    let kind =
        if is_device_known { SenderDataType::DeviceInfo } else { SenderDataType::UnknownDevice };
    values::room_key(sender, room_id, ratchet, kind)
}

pub async fn outbound_session(own: &Account, room_id: &RoomId, form: u8) -> OutboundGroupSession {
    let (session, _) = own.create_group_session_pair_with_defaults(room_id).await;
    if form > 0 {
        values::add_request(&session, own.user_id(), &json!({ "body": form }));
    }
    session
}

pub fn withheld(
    room_id: &RoomId,
    session_id: &str,
    sender: &UserId,
    form: u8,
) -> RoomKeyWithheldEntry {
    let sender_key = Curve25519PublicKey::from_bytes([form; 32]);
    values::withheld(room_id, session_id, sender, sender_key, device_id(1, 0))
}

pub fn bundle(room_id: &RoomId, sender: &UserId, form: u8) -> StoredRoomKeyBundleData {
    values::bundle(room_id, sender, "mxc://example.org/bundle", [form, form])
}
