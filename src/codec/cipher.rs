//! An account's cipher at rest: sealed with a passphrase or key.

use matrix_sdk_store_encryption::{Error as CipherError, StoreCipher};

use super::Codec;
use crate::{OpenStoreError, secret::Secret};

const PLAIN: i16 = 0;
const PASSPHRASE: i16 = 1;
const KEY: i16 = 2;

/// Later minor versions change the form of a sealed cipher, so the writer's is recorded.
const MINOR: i16 = match i16::from_str_radix(env!("CARGO_PKG_VERSION_MINOR"), 10) {
    Ok(minor) => minor,
    Err(_) => i16::MAX,
};

/// What the account's row holds of the cipher.
pub(crate) struct SealedCipher {
    pub(crate) secret_kind: i16,
    /// `None` in a plain account.
    pub(crate) bytes: Option<Vec<u8>>,
    pub(crate) written_by: i16,
}

impl SealedCipher {
    /// Makes a new cipher and seals it. Slow with a passphrase, so off the async threads.
    pub(crate) async fn create(
        account: &str,
        secret: Option<Secret>,
    ) -> Result<Self, OpenStoreError> {
        let Some(secret) = secret else {
            return Ok(Self { secret_kind: PLAIN, bytes: None, written_by: MINOR });
        };
        let sealed = tokio::task::spawn_blocking(move || {
            let cipher = StoreCipher::new()?;
            match &secret {
                Secret::Passphrase(passphrase) => Ok((PASSPHRASE, cipher.export(passphrase)?)),
                Secret::Key(key) => Ok((KEY, cipher.export_with_key(key)?)),
            }
        });
        let sealed: Result<Result<_, CipherError>, _> = sealed.await;
        let Ok(Ok((secret_kind, bytes))) = sealed else {
            return Err(OpenStoreError::Cipher { account: account.to_owned() });
        };
        Ok(Self { secret_kind, bytes: Some(bytes), written_by: MINOR })
    }

    /// Opens the cipher, or says why the given secret does not fit.
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
        let opened = tokio::task::spawn_blocking(move || match &secret {
            Secret::Passphrase(passphrase) => StoreCipher::import(passphrase, &bytes),
            Secret::Key(key) => StoreCipher::import_with_key(key, &bytes),
        });
        match opened.await {
            Ok(Ok(cipher)) => Ok(Codec::Sealed(Box::new(cipher))),
            // A newer form of the cipher may look like a wrong secret to us.
            Ok(Err(_)) if self.written_by > MINOR => {
                Err(OpenStoreError::CipherTooNew { account, written_by: self.written_by })
            }
            Ok(Err(CipherError::Encryption(_))) if self.secret_kind == KEY => {
                Err(OpenStoreError::WrongKey { account })
            }
            Ok(Err(CipherError::Encryption(_))) => Err(OpenStoreError::WrongPassphrase { account }),
            _ => Err(OpenStoreError::Cipher { account }),
        }
    }
}
