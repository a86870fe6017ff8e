//! Key files that were changed at random: an error, never a panic.

#![allow(clippy::unwrap_used)]

use std::{fs::OpenOptions, io::Cursor};

use serde_json::json;

use super::{Reader, Writer, each, resume, verify};
use crate::fuzz::{Budget, mutate};

fn file(random: &mut fastrand::Rng) -> Vec<u8> {
    let bytes = std::array::from_fn(|_| random.u8(..));
    let mut writer = Writer::new(Vec::new(), "passphrase", 1, bytes).unwrap();
    for number in 0..random.usize(1..20) {
        let key = json!({ "room_id": "!room:example.org", "session_id": number.to_string() });
        writer.push(&key).unwrap();
    }
    writer.finish().unwrap()
}

#[test]
#[ignore = "runs for as long as FUZZ_SECONDS says"]
fn key_files() {
    let mut budget = Budget::new("key_files");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fuzzed.partial");
    while let Some(mut random) = budget.next() {
        let mut bytes = file(&mut random);
        let whole = verify(Cursor::new(&bytes), "passphrase").is_ok();
        assert!(whole, "seed {}", budget.seed());
        // The rounds of PBKDF2 stay as they are: others would take the time.
        let mut rest = bytes.split_off(100);
        mutate(&mut rest, &mut random);
        bytes.append(&mut rest);
        let verified = verify(Cursor::new(&bytes), "passphrase").is_ok();
        // Also what was not verified.
        if let Ok(reader) = Reader::new(Cursor::new(&bytes), "passphrase") {
            let _ = each(reader, |_| Ok(()));
        }
        std::fs::write(&path, &bytes).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        if let Ok(Some(resumed)) = resume(&file, "passphrase", 1) {
            let expected = resumed.keys;
            resumed.go_on().unwrap().0.finish().unwrap();
            let bytes = std::fs::read(&path).unwrap();
            verify(Cursor::new(&bytes), "passphrase").unwrap();
            let mut keys = 0;
            each(Reader::new(Cursor::new(&bytes), "passphrase").unwrap(), |_| {
                keys += 1;
                Ok(())
            })
            .unwrap();
            assert_eq!(keys, expected, "seed {}", budget.seed());
        }
        budget.count(verified);
    }
}
