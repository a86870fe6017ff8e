//! Values that must not appear in dumps and logs, in every form in which they could appear.

use std::fmt::Write as _;

use matrix_sdk_crypto::vodozemac::{base64_decode, base64_encode};

use super::{
    KEY, PASSPHRASE,
    fixture::{
        BACKUP_VERSION, BUNDLE_URI, CUSTOM_KEY, CUSTOM_VALUE, EVENT_BODY, Fixture, LEASE_HOLDER,
        LEASE_KEY, SECRET, SYNC_TOKEN, other_user, own_device, own_user, room, secret_name,
    },
};

/// A value to search for, and its name in failures.
pub struct Needle {
    pub name: &'static str,
    pub bytes: Vec<u8>,
}

fn needle(name: &'static str, bytes: impl AsRef<[u8]>) -> Needle {
    let bytes = bytes.as_ref().to_vec();
    assert!(bytes.len() >= 8, "{name} is so short that a match could be coincidental");
    Needle { name, bytes }
}

/// Ids and values of a fixture's rows.
pub async fn of_rows(fixture: &Fixture) -> Vec<Needle> {
    let identity = matrix_sdk_crypto::testing::get_other_identity();
    let keys = fixture.account.identity_keys();
    let outbound = serde_json::to_value(fixture.outbound.pickle().await).unwrap();
    let identity_seeds = serde_json::to_value(fixture.identity.pickle().await).unwrap();
    vec![
        needle("our user id", own_user().as_str()),
        needle("our device id", own_device().as_str()),
        needle("another user id", other_user().as_str()),
        needle("another device id", fixture.other_device.device_id().as_str()),
        needle("the user id of an identity", identity.user_id().as_str()),
        needle("the room id", room().as_str()),
        needle("the server's name", "hidden.example"),
        needle("the Megolm session's id", fixture.inbound.session_id()),
        needle("the Olm session's id", fixture.olm_session.session_id()),
        needle("the sender's key", fixture.sender_key().to_base64()),
        needle("the sender's key in bytes", fixture.sender_key().as_bytes()),
        needle("the Olm sender's key", fixture.olm_session.sender_key().to_base64()),
        needle("our Ed25519 key", keys.ed25519.to_base64()),
        needle(
            "the seed of the private identity",
            numbers(&identity_seeds["keys"]["master_key"]["pickle"]),
        ),
        needle("the hash's sender", &fixture.message_hash.sender_key),
        needle("the message hash", &fixture.message_hash.hash),
        needle("the request's id", fixture.key_request.request_id.as_str()),
        needle("the secret's name", secret_name().as_str()),
        needle("the secret", SECRET),
        needle("the backup version", BACKUP_VERSION),
        needle("the backup key", bytes_of(&fixture.backup_key.to_base64())),
        needle("the dehydration key", bytes_of(&fixture.dehydration_key.to_base64())),
        needle("the custom key", CUSTOM_KEY),
        needle("the custom value", CUSTOM_VALUE),
        needle("the sync token", SYNC_TOKEN),
        needle("the lease's key", LEASE_KEY),
        needle("the lease's holder", LEASE_HOLDER),
        needle("the content of an event", EVENT_BODY),
        needle("the URI of a bundle", BUNDLE_URI),
        needle("an algorithm", "m.megolm.v1.aes-sha2"),
        needle(
            "the ratchet of the outbound session",
            numbers(&outbound["pickle"]["ratchet"]["inner"]),
        ),
    ]
}

/// The secrets that unlock an account.
pub fn of_secrets() -> Vec<Needle> {
    vec![needle("the passphrase", PASSPHRASE), needle("the key", KEY)]
}

impl Needle {
    /// Every form: raw, hex, base64 at each alignment, and lists of numbers.
    fn forms(&self) -> Vec<(&'static str, Vec<u8>)> {
        let hex: String = self.bytes.iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").unwrap();
            hex
        });
        let list = |separator: &str| {
            let numbers: Vec<String> = self.bytes.iter().map(ToString::to_string).collect();
            numbers.join(separator).into_bytes()
        };
        let mut forms = vec![
            ("raw", self.bytes.clone()),
            ("upper hex", hex.to_uppercase().into_bytes()),
            ("hex", hex.into_bytes()),
            ("JSON numbers", list(",")),
            ("Debug of bytes", list(", ")),
            // As MessagePack writes a sequence of small numbers.
            ("MessagePack numbers", rmp_serde::to_vec(&self.bytes).unwrap()[3..].to_vec()),
        ];
        for offset in 0..3 {
            let base64 = base64_at(offset, &self.bytes);
            forms.push(("URL-safe base64", base64.replace('+', "-").replace('/', "_").into()));
            forms.push(("base64", base64.into_bytes()));
        }
        forms
    }

    /// The form in which the haystack contains the value, if it does.
    pub fn find(&self, haystack: &[u8]) -> Option<&'static str> {
        let contains = |form: &[u8]| haystack.windows(form.len()).any(|window| window == form);
        self.forms().into_iter().find(|(_, form)| contains(form)).map(|(name, _)| name)
    }
}

/// Base64 of the bytes at this offset of a longer text: only the characters that depend on nothing else.
fn base64_at(offset: usize, bytes: &[u8]) -> String {
    let mut padded = vec![0; offset];
    padded.extend_from_slice(bytes);
    let encoded = base64_encode(&padded);
    let (start, end) = ((offset * 8).div_ceil(6), padded.len() * 8 / 6);
    encoded[start..end].to_owned()
}

fn bytes_of(base64: &str) -> Vec<u8> {
    base64_decode(base64).unwrap()
}

/// The bytes of a pickled key or ratchet, which `serde_json` writes as numbers.
fn numbers(pickle: &serde_json::Value) -> Vec<u8> {
    let numbers = pickle.as_array().unwrap_or_else(|| panic!("not a list of numbers: {pickle}"));
    numbers.iter().take(32).map(|number| number.as_u64().unwrap() as u8).collect()
}
