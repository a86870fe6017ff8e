//! The standard file of room keys ("Key exports" in Matrix' client-server API), in bounded memory.
//!
//! `-----BEGIN MEGOLM SESSION DATA-----`, base64 in lines, `-----END MEGOLM SESSION DATA-----`. In base64:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version, 1 |
//! | 16 | salt |
//! | 16 | initial counter of AES-256-CTR |
//! | 4 | rounds of PBKDF2-HMAC-SHA-512, big-endian |
//! | … | the keys as a JSON array, encrypted |
//! | 32 | HMAC-SHA-256 of all bytes before it |

mod array;
#[cfg(test)]
mod fuzz;
mod reader;
mod resume;
mod writer;

use aes::Aes256;
use ctr::Ctr128BE;
use hmac::{Hmac, Mac};
use sha2::{Sha256, Sha512};
use zeroize::Zeroizing;

use base64::{
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use ctr::cipher::KeyIvInit;

pub use self::{
    array::each,
    reader::{Reader, verify},
    resume::{Seen, Unfinished, resume},
    writer::Writer,
};

pub const BEGIN: &str = "-----BEGIN MEGOLM SESSION DATA-----";
pub const END: &str = "-----END MEGOLM SESSION DATA-----";
/// As Element writes it.
pub const ROUNDS: u32 = 500_000;
/// More would keep a reader busy for minutes.
pub const MOST_ROUNDS: u32 = 10_000_000;

const VERSION: u8 = 1;
const MAC_LENGTH: usize = 32;
/// Of a line's bytes, which are 128 characters.
const LINE: usize = 96;

/// Without padding, as the SDK writes it; read with or without.
pub const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

type Cipher = Ctr128BE<Aes256>;
type HmacSha256 = Hmac<Sha256>;

/// What a key file begins with.
#[derive(Clone, Copy)]
struct Prefix {
    salt: [u8; 16],
    counter: [u8; 16],
    rounds: u32,
}

impl Prefix {
    const LENGTH: usize = 37;

    fn bytes(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [VERSION; Self::LENGTH];
        bytes[1..17].copy_from_slice(&self.salt);
        bytes[17..33].copy_from_slice(&self.counter);
        bytes[33..].copy_from_slice(&self.rounds.to_be_bytes());
        bytes
    }

    fn parse(bytes: &[u8; Self::LENGTH]) -> Result<Self, KeyFileError> {
        let (mut salt, mut counter, mut rounds) = ([0; 16], [0; 16], [0; 4]);
        salt.copy_from_slice(&bytes[1..17]);
        counter.copy_from_slice(&bytes[17..33]);
        rounds.copy_from_slice(&bytes[33..]);
        let rounds = u32::from_be_bytes(rounds);
        match bytes[0] {
            VERSION if (1..=MOST_ROUNDS).contains(&rounds) => Ok(Self { salt, counter, rounds }),
            VERSION => Err(KeyFileError::Rounds(rounds)),
            version => Err(KeyFileError::Version(version)),
        }
    }

    fn keys(&self, passphrase: &str) -> Result<(Cipher, HmacSha256), KeyFileError> {
        let mut keys = Zeroizing::new([0; 64]);
        // The passphrase may have any length.
        pbkdf2::pbkdf2::<Hmac<Sha512>>(
            passphrase.as_bytes(),
            &self.salt,
            self.rounds,
            &mut keys[..],
        )
        .map_err(|_| KeyFileError::Format)?;
        let (encryption, authentication) = keys.split_at(32);
        let cipher = Cipher::new_from_slices(encryption, &self.counter);
        let mac = HmacSha256::new_from_slice(authentication);
        match (cipher, mac) {
            (Ok(cipher), Ok(mac)) => Ok((cipher, mac)),
            _ => Err(KeyFileError::Format),
        }
    }
}

/// Why a key file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("it is no key file: it lacks the line {BEGIN}, or {END}")]
    Format,
    #[error("it is a key file of version {0}, this program knows 1")]
    Version(u8),
    #[error("it names {0} rounds of PBKDF2: from 1 to {MOST_ROUNDS} are read")]
    Rounds(u32),
    #[error("it was begun with --rounds {0}: give the same number, or delete the file")]
    OtherRounds(u32),
    #[error("wrong passphrase, or the file was changed or truncated")]
    Mac,
    #[error("it decrypts to something that is no list of keys")]
    Content,
    #[error("{0}")]
    Io(#[from] std::io::Error),
}
