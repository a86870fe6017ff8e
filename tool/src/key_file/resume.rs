//! Goes on with a key file that was not finished.

use std::{
    fs::File,
    io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom},
};

use base64::Engine;
use ctr::cipher::{StreamCipher, StreamCipherSeek};
use hmac::Mac;
use serde::Deserialize;
use zeroize::{Zeroize, Zeroizing};

use super::{BASE64, BEGIN, KeyFileError, LINE, Prefix, Writer};

/// A file that is continued, and what it has so far.
pub struct Resumed {
    pub writer: Writer<BufWriter<File>>,
    pub keys: u64,
    /// Room and session of the last one.
    pub last: Option<(String, String)>,
}

#[derive(Deserialize)]
struct Ids {
    room_id: String,
    session_id: String,
}

/// Goes on with an unfinished file at the end of its last whole key. It is read in whole lines, and written
/// again from the last one that is kept. `None` if it has no whole line yet.
pub fn resume(file: &File, passphrase: &str) -> Result<Option<Resumed>, KeyFileError> {
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
    let (mut cipher, mut mac) = prefix.keys(passphrase)?;

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
    // Behind the last whole key, or the bracket that begins the array.
    let end = Prefix::LENGTH as u64 + scan.end;
    let kept_lines = end / LINE as u64;
    let mut file = file.try_clone()?;
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
    cipher.try_seek(scan.end).map_err(|_| KeyFileError::Format)?;
    let mut writer = Writer::at(BufWriter::new(file), cipher, mac, scan.keys == 0);
    writer.send(rest)?;
    let last = scan.last.map(|ids| (ids.room_id, ids.session_id));
    Ok(Some(Resumed { writer, keys: scan.keys, last }))
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
    last: Option<Ids>,
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
        self.last = ids.ok();
        self.last.is_some()
    }
}
