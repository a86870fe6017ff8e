//! Seals what the API needs later, with a key that is kept in the key store.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use matrix_sdk_store_encryption::{EncryptedValueBase64, StoreCipher};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    errors::{BridgeError, exit_code},
    keys::Keys,
};

/// The name of the custom value.
const KEY: &str = "sealing_key";
/// The format of an exported cipher requires a key. The store encrypts the custom value already, so this
/// one protects nothing.
const EXPORT_KEY: [u8; 32] = [0; 32];

#[derive(Clone)]
pub struct Sealer(Arc<StoreCipher>);

impl Sealer {
    /// Read the key from the store; at the first time create it.
    pub async fn open(keys: &Keys) -> Result<Self, BridgeError> {
        let cipher = match keys.value(KEY).await? {
            Some(stored) => {
                let exported = STANDARD.decode(stored).map_err(unusable)?;
                StoreCipher::import_with_key(&EXPORT_KEY, &exported).map_err(unusable)?
            }
            None => {
                let cipher = StoreCipher::new().map_err(unusable)?;
                let exported = cipher.export_with_key(&EXPORT_KEY).map_err(unusable)?;
                keys.set_value(KEY, &STANDARD.encode(exported)).await?;
                cipher
            }
        };
        Ok(Self(Arc::new(cipher)))
    }

    pub fn seal(&self, value: &impl Serialize) -> Result<Vec<u8>, BridgeError> {
        let plain = serde_json::to_vec(value).map_err(unusable)?;
        let sealed = self.0.encrypt_value_base64_data(plain).map_err(unusable)?;
        serde_json::to_vec(&sealed).map_err(unusable)
    }

    /// `None` if it was not sealed with this key, or changed since.
    pub fn unseal<T: DeserializeOwned>(&self, sealed: &[u8]) -> Option<T> {
        let sealed: EncryptedValueBase64 = serde_json::from_slice(sealed).ok()?;
        let plain = self.0.decrypt_value_base64_data(sealed).ok()?;
        serde_json::from_slice(&plain).ok()
    }
}

fn unusable(error: impl std::fmt::Display) -> BridgeError {
    BridgeError::fatal(
        exit_code::UNEXPECTED,
        format!("the key that seals messages for the API cannot be used: {error}"),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn only_what_was_sealed_with_this_key_is_unsealed() {
        let sealer = || Sealer(Arc::new(StoreCipher::new().unwrap()));
        let (own, other) = (sealer(), sealer());
        let mut sealed = own.seal(&json!({"body": "hello"})).unwrap();
        assert!(!String::from_utf8_lossy(&sealed).contains("hello"));
        assert_eq!(own.unseal(&sealed), Some(json!({"body": "hello"})));
        assert_eq!(other.unseal::<Value>(&sealed), None);
        let at = sealed.len() / 2;
        sealed[at] = if sealed[at] == b'A' { b'B' } else { b'A' };
        assert_eq!(own.unseal::<Value>(&sealed), None);
        assert_eq!(own.unseal::<Value>(b"\0"), None);
    }
}
