//! A consistent copy of a SQLite file, which is never written to.
//!
//! The copy is taken with SQLite's backup interface into a temporary database that has no name in any
//! folder: it is removed with the process. What is opened depends on the other files in its folder:
//!
//! - `-wal` and `-shm`: a program has it open, or was killed. It is read through both, the `-shm` file
//!   read-only, so that SQLite rebuilds a stale one in memory.
//! - `-wal` alone, as after a copy, or `-journal`, of a transaction that was not ended: they are copied with the
//!   file first, as SQLite must make a `-shm` file, or take the transaction back.
//! - none of them: everything is in the file, which is opened as immutable. If it changes meanwhile, once more.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rusqlite::{
    Connection, OpenFlags,
    backup::{Backup, StepResult},
};

use super::error::Failure;
use crate::interrupt;

const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// Pages that are copied between two updates of the progress bar.
const PAGES: i32 = 2_000;
const ATTEMPTS: usize = 5;

/// The copy, and when the file was last written to.
pub struct Snapshot {
    pub connection: Connection,
    pub changed_at: SystemTime,
}

/// Copies the file. `progress` is called with the number of pages that are done, and of all.
pub fn take(file: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Snapshot, Failure> {
    check_magic(file)?;
    // SQLite keeps its other files beside a link's target.
    let file = &fs::canonicalize(file).map_err(|error| Failure::io(file, &error))?;
    for _ in 0..ATTEMPTS {
        let before = State::of(file)?;
        let copied = match before.kind() {
            Kind::Open => copy(&open(file, "mode=ro&readonly_shm=1")?, file, progress),
            Kind::Left => copy_of_files(file, progress),
            Kind::Closed => copy(&open(file, "mode=ro&immutable=1")?, file, progress),
        };
        let is_stable = before.kind() == Kind::Open || State::of(file)? == before;
        match copied {
            Ok(connection) if is_stable => {
                check_integrity(&connection, file)?;
                return Ok(Snapshot { connection, changed_at: before.changed_at() });
            }
            // A writer has come in between.
            Ok(_) => {}
            Err(Failure::Busy) => std::thread::sleep(Duration::from_millis(200)),
            Err(error) if is_stable => return Err(error),
            Err(_) => {}
        }
    }
    Err(Failure::changing(file))
}

#[derive(PartialEq, Eq)]
enum Kind {
    Open,
    Left,
    Closed,
}

/// Shows whether the file was changed.
#[derive(PartialEq, Eq)]
struct State {
    file: (u64, SystemTime),
    wal: Option<(u64, SystemTime)>,
    journal: Option<(u64, SystemTime)>,
    has_shm: bool,
}

impl State {
    fn of(file: &Path) -> Result<Self, Failure> {
        let stat = |path: &Path| {
            let data = fs::metadata(path)?;
            Ok::<_, io::Error>((data.len(), data.modified()?))
        };
        let log = |suffix| match stat(&beside(file, suffix)) {
            Ok(log) if log.0 > 0 => Ok(Some(log)),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::io(file, &error)),
        };
        let (wal, journal) = (log("-wal")?, log("-journal")?);
        let has_shm = beside(file, "-shm").exists();
        let file = stat(file).map_err(|error| Failure::io(file, &error))?;
        Ok(Self { file, wal, journal, has_shm })
    }

    fn kind(&self) -> Kind {
        match (&self.wal, &self.journal, self.has_shm) {
            (Some(_), None, true) => Kind::Open,
            (None, None, _) => Kind::Closed,
            _ => Kind::Left,
        }
    }

    fn changed_at(&self) -> SystemTime {
        let logs = [self.wal, self.journal].into_iter().flatten();
        logs.fold(self.file.1, |latest, (_, changed)| latest.max(changed))
    }
}

fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn check_magic(file: &Path) -> Result<(), Failure> {
    let metadata = fs::metadata(file).map_err(|error| Failure::io(file, &error))?;
    // Opening a pipe without a writer blocks.
    if !metadata.is_file() {
        return Err(Failure::no_database(file));
    }
    let mut magic = [0; 16];
    let mut opened = fs::File::open(file).map_err(|error| Failure::io(file, &error))?;
    match opened.read_exact(&mut magic) {
        Ok(()) if &magic == MAGIC => Ok(()),
        Ok(()) => Err(Failure::no_database(file)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(Failure::no_database(file))
        }
        Err(error) => Err(Failure::io(file, &error)),
    }
}

fn open(file: &Path, parameters: &str) -> Result<Connection, Failure> {
    let path = file.to_str().ok_or_else(|| Failure::no_utf8(file))?;
    let path = path.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = Connection::open_with_flags(format!("file:{path}?{parameters}"), flags);
    opened.map_err(|error| Failure::sqlite(file, &error))
}

/// Copies what a connection sees into a database without a name.
fn copy(
    from: &Connection,
    file: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Connection, Failure> {
    let failed = |error: rusqlite::Error| Failure::sqlite(file, &error);
    from.busy_timeout(Duration::from_secs(10)).map_err(failed)?;
    // A read transaction, so that all steps see the same state.
    from.execute_batch("BEGIN; SELECT count(*) FROM sqlite_master;").map_err(failed)?;
    let mut to = Connection::open("").map_err(Failure::copying)?;
    {
        let backup = Backup::new(from, &mut to).map_err(failed)?;
        loop {
            let step = backup.step(PAGES).map_err(|error| match Failure::is_full(&error) {
                true => Failure::copying(error),
                false => Failure::sqlite(file, &error),
            })?;
            let done = backup.progress();
            let of = u64::try_from(done.pagecount).unwrap_or(0);
            progress(of.saturating_sub(u64::try_from(done.remaining).unwrap_or(0)), of);
            match step {
                StepResult::Done => break,
                StepResult::More => {}
                _ => return Err(Failure::Busy),
            }
        }
    }
    Ok(to)
}

/// Copies file and logs, and then what they hold together.
fn copy_of_files(file: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Connection, Failure> {
    let folder = tempfile::tempdir().map_err(|error| Failure::io(&std::env::temp_dir(), &error))?;
    interrupt::remove_too(folder.path());
    let copied = folder.path().join("copy.sqlite3");
    for suffix in ["", "-wal", "-journal"] {
        let to = beside(&copied, suffix);
        match fs::copy(beside(file, suffix), &to) {
            // Nothing is lost if it is gone by now: the caller sees that the state has changed.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !suffix.is_empty() => {}
            copied => _ = copied.map_err(|error| Failure::io(&to, &error))?,
        }
    }
    let opened = Connection::open(&copied).map_err(|error| Failure::sqlite(file, &error))?;
    copy(&opened, file, progress)
}

fn check_integrity(copy: &Connection, file: &Path) -> Result<(), Failure> {
    let checked: Result<String, _> = copy.query_row("PRAGMA quick_check(1)", (), |row| row.get(0));
    match checked {
        Ok(answer) if answer == "ok" => Ok(()),
        Ok(_) => Err(Failure::damaged(file)),
        Err(error) => Err(Failure::sqlite(file, &error)),
    }
}
