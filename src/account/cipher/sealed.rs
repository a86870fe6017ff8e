//! An account's cipher at rest: sealed with a passphrase or key, and bound to the account's name.

use std::sync::Arc;

use matrix_sdk_store_encryption::{Error as CipherError, StoreCipher};
use serde::{Deserialize, Serialize};

use super::{Codec, Key};
use crate::{OpenStoreError, config::secret::Secret};

const PLAIN: i16 = 0;
const PASSPHRASE: i16 = 1;
const KEY: i16 = 2;

/// Later minor versions change the form of a sealed cipher, so the writer's is recorded.
const MINOR: i16 = match i16::from_str_radix(env!("CARGO_PKG_VERSION_MINOR"), 10) {
    Ok(minor) => minor,
    Err(_) => i16::MAX,
};

/// The table that the cipher's seal is bound to.
const TABLE: &str = "accounts";
const FORM: u8 = 1;

/// The bytes in the account's row. Several accounts may have the same secret, so the secret alone
/// does not prove whose cipher it is.
#[derive(Serialize, Deserialize)]
struct Envelope {
    form: u8,
    /// The cipher, sealed with the secret.
    cipher: Vec<u8>,
    /// The account's name, sealed with the cipher.
    binding: Vec<u8>,
}

/// The columns of the cipher in the account's row.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SealedCipher {
    pub(crate) secret_kind: i16,
    /// `None` in a plain account.
    pub(crate) bytes: Option<Vec<u8>>,
    pub(crate) written_by: i16,
}

impl SealedCipher {
    /// Makes a new cipher and seals it, off the async threads: slow with a passphrase.
    pub(crate) async fn create(
        account: &str,
        secret: Option<Secret>,
    ) -> Result<Self, OpenStoreError> {
        let Some(secret) = secret else {
            return Ok(Self { secret_kind: PLAIN, bytes: None, written_by: MINOR });
        };
        let name = account.to_owned();
        let sealed = tokio::task::spawn_blocking(move || seal(&name, &secret).ok());
        let Ok(Some((secret_kind, bytes))) = sealed.await else {
            return Err(OpenStoreError::Cipher { account: account.to_owned() });
        };
        Ok(Self { secret_kind, bytes: Some(bytes), written_by: MINOR })
    }

    /// Opens the cipher, or returns why the given secret does not fit.
    pub(crate) async fn open(
        self,
        account: &str,
        secret: Option<Secret>,
    ) -> Result<Codec, OpenStoreError> {
        let account = account.to_owned();
        let (secret, bytes) = match (secret, self.secret_kind, self.bytes) {
            (None, PLAIN, _) => return Ok(Codec::Plain),
            (Some(_), PLAIN, _) => return Err(OpenStoreError::PlainWithSecret { account }),
            (None, _, _) => return Err(OpenStoreError::EncryptedWithoutSecret { account }),
            (Some(Secret::Key(_)), PASSPHRASE, _) => {
                return Err(OpenStoreError::KeyInsteadOfPassphrase { account });
            }
            (Some(Secret::Passphrase(_)), KEY, _) => {
                return Err(OpenStoreError::PassphraseInsteadOfKey { account });
            }
            (Some(secret), _, Some(bytes)) => (secret, bytes),
            (Some(_), _, None) => return Err(OpenStoreError::Cipher { account }),
        };
        let name = account.clone();
        let opened = tokio::task::spawn_blocking(move || open(&name, &secret, &bytes)).await;
        match opened.unwrap_or(Err(OpenFailure::Corrupt)) {
            Ok(codec) => Ok(codec),
            // A newer form of the cipher may look like a wrong secret to this version.
            Err(_) if self.written_by > MINOR => {
                Err(OpenStoreError::CipherTooNew { account, written_by: self.written_by })
            }
            Err(OpenFailure::WrongSecret) if self.secret_kind == KEY => {
                Err(OpenStoreError::WrongKey { account })
            }
            Err(OpenFailure::WrongSecret) => Err(OpenStoreError::WrongPassphrase { account }),
            Err(OpenFailure::Foreign) => Err(OpenStoreError::ForeignCipher { account }),
            Err(OpenFailure::Corrupt) => Err(OpenStoreError::Cipher { account }),
        }
    }
}

