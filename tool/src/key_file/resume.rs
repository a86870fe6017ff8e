//! Goes on with a key file that was not finished.

use std::{
    collections::HashSet,
    fs::File,
    io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom},
};

use base64::Engine;
use ctr::cipher::{StreamCipher, StreamCipherSeek};
use hmac::Mac;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use super::{BASE64, BEGIN, Cipher, HmacSha256, KeyFileError, LINE, Prefix, Writer};

/// A file that was not finished, and what it has so far.
pub struct Unfinished {
    pub keys: u64,
    pub seen: Seen,
    file: File,
    cipher: Cipher,
    mac: HmacSha256,
    /// Where its second line begins.
    start: u64,
    /// How many bytes of the array there are up to the end of its last whole key.
    end: u64,
}

/// Which keys a file has. Of a million keys it takes some 40 MB.
#[derive(Default)]
pub struct Seen(HashSet<[u8; 16]>);

impl Seen {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn has(&self, room_id: &str, session_id: &str) -> bool {
        self.0.contains(&Self::digest(room_id, session_id))
    }

    fn add(&mut self, ids: &Ids) {
        self.0.insert(Self::digest(&ids.room_id, &ids.session_id));
    }

    fn digest(room_id: &str, session_id: &str) -> [u8; 16] {
        let digest = Sha256::new().chain_update(room_id).chain_update([0]).chain_update(session_id);
        let mut short = [0; 16];
        short.copy_from_slice(&digest.finalize()[..16]);
        short
    }
}

#[derive(Deserialize)]
struct Ids {
    room_id: String,
    session_id: String,
}

/// Reads an unfinished file, in whole lines. `None` if it has none yet.
pub fn resume(
    file: &File,
    passphrase: &str,
    rounds: u32,
) -> Result<Option<Unfinished>, KeyFileError> {
    let mut lines = BufReader::new(file);
    let mut line = Vec::new();
    (&mut lines).take(1 << 10).read_until(b'\n', &mut line)?;
    let is_begun = BEGIN.as_bytes().starts_with(line.trim_ascii());
    if !is_begun {
        return Err(KeyFileError::Format);
    }
    let start = line.len() as u64;
    let Some(first) = whole_line(&mut lines)? else { return Ok(None) };
    let mut prefix = [0; Prefix::LENGTH];
    prefix.copy_from_slice(&first[..Prefix::LENGTH]);
    let prefix = Prefix::parse(&prefix)?;
    if prefix.rounds != rounds {
        return Err(KeyFileError::OtherRounds(prefix.rounds));
    }
    let (mut cipher, mac) = prefix.keys(passphrase)?;

    let mut scan = Scan::default();
    let mut payload = first[Prefix::LENGTH..].to_vec();
    loop {
        cipher.apply_keystream(&mut payload);
        if !scan.see(&payload) {
            return Err(KeyFileError::Mac);
        }
        match whole_line(&mut lines)? {
            Some(bytes) => payload = bytes,
            None => break,
        }
    }
    let Scan { keys, ids: seen, end, .. } = scan;
    Ok(Some(Unfinished { keys, seen, file: file.try_clone()?, cipher, mac, start, end }))
}

impl Unfinished {
    /// Goes on at the end of the last whole key. The line that it ends in is written again.
    pub fn go_on(self) -> Result<(Writer<BufWriter<File>>, Seen), KeyFileError> {
        let Self { keys, seen, mut file, mut cipher, mut mac, start, end: in_array } = self;
        let end = Prefix::LENGTH as u64 + in_array;
        let kept_lines = end / LINE as u64;
        let width = (LINE / 3 * 4 + 1) as u64;
        file.seek(SeekFrom::Start(start))?;
        let mut kept = BufReader::new(&file).take(kept_lines * width);
        for _ in 0..kept_lines {
            mac.update(&whole_line(&mut kept)?.ok_or(KeyFileError::Format)?);
        }
        let mut rest = BufReader::new(&file);
        rest.seek(SeekFrom::Start(start + kept_lines * width))?;
        let rest = whole_line(&mut rest)?.unwrap_or_default();
        let rest = &rest[..usize::try_from(end % LINE as u64).unwrap_or(0).min(rest.len())];

        file.set_len(start + kept_lines * width)?;
        file.seek(SeekFrom::End(0))?;
        cipher.try_seek(in_array).map_err(|_| KeyFileError::Format)?;
        let mut writer = Writer::at(BufWriter::new(file), cipher, mac, keys == 0);
        writer.send(rest)?;
        Ok((writer, seen))
    }
}

/// A line's bytes, if it is whole.
fn whole_line(lines: &mut impl BufRead) -> Result<Option<Vec<u8>>, KeyFileError> {
    let mut line = Vec::new();
    lines.take(1 << 10).read_until(b'\n', &mut line)?;
    if line.last() != Some(&b'\n') {
        return Ok(None);
    }
    let bytes = BASE64.decode(line.trim_ascii()).ok().filter(|bytes| bytes.len() == LINE);
    Ok(bytes)
}

/// Finds the ends of values in a JSON array of objects.
#[derive(Default)]
struct Scan {
    seen: u64,
    depth: u32,
    /// The array has ended; the MAC comes behind it.
    has_ended: bool,
    is_in_string: bool,
    is_escaped: bool,
    value: Zeroizing<Vec<u8>>,
    keys: u64,
    ids: Seen,
    /// How many bytes there are up to the end of the last whole value.
    end: u64,
}

impl Scan {
    /// Whether it still looks like an array of keys.
    fn see(&mut self, bytes: &[u8]) -> bool {
        bytes.iter().all(|byte| self.see_byte(*byte))
    }

    fn see_byte(&mut self, byte: u8) -> bool {
        self.seen += 1;
        if self.seen == 1 {
            self.end = 1;
            return byte == b'[';
        }
        if self.has_ended {
            return true;
        }
        if self.depth == 0 {
            self.has_ended = byte == b']';
            match byte {
                b'{' => {}
                b',' | b']' => return true,
                _ => return false,
            }
        }
        self.value.push(byte);
        match byte {
            _ if self.is_escaped => self.is_escaped = false,
            b'\\' if self.is_in_string => self.is_escaped = true,
            b'"' => self.is_in_string = !self.is_in_string,
            _ if self.is_in_string => {}
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        self.depth > 0 || self.end_value()
    }

    fn end_value(&mut self) -> bool {
        let ids = serde_json::from_slice::<Ids>(&self.value);
        self.value.zeroize();
        self.keys += 1;
        self.end = self.seen;
        ids.map(|ids| self.ids.add(&ids)).is_ok()
    }
}
