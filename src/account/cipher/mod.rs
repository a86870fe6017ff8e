//! The only module that uses the cipher: hashes keys, seals and opens values.
//!
//! In a plain account keys and values are stored as they are. In an encrypted one a key is a keyed
//! hash, and a value is sealed with XChaCha20-Poly1305 in a compact envelope: version, ciphertext,
//! nonce, as `postcard` writes them. The cipher binds no associated data, so with write access to
//! the database two rows could be swapped; the plaintext that is sealed therefore begins with a tag
//! of its table and key.

mod envelope;
mod sealed;

use std::fmt;

use bytes::BytesMut;
use matrix_sdk_store_encryption::{EncryptedValue, StoreCipher};
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use tokio_postgres::{
    Row,
    types::{FromSql, IsNull, ToSql, Type, to_sql_checked},
};
use zeroize::Zeroizing;

pub(crate) use self::{
    envelope::random_key,
    sealed::{OpenedCipher, SealedCipher},
};
use crate::{
    Error,
    postgres::cell::{Cell, Cells},
};

/// Enough to detect a swapped row; the tag is secret and cannot be predicted.
const TAG_BYTES: usize = 8;

/// B-tree entries are limited to about 2.7 kB, and a hostile server may send ids of any length.
const MAX_PLAIN_KEY_BYTES: usize = 255;

/// The stored form of an id. Its `Debug` prints no value, because tokio-postgres logs parameters at
/// `debug`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(Vec<u8>);

impl Key {
    /// The key in a column of a row.
    pub(crate) fn of(row: &Row, index: usize, table: &'static str) -> Result<Self, Error> {
        column(row, index, table).map(Self)
    }

    /// The key in a cell of a cached row, or of its key.
    pub(crate) fn of_cell(cells: &Cells, index: usize, table: &'static str) -> Result<Self, Error> {
        cells.bytes(index, table).map(Self::stored)
    }

    /// A key from its stored bytes.
    pub(crate) fn stored(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl From<Key> for Cell {
    fn from(key: Key) -> Self {
        key.0.into()
    }
}

impl From<&Key> for Cell {
    fn from(key: &Key) -> Self {
        key.0.clone().into()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

impl ToSql for Key {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        self.0.to_sql(ty, out)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::BYTEA
    }

    to_sql_checked!();
}

/// A column of a row, or the error that names the table.
pub(crate) fn column<'a, T: FromSql<'a>>(
    row: &'a Row,
    index: usize,
    table: &'static str,
) -> Result<T, Error> {
    row.try_get(index).map_err(|_| Error::CorruptRow { table, reason: "unexpected column type" })
}

/// Seals and opens what one account stores.
pub(crate) enum Codec {
    Plain,
    Sealed(Box<StoreCipher>),
}

impl fmt::Debug for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "Plain",
            Self::Sealed(_) => "Sealed(…)",
        })
    }
}

impl Codec {
    /// The stored form of an id: equal ids have equal forms, within one table of one account.
    pub(crate) fn key(&self, table: &'static str, id: impl AsRef<[u8]>) -> Key {
        let id = id.as_ref();
        match self {
            Self::Sealed(_) => self.fingerprint(table, id),
            Self::Plain if id.len() <= MAX_PLAIN_KEY_BYTES => Key(id.to_vec()),
            // Begins with a byte that no id begins with, so that no short id equals the hash of a
            // long one.
            Self::Plain => Key([&[0xff], Sha256::digest(id).as_slice()].concat()),
        }
    }

    /// The stored form of a secret that must be found again: a hash even in a plain account,
    /// because the secret may be long.
    pub(crate) fn fingerprint(&self, table: &'static str, secret: &[u8]) -> Key {
        match self {
            Self::Sealed(cipher) => Key(cipher.hash_key(table, secret).to_vec()),
            Self::Plain => Key(Sha256::digest(secret).to_vec()),
        }
    }

    /// Seals a value as MessagePack with named fields.
    pub(crate) fn seal(
        &self,
        table: &'static str,
        key: &[&Key],
        value: &impl Serialize,
    ) -> Result<Vec<u8>, Error> {
        let bytes = rmp_serde::to_vec_named(value).map_err(|_| Error::Encode { table })?;
        self.seal_bytes(table, key, bytes)
    }

