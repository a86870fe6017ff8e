//! Files and rows that were changed at random: an error, never a panic. `scripts/fuzz` runs it for hours.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    fs,
    io::Read,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use flate2::read::GzDecoder;
use rusqlite::Connection;
use zeroize::Zeroizing;

use super::{snapshot, source, source_of, table::Table, walk::Walk};
use crate::fuzz::{Budget, mutate};
use crate::secrets::Secret;

const PASSPHRASE: &str = "fixture passphrase";

/// The files that the tests import, decompressed.
fn files() -> Vec<(PathBuf, Vec<u8>, bool)> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut files = Vec::new();
    for version in fs::read_dir(fixtures).unwrap().map(|entry| entry.unwrap().path()) {
        for name in ["plain", "passphrase"] {
            let path = version.join(format!("{name}.sqlite3.gz"));
            let mut bytes = Vec::new();
            GzDecoder::new(fs::File::open(&path).unwrap()).read_to_end(&mut bytes).unwrap();
            files.push((path, bytes, name == "passphrase"));
        }
    }
    files
}

/// Reads everything; how far it got.
fn read(file: &Path, is_encrypted: bool) -> bool {
    let secret = match is_encrypted {
        true => Some(Secret::Passphrase(Zeroizing::new(PASSPHRASE.to_owned()))),
        false => None,
    };
    let Ok(taken) = snapshot::take(file, &mut |_, _| {}) else { return false };
    let Ok(source) = source_of(taken.connection, file.to_owned(), secret.as_ref()) else {
        return false;
    };
    for table in Table::ALL.into_iter().filter(|table| source.has(*table)) {
        let mut walk = Walk::new(&source, table);
        while let Ok(Some(_)) = walk.next() {}
    }
    true
}

/// Changes the value of one row, or a few.
fn mutate_rows(file: &Path, random: &mut fastrand::Rng) -> Option<()> {
    let connection = Connection::open(file).ok()?;
    for _ in 0..random.usize(1..4) {
        let table = *random.choice(&Table::ALL)?;
        if !source::has_table(&connection, table.name()) {
            continue;
        }
        let [_, column, _] = table.columns();
        let name = table.name();
        let sql = format!("SELECT rowid, {column} FROM {name} ORDER BY random() LIMIT 1");
        let row = connection.query_row(&sql, (), |row| Ok((row.get(0)?, row.get(1)?)));
        let Ok((id, mut value)): Result<(i64, Vec<u8>), _> = row else { continue };
        mutate(&mut value, random);
        let sql = format!("UPDATE OR REPLACE {name} SET {column} = ?1 WHERE rowid = ?2");
        let _ = connection.execute(&sql, (value, id));
    }
    Some(())
}

fn run(name: &str, change: impl Fn(&Path, &[u8], &mut fastrand::Rng)) {
    let (files, mut budget) = (files(), Budget::new(name));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("fuzzed.sqlite3");
    while let Some(mut random) = budget.next() {
        let (origin, bytes, is_encrypted) = random.choice(&files).unwrap();
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let _ = fs::remove_file(folder.path().join(format!("fuzzed.sqlite3{suffix}")));
        }
        change(&file, bytes, &mut random);
        match catch_unwind(AssertUnwindSafe(|| read(&file, *is_encrypted))) {
            Ok(was_read) => budget.count(was_read),
            Err(_) => {
                let kept = std::env::temp_dir().join(format!("{name}-{}.sqlite3", budget.seed()));
                fs::copy(&file, &kept).unwrap();
                panic!("{}, seed {}: kept as {}", origin.display(), budget.seed(), kept.display());
            }
        }
    }
}

#[test]
#[ignore = "runs for as long as FUZZ_SECONDS says"]
fn sqlite_rows() {
    run("sqlite_rows", |file, bytes, random| {
        fs::write(file, bytes).unwrap();
        mutate_rows(file, random);
    });
}

#[test]
#[ignore = "runs for as long as FUZZ_SECONDS says"]
fn sqlite_files() {
    run("sqlite_files", |file, bytes, random| {
        let mut bytes = bytes.to_vec();
        mutate(&mut bytes, random);
        fs::write(file, bytes).unwrap();
    });
}
