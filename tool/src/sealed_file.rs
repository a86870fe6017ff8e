//! A file that is encrypted with [age](https://age-encryption.org): any program that knows the format opens
//! it.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write},
    path::Path,
    str::FromStr,
};

use age::{
    Decryptor, Encryptor, Identity, IdentityFile, Recipient, secrecy::SecretString,
    stream::StreamWriter, x25519,
};
use zeroize::Zeroizing;

use crate::outcome::Error;

/// The passphrase is stretched in up to 2^22 steps, with 4 GiB of memory: what a machine does in a second that is
/// many times as fast as this one, which must be able to read its backups. A file that asks for more is refused.
const MOST_WORK: u8 = 22;

/// Who can open a file.
pub enum Seal {
    Passphrase(Zeroizing<String>),
    /// Public keys, `age1…`.
    Recipients(Vec<String>),
}

impl Seal {
    /// Encrypts what is written to the file.
    pub fn wrap<W: Write>(&self, file: W) -> Result<StreamWriter<W>, Error> {
        let encryptor = match self {
            Self::Passphrase(passphrase) => {
                Encryptor::with_user_passphrase(SecretString::from(passphrase.as_str()))
            }
            Self::Recipients(recipients) => {
                let parse = |text: &String| {
                    let parsed = x25519::Recipient::from_str(text);
                    parsed.map_err(|error| {
                        Error::failed(format!("--recipient {text} is no age public key: {error}"))
                    })
                };
                let parsed = recipients.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
                let recipients = parsed.iter().map(|recipient| recipient as &dyn Recipient);
                Encryptor::with_recipients(recipients)
                    .map_err(|error| Error::failed(format!("the recipients: {error}")))?
            }
        };
        encryptor.wrap_output(file).map_err(|error| Error::failed(format!("cannot write: {error}")))
    }
}

/// What opens a file.
pub enum Unseal {
    Passphrase(Zeroizing<String>),
    Identities(Vec<Box<dyn Identity>>),
}

impl Unseal {
    /// The private keys of an identity file, as `age-keygen` writes it.
    pub fn identities(file: &Path) -> Result<Self, Error> {
        let failed =
            |error: &dyn std::fmt::Display| Error::failed(format!("{}: {error}", file.display()));
        let opened = File::open(file).map_err(|error| failed(&error))?;
        let parsed =
            IdentityFile::from_buffer(BufReader::new(opened)).map_err(|error| failed(&error))?;
        parsed.into_identities().map(Self::Identities).map_err(|error| failed(&error))
    }

    /// Decrypts the file. That it is whole shows at its end.
    pub fn open(&self, path: &Path) -> Result<impl Read + Send + use<>, Error> {
        let failed =
            |error: &dyn std::fmt::Display| Error::failed(format!("{}: {error}", path.display()));
        let file = File::open(path).map_err(|error| failed(&error))?;
        let decryptor =
            Decryptor::new_buffered(BufReader::new(file)).map_err(|error| match error {
                age::DecryptError::InvalidHeader => {
                    failed(&"it is no file that backup has written")
                }
                error => failed(&error),
            })?;
        let opened = match self {
            Self::Passphrase(passphrase) => {
                let mut identity =
                    age::scrypt::Identity::new(SecretString::from(passphrase.as_str()));
                identity.set_max_work_factor(MOST_WORK);
                decryptor.decrypt(std::iter::once(&identity as &dyn Identity))
            }
            Self::Identities(identities) => {
                decryptor.decrypt(identities.iter().map(|identity| &**identity))
            }
        };
        opened.map(BufReader::new).map_err(|error| match (&error, self) {
            (age::DecryptError::NoMatchingKeys, Self::Passphrase(_)) => failed(
                &"it is encrypted for a public key: give its private key with --identity-file",
            ),
            (age::DecryptError::NoMatchingKeys, Self::Identities(_)) => {
                failed(&"it is not encrypted for a key of the identity file")
            }
            (age::DecryptError::DecryptionFailed, _) => failed(&"wrong passphrase"),
            _ => failed(&error),
        })
    }
}

/// Ends an encrypted file: what is not ended counts as cut off. Returns the file, which stays locked until it is
/// closed.
pub fn finish(stream: StreamWriter<BufWriter<File>>) -> io::Result<File> {
    let file = stream.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(file)
}
