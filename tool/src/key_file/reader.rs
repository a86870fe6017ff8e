//! Reads a key file: once to check it, once more to decrypt it.

use std::io::{self, BufRead, Read};

use base64::{engine::GeneralPurpose, read::DecoderReader};
use ctr::cipher::StreamCipher;
use hmac::Mac;

use super::{BASE64, BEGIN, Cipher, END, KeyFileError, MAC_LENGTH, Prefix};

/// Checks passphrase and MAC of a whole file.
pub fn verify(file: impl BufRead, passphrase: &str) -> Result<(), KeyFileError> {
    let mut payload = Payload::new(file)?;
    let prefix = payload.prefix()?;
    let (_, mut mac) = prefix.keys(passphrase)?;
    mac.update(&prefix.bytes());
    let mut buffer = vec![0; 1 << 16];
    loop {
        match payload.read(&mut buffer)? {
            0 => break,
            count => mac.update(&buffer[..count]),
        }
    }
    mac.verify_slice(&payload.tail()?).map_err(|_| KeyFileError::Mac)
}

/// The JSON of a file that was verified.
pub struct Reader<R: BufRead> {
    payload: Payload<R>,
    cipher: Cipher,
}

impl<R: BufRead> Reader<R> {
    pub fn new(file: R, passphrase: &str) -> Result<Self, KeyFileError> {
        let mut payload = Payload::new(file)?;
        let (cipher, _) = payload.prefix()?.keys(passphrase)?;
        Ok(Self { payload, cipher })
    }
}

impl<R: BufRead> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.payload.read(buffer)?;
        self.cipher.apply_keystream(&mut buffer[..count]);
        Ok(count)
    }
}

/// The decoded bytes, but for the MAC at their end.
struct Payload<R: BufRead> {
    decoder: DecoderReader<'static, GeneralPurpose, Armour<R>>,
    /// The last bytes that were read: perhaps the MAC.
    held: Vec<u8>,
}

impl<R: BufRead> Payload<R> {
    fn new(file: R) -> Result<Self, KeyFileError> {
        let decoder = DecoderReader::new(Armour::new(file)?, &BASE64);
        Ok(Self { decoder, held: Vec::new() })
    }

    fn prefix(&mut self) -> Result<Prefix, KeyFileError> {
        let mut bytes = [0; Prefix::LENGTH];
        self.decoder.read_exact(&mut bytes).map_err(of_decoder)?;
        Prefix::parse(&bytes)
    }

    /// What is left at the end.
    fn tail(self) -> Result<Vec<u8>, KeyFileError> {
        Some(self.held).filter(|held| held.len() == MAC_LENGTH).ok_or(KeyFileError::Mac)
    }
}

/// A decoder reports bad base64 with an error of this kind.
fn of_decoder(error: io::Error) -> KeyFileError {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => KeyFileError::Format,
        _ => KeyFileError::Io(error),
    }
}

impl<R: BufRead> Read for Payload<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.held.len() <= MAC_LENGTH {
            let mut more = [0; 8192];
            match self.decoder.read(&mut more)? {
                0 => return Ok(0),
                count => self.held.extend_from_slice(&more[..count]),
            }
        }
        let count = buffer.len().min(self.held.len() - MAC_LENGTH);
        buffer[..count].copy_from_slice(&self.held[..count]);
        self.held.drain(..count);
        Ok(count)
    }
}

/// The characters between the first and the last line.
struct Armour<R: BufRead> {
    file: R,
    line: Vec<u8>,
    at: usize,
    has_ended: bool,
}

/// Some programs write everything into one line, which is read in parts.
const PART: u64 = 1 << 16;

impl<R: BufRead> Armour<R> {
    fn new(file: R) -> Result<Self, KeyFileError> {
        let mut armour = Self { file, line: Vec::new(), at: 0, has_ended: false };
        loop {
            if !armour.next_part()? {
                return Err(KeyFileError::Format);
            }
            match armour.line.trim_ascii() {
                [] => {}
                line if line == BEGIN.as_bytes() => break,
                _ => return Err(KeyFileError::Format),
            }
        }
        armour.at = armour.line.len();
        Ok(armour)
    }

    fn next_part(&mut self) -> io::Result<bool> {
        self.line.clear();
        self.at = 0;
        (&mut self.file).take(PART).read_until(b'\n', &mut self.line)?;
        Ok(!self.line.is_empty())
    }
}

impl<R: BufRead> Read for Armour<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.line.len() {
            if self.has_ended {
                return Ok(0);
            }
            if !self.next_part()? {
                let message = "the file ends before its last line";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
            }
            self.line.retain(|byte| !byte.is_ascii_whitespace());
            if self.line.starts_with(b"-") {
                self.has_ended = self.line == END.replace(' ', "").as_bytes();
                self.at = self.line.len();
                if !self.has_ended {
                    return Err(io::ErrorKind::InvalidData.into());
                }
            }
        }
        let count = buffer.len().min(self.line.len() - self.at);
        buffer[..count].copy_from_slice(&self.line[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}
