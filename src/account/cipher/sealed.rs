//! An account's cipher at rest, and what unlocks it.

use std::sync::Arc;

use matrix_sdk_store_encryption::StoreCipher;
use tokio::task::spawn_blocking;
use tokio_postgres::Row;

use super::{
    Codec,
    envelope::{self, OpenFailure, Unlock},
};
use crate::{OpenStoreError, config::secret::Secret};

const PLAIN: i16 = 0;
const PASSPHRASE: i16 = 1;
const KEY: i16 = 2;
const PROVIDER: i16 = 3;

/// Later minor versions change the form of a sealed cipher, so the writer's is recorded.
const MINOR: i16 = match i16::from_str_radix(env!("CARGO_PKG_VERSION_MINOR"), 10) {
    Ok(minor) => minor,
    Err(_) => i16::MAX,
};

/// The columns of the cipher in the account's row.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SealedCipher {
    pub(crate) secret_kind: i16,
    /// `None` in a plain account.
    pub(crate) bytes: Option<Vec<u8>>,
    pub(crate) written_by: i16,
}

impl SealedCipher {
    /// The columns `secret_kind`, `cipher` and `cipher_written_by`, the first of which has this index.
    pub(crate) fn of_row(row: &Row, first: usize) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            secret_kind: row.try_get(first)?,
            bytes: row.try_get(first + 1)?,
            written_by: row.try_get(first + 2)?,
        })
    }

    /// Seals a cipher with a secret.
    pub(crate) async fn seal(
        account: &str,
        secret: Secret,
        codec: Arc<Codec>,
    ) -> Result<Self, OpenStoreError> {
        let secret_kind = kind_of(&secret);
        let unlock = match secret {
            Secret::Passphrase(passphrase) => Unlock::Passphrase(passphrase),
            Secret::Key(key) => Unlock::Key(*key),
            Secret::Provider(provider) => {
                let key = envelope::random_key();
                let wrapped = provider.wrap(&key).await;
                let wrapped = wrapped.map_err(|reason| OpenStoreError::KeyProvider {
                    account: account.to_owned(),
                    reason,
                })?;
                Unlock::Wrapped(key, wrapped)
            }
        };
        let name = account.to_owned();
        let sealed = spawn_blocking(move || envelope::seal(&name, &unlock, &codec).ok()).await;
        match sealed {
            Ok(Some(bytes)) => Ok(Self { secret_kind, bytes: Some(bytes), written_by: MINOR }),
            _ => Err(OpenStoreError::Cipher { account: account.to_owned() }),
        }
    }

    /// Opens the cipher, or returns why the given secret does not fit.
    pub(crate) async fn open(
        self,
        account: &str,
        secret: Option<Secret>,
    ) -> Result<Codec, OpenStoreError> {
        if secret.is_none() && self.secret_kind == PLAIN {
            return Ok(Codec::Plain);
        }
        let unlock = self.unlock(account, secret).await?;
        let account = account.to_owned();
        let Some(bytes) = self.bytes else { return Err(OpenStoreError::Cipher { account }) };
        let name = account.clone();
        let opened = spawn_blocking(move || envelope::open(&name, &unlock, &bytes)).await;
        match opened.unwrap_or(Err(OpenFailure::Corrupt)) {
            Ok(codec) => Ok(codec),
            // A newer form of the cipher may look like a wrong secret to this version.
            Err(_) if self.written_by > MINOR => {
                Err(OpenStoreError::CipherTooNew { account, written_by: self.written_by })
            }
            Err(OpenFailure::WrongSecret) if self.secret_kind == PASSPHRASE => {
                Err(OpenStoreError::WrongPassphrase { account })
            }
            Err(OpenFailure::WrongSecret) => Err(OpenStoreError::WrongKey { account }),
            Err(OpenFailure::Foreign) => Err(OpenStoreError::ForeignCipher { account }),
            Err(OpenFailure::Corrupt) => Err(OpenStoreError::Cipher { account }),
        }
    }

    /// What opens the cipher, if the secret is of its kind.
    async fn unlock(
        &self,
        account: &str,
        secret: Option<Secret>,
    ) -> Result<Unlock, OpenStoreError> {
        let account = account.to_owned();
        let Some(secret) = secret else {
            return Err(OpenStoreError::EncryptedWithoutSecret { account });
        };
        let given = kind_of(&secret);
        match (secret, self.secret_kind) {
            (_, PLAIN) => Err(OpenStoreError::PlainWithSecret { account }),
            (Secret::Passphrase(passphrase), PASSPHRASE) => Ok(Unlock::Passphrase(passphrase)),
            (Secret::Key(key), KEY) => Ok(Unlock::Key(*key)),
            (Secret::Provider(provider), PROVIDER) => {
                let wrapped = self.bytes.as_deref().and_then(envelope::wrapped_key);
                let damaged = || OpenStoreError::Cipher { account: account.clone() };
                let wrapped = wrapped.ok_or_else(damaged)?;
                match provider.unwrap(&wrapped).await {
                    Ok(Some(key)) => Ok(Unlock::Wrapped(key, wrapped)),
                    Ok(None) => Err(OpenStoreError::InvalidConfig(format!(
                        "the key provider's answer for account {account:?} is not a key of 32 bytes"
                    ))),
                    Err(reason) => Err(OpenStoreError::KeyProvider { account, reason }),
                }
            }
            (Secret::Key(_), PASSPHRASE) => Err(OpenStoreError::KeyInsteadOfPassphrase { account }),
            (Secret::Passphrase(_), KEY) => Err(OpenStoreError::PassphraseInsteadOfKey { account }),
            _ => {
                let (stored, given) = (name_of(self.secret_kind), name_of(given));
                Err(OpenStoreError::OtherKindOfSecret { account, stored, given })
            }
        }
    }

    pub(crate) fn is_plain(&self) -> bool {
        self.secret_kind == PLAIN
    }
}