    /// Whether `data` is this value, sealed with [`Self::seal`].
    pub(crate) fn matches_sealed(
        &self,
        table: &'static str,
        key: &[&Key],
        data: &[u8],
        value: &impl Serialize,
    ) -> bool {
        let Ok(bytes) = rmp_serde::to_vec_named(value).map(Zeroizing::new) else { return false };
        self.open_bytes(table, key, data).is_ok_and(|stored| *stored == *bytes)
    }

    /// Seals a value as JSON: values that hold raw JSON can be read back from no other form.
    pub(crate) fn seal_json(
        &self,
        table: &'static str,
        key: &[&Key],
        value: &impl Serialize,
    ) -> Result<Vec<u8>, Error> {
        let bytes = serde_json::to_vec(value).map_err(|_| Error::Encode { table })?;
        self.seal_bytes(table, key, bytes)
    }

    /// Seals bytes as they are.
    pub(crate) fn seal_bytes(
        &self,
        table: &'static str,
        key: &[&Key],
        bytes: Vec<u8>,
    ) -> Result<Vec<u8>, Error> {
        let Self::Sealed(cipher) = self else { return Ok(bytes) };
        let bytes = Zeroizing::new(bytes);
        let mut tagged = Vec::with_capacity(TAG_BYTES + bytes.len());
        tagged.extend_from_slice(&tag(cipher, table, key));
        tagged.extend_from_slice(&bytes);
        // encrypt_value_data wipes `tagged`.
        let sealed = cipher.encrypt_value_data(tagged).map_err(|_| Error::Encode { table })?;
        postcard::to_stdvec(&sealed).map_err(|_| Error::Encode { table })
    }

    /// Opens what [`Self::seal`] sealed.
    pub(crate) fn open<T: DeserializeOwned>(
        &self,
        table: &'static str,
        key: &[&Key],
        data: &[u8],
    ) -> Result<T, Error> {
        rmp_serde::from_slice(&self.open_bytes(table, key, data)?)
            .map_err(|_| Error::CorruptRow { table, reason: "undecodable MessagePack" })
    }

    /// Opens what [`Self::seal_json`] sealed.
    pub(crate) fn open_json<T: DeserializeOwned>(
        &self,
        table: &'static str,
        key: &[&Key],
        data: &[u8],
    ) -> Result<T, Error> {
        serde_json::from_slice(&self.open_bytes(table, key, data)?)
            .map_err(|_| Error::CorruptRow { table, reason: "undecodable JSON" })
    }

    /// Opens what [`Self::seal_bytes`] sealed.
    pub(crate) fn open_bytes(
        &self,
        table: &'static str,
        key: &[&Key],
        data: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let Self::Sealed(cipher) = self else { return Ok(Zeroizing::new(data.to_vec())) };
        let corrupt = |reason| Error::CorruptRow { table, reason };
        // What follows the value would not be authenticated.
        let (sealed, rest): (EncryptedValue, _) =
            postcard::take_from_bytes(data).map_err(|_| corrupt("not a sealed value"))?;
        if !rest.is_empty() {
            return Err(corrupt("bytes follow the sealed value"));
        }
        let mut bytes = Zeroizing::new(
            cipher.decrypt_value_data(sealed).map_err(|_| corrupt("the seal does not verify"))?,
        );
        if !bytes.starts_with(&tag(cipher, table, key)) {
            return Err(corrupt("the value belongs to another row"));
        }
        bytes.drain(..TAG_BYTES);
        Ok(bytes)
    }
}

fn tag(cipher: &StoreCipher, table: &'static str, key: &[&Key]) -> [u8; TAG_BYTES] {
    let mut input = Vec::new();
    for part in std::iter::once(table.as_bytes()).chain(key.iter().map(|key| key.0.as_slice())) {
        // Lengths keep ("ab", "c") apart from ("a", "bc").
        input.extend_from_slice(&(part.len() as u64).to_be_bytes());
        input.extend_from_slice(part);
    }
    let hash = cipher.hash_key("matrix-sdk-postgres place of a value", &input);
    let mut tag = [0; TAG_BYTES];
    tag.copy_from_slice(&hash[..TAG_BYTES]);
    tag
}
