//! The bytes of an account's cipher in its row: sealed with a passphrase or a key, and bound to the
//! account's name.

use matrix_sdk_store_encryption::{Error as CipherError, StoreCipher};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{Codec, Key};
use crate::config::secret::Passphrase;

/// The table that the cipher's seal is bound to.
const TABLE: &str = "accounts";
const FORM: u8 = 1;
const WRAPPED_FORM: u8 = 2;

/// Several accounts may have one secret, so the secret alone does not tell whose cipher it is.
#[derive(Serialize, Deserialize)]
struct Envelope {
    form: u8,
    /// The cipher, sealed with the secret.
    cipher: Vec<u8>,
    /// The account's name, sealed with the cipher.
    binding: Vec<u8>,
}

/// The same, with the key that seals the cipher in the form that the application gave it.
#[derive(Serialize, Deserialize)]
struct WrappedEnvelope {
    envelope: Envelope,
    wrapped: Vec<u8>,
}

/// What seals a cipher, with nothing left to be asked for.
#[derive(Clone)]
pub(super) enum Unlock {
    Passphrase(Passphrase),
    Key(Zeroizing<[u8; 32]>),
    /// A key, and its wrapped form.
    Wrapped(Zeroizing<[u8; 32]>, Vec<u8>),
}

pub(super) enum OpenFailure {
    WrongSecret,
    /// The cipher of another account.
    Foreign,
    Corrupt,
}

/// A new random key.
pub(crate) fn random_key() -> Zeroizing<[u8; 32]> {
    // 122 random bits each, from the operating system.
    let mut hash = Sha256::new();
    for _ in 0..4 {
        hash.update(Uuid::new_v4());
    }
    Zeroizing::new(hash.finalize().into())
}

pub(super) fn seal(
    account: &str,
    secret: &Unlock,
    codec: &Codec,
) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let Codec::Sealed(cipher) = codec else { return Err("a plain account has no cipher".into()) };
    let sealed = match secret {
        Unlock::Passphrase(passphrase) => cipher.export(&passphrase.0)?,
        Unlock::Key(key) | Unlock::Wrapped(key, _) => {
            // Upstream takes an array in 0.18 and a slice in 0.19: this works as both.
            let key: &[u8; 32] = key;
            cipher.export_with_key(key)?
        }
    };
    let binding = codec.seal_bytes(TABLE, &[&Key::stored(account.as_bytes())], Vec::new())?;
    let envelope = Envelope { form: FORM, cipher: sealed, binding };
    Ok(match secret {
        Unlock::Wrapped(_, wrapped) => {
            let envelope = Envelope { form: WRAPPED_FORM, ..envelope };
            postcard::to_stdvec(&WrappedEnvelope { envelope, wrapped: wrapped.clone() })?
        }
        Unlock::Passphrase(_) | Unlock::Key(_) => postcard::to_stdvec(&envelope)?,
    })
}

/// The wrapped key of an envelope that has one.
pub(super) fn wrapped_key(bytes: &[u8]) -> Option<Vec<u8>> {
    let (WrappedEnvelope { envelope, wrapped }, rest) = postcard::take_from_bytes(bytes).ok()?;
    (envelope.form == WRAPPED_FORM && rest.is_empty()).then_some(wrapped)
}

/// The envelope; a wrapped key may follow.
fn parse(bytes: &[u8]) -> Option<Envelope> {
    let (envelope, rest): (Envelope, _) = postcard::take_from_bytes(bytes).ok()?;
    let is_whole = match envelope.form {
        FORM => rest.is_empty(),
        form => form == WRAPPED_FORM,
    };
    is_whole.then_some(envelope)
}

/// Whether the cipher in these bytes is this one, whatever seals it now.
pub(super) fn holds(account: &str, bytes: &[u8], codec: &Codec) -> bool {
    let name = Key::stored(account.as_bytes());
    let is_bound =
        |envelope: Envelope| codec.open_bytes(TABLE, &[&name], &envelope.binding).is_ok();
    matches!(codec, Codec::Sealed(_)) && parse(bytes).is_some_and(is_bound)
}

pub(super) fn open(account: &str, secret: &Unlock, bytes: &[u8]) -> Result<Codec, OpenFailure> {
    let envelope = parse(bytes).ok_or(OpenFailure::Corrupt)?;
    let cipher = match secret {
        Unlock::Passphrase(passphrase) => StoreCipher::import(&passphrase.0, &envelope.cipher),
        Unlock::Key(key) | Unlock::Wrapped(key, _) => {
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
