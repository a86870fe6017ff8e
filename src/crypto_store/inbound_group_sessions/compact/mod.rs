//! The compact form of a value: MessagePack with named fields, compressed with LZ4 and a dictionary.
//!
//! Half of a room key's MessagePack is field names, and its sender's keys are in it twice. The names are
//! kept, only shorter, so nothing is lost: a field that upstream adds, or a value that is not in the
//! dictionary, only costs some bytes.

use lz4_flex::block::{
    compress_prepend_size_with_dict, decompress_into_with_dict, uncompressed_size,
};
use rmp_serde::{Serializer, config::BytesMode};
use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

/// The number of the dictionary that a value needs. A new dictionary gets a new number, and the old ones
/// stay.
const FORM: u8 = 1;

/// LZ4's maximum compression ratio: a value that claims a larger size is damaged.
const MAX_COMPRESSION_RATIO: usize = 255;

/// A room key without its secrets, field by field. Never changed: stored values are read with it.
const DICTIONARY: &[u8] = b"\
    \xadUnknownDevice\x81\xaelegacy_session\xc3\xb2owner_check_failed\xc3\
    \xabmaster_key\xd9+\x81\xaeVerificationViolation\x83\xb0SenderUnverified\x83\
    \xabsender_data\x81\xaeSenderVerified\x83\xa7user_id\xb8\
    \xabsender_data\x81\xb0SenderUnverified\x83\xa7user_id\xb8\
    \xa9device_id\xaa\xaamaster_key\xd9+\xaeforwarder_data\x81\
    \xb2history_visibility\xa6shared\xb2history_visibility\xa6joined\
    \xb2history_visibility\xa7invited\xb2history_visibility\xaeworld_readable\
    \xa9algorithm\xb4m.megolm.v2.aes-sha2\xaeshared_history\xc3\
    \xa8imported\xc3\xa9backed_up\xc3\
    :matrix.org\xa9device_id\xaa\
    \x8b\xa6pickle\x84\xafinitial_ratchet\x82\xa5inner\xc4\x80\
    \xa7counter\x00\xabsigning_key\xc4 \
    \xb4signing_key_verified\xc3\xa6config\x81\xa7version\xa2V1\xaasender_key\xd9+\
    \xabsigning_key\x81\xa7ed25519\xd9+\
    \xabsender_data\x81\xadUnknownDevice\x81\xaelegacy_session\xc2\
    \xaeforwarder_data\xc0\xa7room_id\xd9!\
    \xabsender_data\x81\xaaDeviceInfo\x82\xabdevice_keys\x85\xa7user_id\xb8\
    \xa9device_id\xaa\
    \xaaalgorithms\x92\xbcm.olm.v1.curve25519-aes-sha2\xb4m.megolm.v1.aes-sha2\
    \xa4keys\x82\xb5curve25519:\
    \xb2ed25519:\
    \xaasignatures\x81\xb8@\
    \xd9V\
    \xaelegacy_session\xc2\xaeforwarder_data\xc0\xa7room_id\xb8!\
    :example.org\
    \xa8imported\xc2\xa9backed_up\xc2\xb2history_visibility\xc0\
    \xa9algorithm\xb4m.megolm.v1.aes-sha2\xaeshared_history\xc2";

/// Encodes a value; `None` if MessagePack cannot hold it.
pub(super) fn encode(value: &impl Serialize) -> Option<Vec<u8>> {
    let mut plain = Zeroizing::new(Vec::with_capacity(2048));
    let mut serializer =
        Serializer::new(&mut *plain).with_struct_map().with_bytes(BytesMode::ForceAll);
    value.serialize(&mut serializer).ok()?;
    let mut bytes = compress_prepend_size_with_dict(&plain, DICTIONARY);
    bytes.insert(0, FORM);
    Some(bytes)
}

/// Decodes a value; the error says why it cannot be read.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, &'static str> {
    let Some((&FORM, bytes)) = bytes.split_first() else {
        return Err("an unknown compact form");
    };
    let damaged = |_| "a damaged compact form";
    let (size, bytes) = uncompressed_size(bytes).map_err(damaged)?;
    if size > bytes.len().saturating_mul(MAX_COMPRESSION_RATIO) {
        return Err("a damaged compact form");
    }
    let mut plain = Zeroizing::new(vec![0; size]);
    match decompress_into_with_dict(bytes, &mut plain, DICTIONARY).map_err(damaged)? {
        all if all == size => {}
        _ => return Err("a damaged compact form"),
    }
    rmp_serde::from_slice(&plain).map_err(|_| "undecodable MessagePack")
}

#[cfg(test)]
mod tests;