/// The cipher of an account that was opened. Reopening uses it, because the secret is not kept.
#[derive(Clone)]
pub(crate) struct OpenedCipher {
    pub(crate) codec: Arc<Codec>,
    sealed: SealedCipher,
}

impl OpenedCipher {
    pub(crate) async fn open(
        sealed: SealedCipher,
        account: &str,
        secret: Option<Secret>,
    ) -> Result<Self, OpenStoreError> {
        let codec = Arc::new(sealed.clone().open(account, secret).await?);
        Ok(Self { codec, sealed })
    }

    /// The same cipher, if the account's row still has it.
    pub(crate) fn reopen(
        &self,
        sealed: &SealedCipher,
        account: &str,
    ) -> Result<Self, OpenStoreError> {
        if self.sealed == *sealed {
            return Ok(self.clone());
        }
        Err(OpenStoreError::CipherChanged { account: account.to_owned() })
    }
}

fn seal(account: &str, secret: &Secret) -> Result<(i16, Vec<u8>), Box<dyn std::error::Error>> {
    let cipher = StoreCipher::new()?;
    let (kind, sealed) = match secret {
        Secret::Passphrase(passphrase) => (PASSPHRASE, cipher.export(passphrase)?),
        Secret::Key(key) => {
            // Upstream takes an array in 0.18 and a slice in 0.19: this works as both.
            let key: &[u8; 32] = key;
            (KEY, cipher.export_with_key(key)?)
        }
    };
    let codec = Codec::Sealed(Box::new(cipher));
    let binding = codec.seal_bytes(TABLE, &[&Key::stored(account.as_bytes())], Vec::new())?;
    let envelope = Envelope { form: FORM, cipher: sealed, binding };
    Ok((kind, postcard::to_stdvec(&envelope)?))
}

enum OpenFailure {
    WrongSecret,
    /// The cipher of another account.
    Foreign,
    Corrupt,
}

fn open(account: &str, secret: &Secret, bytes: &[u8]) -> Result<Codec, OpenFailure> {
    let envelope: Envelope = postcard::from_bytes(bytes).map_err(|_| OpenFailure::Corrupt)?;
    if envelope.form != FORM {
        return Err(OpenFailure::Corrupt);
    }
    let cipher = match secret {
        Secret::Passphrase(passphrase) => StoreCipher::import(passphrase, &envelope.cipher),
        Secret::Key(key) => {
            let key: &[u8; 32] = key;
            StoreCipher::import_with_key(key, &envelope.cipher)
        }
    };
    let cipher = cipher.map_err(|error| match error {
        CipherError::Encryption(_) => OpenFailure::WrongSecret,
        _ => OpenFailure::Corrupt,
    })?;
    let codec = Codec::Sealed(Box::new(cipher));
    let name = Key::stored(account.as_bytes());
    codec.open_bytes(TABLE, &[&name], &envelope.binding).map_err(|_| OpenFailure::Foreign)?;
    Ok(codec)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use super::{OpenedCipher, SealedCipher};
    use crate::{OpenStoreError, config::secret::Secret};

    /// Reopening has no secret to derive a key from.
    #[tokio::test]
    async fn a_cipher_is_reopened_without_its_secret_unless_it_was_changed() {
        let secret = || Some(Secret::Key(Box::new([7; 32])));
        let sealed = SealedCipher::create("bot", secret()).await.unwrap();
        let opened = OpenedCipher::open(sealed.clone(), "bot", secret()).await.unwrap();
        let reopened = opened.reopen(&sealed, "bot").unwrap();
        assert!(Arc::ptr_eq(&reopened.codec, &opened.codec));

        for other in [secret(), None] {
            let other = SealedCipher::create("bot", other).await.unwrap();
            let changed = opened.reopen(&other, "bot").err();
            assert!(matches!(changed, Some(OpenStoreError::CipherChanged { .. })));
        }
    }
}
