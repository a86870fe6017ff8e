//! The history file of one process.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::Path,
    sync::Mutex,
};

use rustix::time::{ClockId, clock_gettime};

use super::{Line, Note};

/// Writes without a buffer, so that notes survive a `kill -9`.
pub struct Journal {
    file: Mutex<File>,
    process: String,
}

pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap()
}

impl Journal {
    pub fn create(directory: &Path, process: &str) -> Self {
        let path = directory.join(format!("{process}.jsonl"));
        let file = OpenOptions::new().create_new(true).append(true).open(&path);
        let file = Mutex::new(file.unwrap_or_else(|error| panic!("{}: {error}", path.display())));
        Self { file, process: process.to_owned() }
    }

    pub fn process(&self) -> &str {
        &self.process
    }

    /// Called before an operation begins and after it has ended, so that the noted time contains it.
    pub fn note(&self, account: &str, note: Note) {
        let at = now();
        let line = Line { at, process: self.process.clone(), account: account.to_owned(), note };
        self.write(&line);
    }

    pub fn write(&self, line: &Line) {
        let mut text = serde_json::to_vec(line).unwrap();
        text.push(b'\n');
        self.file.lock().unwrap().write_all(&text).unwrap();
    }
}
