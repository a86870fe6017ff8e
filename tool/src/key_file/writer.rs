//! Writes a key file, key by key.

use std::io::{self, Write};

use base64::{engine::GeneralPurpose, write::EncoderWriter};
use ctr::cipher::StreamCipher;
use hmac::Mac;
use serde::Serialize;

use super::{BASE64, BEGIN, Cipher, END, HmacSha256, KeyFileError, LINE, Prefix};

/// A key file that is being written.
pub struct Writer<W: Write> {
    cipher: Cipher,
    mac: HmacSha256,
    out: EncoderWriter<'static, GeneralPurpose, Lines<W>>,
    is_empty: bool,
    buffer: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Begins a file. `random` is what salt and counter are made of.
    pub fn new(
        mut out: W,
        passphrase: &str,
        rounds: u32,
        random: [u8; 32],
    ) -> Result<Self, KeyFileError> {
        let (mut salt, mut counter) = ([0; 16], [0; 16]);
        salt.copy_from_slice(&random[..16]);
        counter.copy_from_slice(&random[16..]);
        // Bit 63 is zero, for implementations whose counter has 64 bits.
        counter[8] &= 0x7f;
        let prefix = Prefix { salt, counter, rounds };
        let (cipher, mac) = prefix.keys(passphrase)?;
        writeln!(out, "{BEGIN}")?;
        let mut writer = Self::at(out, cipher, mac, true);
        writer.send(&prefix.bytes())?;
        writer.encrypt(b"[".to_vec())?;
        Ok(writer)
    }

    /// Goes on with a file that ends with a whole line.
    pub(super) fn at(out: W, cipher: Cipher, mac: HmacSha256, is_empty: bool) -> Self {
        let lines = Lines { out, column: 0 };
        let out = EncoderWriter::new(lines, &BASE64);
        Self { cipher, mac, out, is_empty, buffer: Vec::new() }
    }

    /// Adds a key.
    pub fn push(&mut self, key: &impl Serialize) -> Result<(), KeyFileError> {
        let mut json = std::mem::take(&mut self.buffer);
        json.clear();
        if !self.is_empty {
            json.push(b',');
        }
        serde_json::to_writer(&mut json, key).map_err(io::Error::from)?;
        self.is_empty = false;
        self.encrypt(json)
    }

    /// Hands what is complete to the operating system.
    pub fn flush(&mut self) -> Result<(), KeyFileError> {
        Ok(self.out.flush()?)
    }

    /// Ends the file.
    pub fn finish(mut self) -> Result<W, KeyFileError> {
        self.encrypt(b"]".to_vec())?;
        let mac = self.mac.clone().finalize().into_bytes();
        self.out.write_all(&mac)?;
        let Lines { mut out, column } = self.out.finish()?;
        if column > 0 {
            writeln!(out)?;
        }
        writeln!(out, "{END}")?;
        out.flush()?;
        Ok(out)
    }

    /// Takes over plaintext: encrypted in place, so that none is left.
    fn encrypt(&mut self, mut bytes: Vec<u8>) -> Result<(), KeyFileError> {
        self.cipher.apply_keystream(&mut bytes);
        self.send(&bytes)?;
        self.buffer = bytes;
        Ok(())
    }

    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<(), KeyFileError> {
        self.mac.update(bytes);
        Ok(self.out.write_all(bytes)?)
    }
}

/// Breaks base64 into lines.
struct Lines<W> {
    out: W,
    column: usize,
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let width = LINE / 3 * 4;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(width - self.column));
            self.out.write_all(now)?;
            self.column += now.len();
            if self.column == width {
                self.out.write_all(b"\n")?;
                self.column = 0;
            }
            rest = later;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
