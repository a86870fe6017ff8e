//! What a file's values are encrypted with.

use std::path::Path;

use matrix_sdk_store_encryption::{EncryptedValue, Error as CipherError, StoreCipher};
use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};
use zeroize::Zeroizing;

use super::error::Failure;
use crate::secrets::Secret;

/// Opens values, and hashes keys.
pub struct Values(Option<StoreCipher>);

impl Values {
    /// Opens the file's own key, `sealed`, with its secret.
    pub fn open(
        file: &Path,
        sealed: Option<&[u8]>,
        secret: Option<&Secret>,
    ) -> Result<Self, Failure> {
        let file = file.display();
        let Some(sealed) = sealed else {
            return match secret {
                None => Ok(Self(None)),
                _ => Err(Failure::new(format!(
                    "{file} is not encrypted, but a passphrase or key for it was given"
                ))),
            };
        };
        let opened = match (secret, Wrapping::of(sealed)) {
            (_, Wrapping::Newer) => {
                return Err(Failure::new(format!(
                    "the key of {file} was sealed by matrix-sdk-sqlite 0.19 or newer, in a form that only \
                     such a build can open: use the matrix-postgres of that version"
                )));
            }
            (None, Wrapping::Key) => return Err(Failure::new(needs(&file, "a key"))),
            (None, _) => return Err(Failure::new(needs(&file, "a passphrase"))),
            (Some(Secret::Passphrase(_)), Wrapping::Key) => Err(CipherError::KdfMismatch),
            (Some(Secret::Passphrase(passphrase)), _) => StoreCipher::import(passphrase, sealed),
            (Some(Secret::Key(key)), _) => StoreCipher::import_with_key(key, sealed),
        };
        let cipher = opened.map_err(|error| match error {
            CipherError::Encryption(_) => {
                Failure::new(format!("wrong passphrase or key for {file}"))
            }
            CipherError::KdfMismatch => Failure::new(match secret {
                Some(Secret::Key(_)) => {
                    format!("{file} is encrypted with a passphrase, but a key was given")
                }
                _ => format!("{file} is encrypted with a key, but a passphrase was given"),
            }),
            _ => Failure::new(format!("the key that {file} is encrypted with is damaged")),
        })?;
        Ok(Self(Some(cipher)))
    }

    pub fn is_encrypted(&self) -> bool {
        self.0.is_some()
    }

    /// The form in which a table has a key.
    pub fn key(&self, table: &str, key: impl AsRef<[u8]>) -> Vec<u8> {
        match &self.0 {
            Some(cipher) => cipher.hash_key(table, key.as_ref()).to_vec(),
            None => key.as_ref().to_vec(),
        }
    }

    /// A value's bytes; `None` if it cannot be decrypted.
    pub fn bytes(&self, value: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let Some(cipher) = &self.0 else { return Some(Zeroizing::new(value.to_vec())) };
        let Sealed { version, ciphertext, nonce } = rmp_serde::from_slice(value).ok()?;
        // The type's fields are private, and versions of the SDK write them differently.
        let parts = postcard::to_stdvec(&(version, ciphertext, nonce)).ok()?;
        let sealed: EncryptedValue = postcard::from_bytes(&parts).ok()?;
        cipher.decrypt_value_data(sealed).ok().map(Zeroizing::new)
    }

    pub fn message_pack<T: DeserializeOwned>(&self, value: &[u8]) -> Option<T> {
        rmp_serde::from_slice(&self.bytes(value)?).ok()
    }

    pub fn json<T: DeserializeOwned>(&self, value: &[u8]) -> Option<T> {
        serde_json::from_slice(&self.bytes(value)?).ok()
    }
}

fn needs(file: &std::path::Display<'_>, what: &str) -> String {
    format!(
        "{file} is encrypted with {what}: set SQLITE_PASSPHRASE or SQLITE_KEY, or name a file with \
         --source-passphrase-file or --source-key-file"
    )
}

/// A sealed value: versions before 0.19 write the ciphertext as an array of numbers.
#[derive(Deserialize)]
struct Sealed {
    version: u8,
    ciphertext: serde_bytes::ByteBuf,
    nonce: [u8; 24],
}

/// What a file's own key is sealed with.
enum Wrapping {
    Passphrase,
    Key,
    Newer,
    Unknown,
}

impl Wrapping {
    fn of(sealed: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Outer {
            kdf_info: Kdf,
        }
        #[derive(Deserialize)]
        enum Kdf {
            None,
            Pbkdf2ToChaCha20Poly1305(#[allow(dead_code)] IgnoredAny),
            HkdfSha256,
        }
        // The oldest stores have it as JSON.
        let outer = rmp_serde::from_slice::<Outer>(sealed).ok();
        match outer.or_else(|| serde_json::from_slice(sealed).ok()).map(|outer| outer.kdf_info) {
            Some(Kdf::Pbkdf2ToChaCha20Poly1305(_)) => Self::Passphrase,
            Some(Kdf::None) => Self::Key,
            Some(Kdf::HkdfSha256) => Self::Newer,
            None => Self::Unknown,
        }
    }
}