fn kind_of(secret: &Secret) -> i16 {
    match secret {
        Secret::Passphrase(_) => PASSPHRASE,
        Secret::Key(_) => KEY,
        Secret::Provider(_) => PROVIDER,
    }
}

fn name_of(kind: i16) -> &'static str {
    match kind {
        PASSPHRASE => "a passphrase",
        KEY => "a key",
        PROVIDER => "a key of a key provider",
        _ => "a kind of secret that this version does not know",
    }
}

/// The cipher of an account that was opened. Reopening uses it, because the secret is not kept.
#[derive(Clone)]
pub(crate) struct OpenedCipher {
    pub(crate) codec: Arc<Codec>,
    pub(crate) sealed: SealedCipher,
}

impl OpenedCipher {
    /// Makes a new cipher and seals it, off the async threads: slow with a passphrase.
    pub(crate) async fn create(
        account: &str,
        secret: Option<Secret>,
    ) -> Result<Self, OpenStoreError> {
        let Some(secret) = secret else {
            let sealed = SealedCipher { secret_kind: PLAIN, bytes: None, written_by: MINOR };
            return Ok(Self { codec: Arc::new(Codec::Plain), sealed });
        };
        let cipher = StoreCipher::new();
        let cipher = cipher.map_err(|_| OpenStoreError::Cipher { account: account.to_owned() })?;
        let codec = Arc::new(Codec::Sealed(Box::new(cipher)));
        let sealed = SealedCipher::seal(account, secret, codec.clone()).await?;
        Ok(Self { codec, sealed })
    }

    pub(crate) async fn open(
        sealed: SealedCipher,
        account: &str,
        secret: Option<Secret>,
    ) -> Result<Self, OpenStoreError> {
        let codec = Arc::new(sealed.clone().open(account, secret).await?);
        Ok(Self { codec, sealed })
    }

    /// The same cipher, if the account's row still has it, whatever secret seals it now.
    pub(crate) fn reopen(
        &self,
        sealed: &SealedCipher,
        account: &str,
    ) -> Result<Self, OpenStoreError> {
        let is_same_cipher = |bytes: &Vec<u8>| envelope::holds(account, bytes, &self.codec);
        if self.sealed == *sealed || sealed.bytes.as_ref().is_some_and(is_same_cipher) {
            return Ok(Self { codec: self.codec.clone(), sealed: sealed.clone() });
        }
        Err(OpenStoreError::CipherChanged { account: account.to_owned() })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use zeroize::Zeroizing;

    use super::{OpenedCipher, SealedCipher};
    use crate::{OpenStoreError, config::secret::Secret};

    fn key(byte: u8) -> Secret {
        Secret::Key(Box::new(Zeroizing::new([byte; 32])))
    }

    /// Reopening has no secret to derive a key from.
    #[tokio::test]
    async fn a_cipher_is_reopened_without_its_secret_unless_it_was_changed() {
        let sealed = OpenedCipher::create("bot", Some(key(7))).await.unwrap().sealed;
        let opened = OpenedCipher::open(sealed.clone(), "bot", Some(key(7))).await.unwrap();
        let reopened = opened.reopen(&sealed, "bot").unwrap();
        assert!(Arc::ptr_eq(&reopened.codec, &opened.codec));

        for other in [Some(key(7)), None] {
            let other = OpenedCipher::create("bot", other).await.unwrap();
            let changed = opened.reopen(&other.sealed, "bot").err();
            assert!(matches!(changed, Some(OpenStoreError::CipherChanged { .. })));
        }
    }

    #[tokio::test]
    async fn a_cipher_that_is_sealed_anew_is_the_same_one() {
        let opened = OpenedCipher::create("bot", Some(key(7))).await.unwrap();
        let anew = SealedCipher::seal("bot", key(8), opened.codec.clone()).await.unwrap();
        let reopened = opened.reopen(&anew, "bot").unwrap();
        assert!(Arc::ptr_eq(&reopened.codec, &opened.codec));
        let old = OpenedCipher::open(anew.clone(), "bot", Some(key(7))).await.err();
        assert!(matches!(old, Some(OpenStoreError::WrongKey { .. })));
        OpenedCipher::open(anew.clone(), "bot", Some(key(8))).await.unwrap();
        let other_account = opened.reopen(&anew, "tob").err();
        assert!(matches!(other_account, Some(OpenStoreError::CipherChanged { .. })));
    }
}
