//! Data directories: a copy of a cached template for throwaway servers, or a persistent one.

use std::{
    fs::{self, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant, SystemTime},
};

use super::{TestingError, binaries::Binaries, process, watchdog::Watchdog};

/// How long to wait for a persistent directory's lock, while its former process or watchdog ends.
const HANDOVER_LIMIT: Duration = Duration::from_secs(10);
/// Prefix of a cluster directory that `initdb` has not finished.
const UNFINISHED: &str = "data.new-";
/// A Unix socket's path has at most 107 bytes, on some systems 103.
const MAX_TEMPORARY_PATH: usize = 60;

/// A directory with `data/` (the cluster), `password` (of the superuser, for TCP) and `log`.
#[derive(Debug)]
pub(super) struct ServerDirectory {
    pub(super) path: PathBuf,
    /// Holds the socket, and the data of a throwaway server.
    pub(super) scratch: Scratch,
    /// Held while the value lives; released by the system when the process ends.
    _lock: Option<fs::File>,
}

impl ServerDirectory {
    pub(super) fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    pub(super) fn throwaway(&self) -> bool {
        self.path == self.scratch.path
    }

    pub(super) fn password(&self) -> Result<String, TestingError> {
        let path = self.path.join("password");
        let password = fs::read_to_string(&path).map_err(|error| problem(&path, &error))?;
        Ok(password.trim_end().to_owned())
    }

    /// A copy of the template, which saves the second that `initdb` takes.
    pub(super) fn temporary(binaries: &Binaries) -> Result<Self, TestingError> {
        let template = template(binaries)?;
        let mut scratch = Scratch::new(&short_temporary(), binaries, true)?;
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(template.join("data")).arg(template.join("password")).arg(&scratch.path);
        process::run(&copy, binaries, &mut scratch.watchdog)?;
        Ok(Self { path: scratch.path.clone(), scratch, _lock: None })
    }

    /// A persistent directory, created when it is missing or empty.
    pub(super) fn persistent(path: &Path, binaries: &Binaries) -> Result<Self, TestingError> {
        let path = std::path::absolute(path).map_err(|error| problem(path, &error))?;
        fs::create_dir_all(&path).map_err(|error| problem(&path, &error))?;
        let lock = lock(&path)?;
        let data = path.join("data");
        if !data.exists() {
            check_unused(&path)?;
            chown_to_server(&path, binaries)?;
        }
        let mut scratch = Scratch::new(&short_temporary(), binaries, false)?;
        check_enterable(&path, binaries)?;
        if !data.exists() {
            initialise(&path, binaries, &mut scratch.watchdog, true)?;
        }
        Ok(Self { path, scratch, _lock: lock })
    }
}

/// Concurrent processes must not both create the cluster, nor truncate each other's log.
fn lock(path: &Path) -> Result<Option<fs::File>, TestingError> {
    let directory = fs::File::open(path).map_err(|error| problem(path, &error))?;
    let started = Instant::now();
    loop {
        match directory.try_lock() {
            Ok(()) => return Ok(Some(directory)),
            Err(TryLockError::WouldBlock) if started.elapsed() < HANDOVER_LIMIT => {}
            Err(TryLockError::WouldBlock) => {
                let pid = process::pid_in(&path.join("data"));
                return Err(TestingError::InUse { path: path.to_owned(), pid });
            }
            // Some network file systems have no locks. PostgreSQL's own lock file remains.
            Err(TryLockError::Error(_)) => return Ok(None),
        }
        sleep(process::PAUSE);
    }
}

/// Refuses a directory with other files, before its owner is changed.
fn check_unused(path: &Path) -> Result<(), TestingError> {
    // Left by an interrupted creation, or found in a new volume.
    const KNOWN: [&str; 3] = ["password", "log", "lost+found"];
    let mut entries = fs::read_dir(path).map_err(|error| problem(path, &error))?.flatten();
    match entries.find(|entry| {
        let name = entry.file_name();
        !KNOWN.iter().any(|known| name == *known) && !name.to_string_lossy().starts_with(UNFINISHED)
    }) {
        Some(entry) => Err(TestingError::Directory {
            path: path.to_owned(),
            problem: format!(
                "it holds {} and no test server's data: choose an empty directory",
                entry.file_name().display()
            ),
        }),
        None => Ok(()),
    }
}

/// Root can enter every directory, but the user that runs PostgreSQL cannot.
fn check_enterable(path: &Path, binaries: &Binaries) -> Result<(), TestingError> {
    let mut test = Command::new("test");
    test.arg("-x").arg(path);
    binaries.as_user(&mut test);
    binaries.run(&mut test).map(drop).map_err(|_| TestingError::Directory {
        path: path.to_owned(),
        problem: "PostgreSQL does not run as root, and the user it runs as cannot enter this \
                  directory: choose one outside of /root"
            .to_owned(),
    })
}

/// A new private directory, removed with the value, or by the watchdog when the process ends.
#[derive(Debug)]
pub(super) struct Scratch {
    pub(super) path: PathBuf,
    pub(super) watchdog: Watchdog,
}

impl Scratch {
    /// Only the user that runs PostgreSQL may enter it.
    fn new(parent: &Path, binaries: &Binaries, throwaway: bool) -> Result<Self, TestingError> {
        let path = parent.join(format!("mxsp-{}", random_hex(8)?));
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(|error| problem(&path, &error))?;
        let watchdog = Watchdog::start(&path, throwaway)?;
        chown_to_server(&path, binaries)?;
        Ok(Self { path, watchdog })
    }
}

fn short_temporary() -> PathBuf {
    let directory = std::env::temp_dir();
    match directory.as_os_str().len() > MAX_TEMPORARY_PATH {
        true => PathBuf::from("/tmp"),
        false => directory,
    }
}

/// Runs `initdb` once per binaries, user and day. Safe for concurrent processes.
fn template(binaries: &Binaries) -> Result<PathBuf, TestingError> {
    let uid = binaries.uid().unwrap_or_default();
    let origin: u64 = binaries
        .directory
        .to_string_lossy()
        .bytes()
        .fold(5381, |hash, byte| hash.wrapping_mul(33).wrapping_add(u64::from(byte)));
    let prefix = format!("mxsp-template-{}-{uid}-{origin:x}-", binaries.major);
    // Some machines clean old files out of the temporary directory; a template is never that old.
    let day = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs() / 86_400);
    let template = std::env::temp_dir().join(format!("{prefix}{day}"));
    if is_ours(&template, uid) {
        return Ok(template);
    }
    let mut fresh = Scratch::new(&std::env::temp_dir(), binaries, true)?;
    initialise(&fresh.path, binaries, &mut fresh.watchdog, false)?;
    // The first of several processes wins; another user's directory is not touched.
    match fs::rename(&fresh.path, &template) {
        Ok(()) => remove_older(&prefix, day, uid),
        Err(_) if is_ours(&template, uid) => {}
        Err(error) => return Err(problem(&template, &error)),
    }
    Ok(template)
}

/// Keeps yesterday's template, which may still be being copied.
fn remove_older(prefix: &str, day: u64, uid: u32) {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let made = name.to_str().and_then(|name| name.strip_prefix(prefix)?.parse::<u64>().ok());
        if made.is_some_and(|made| made + 1 < day) && is_ours(&entry.path(), uid) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether a template is this user's: other users may write to the temporary directory.
fn is_ours(template: &Path, uid: u32) -> bool {
    fs::symlink_metadata(template).is_ok_and(|metadata| {
        metadata.is_dir() && metadata.uid() == uid && metadata.permissions().mode() & 0o077 == 0
    }) && template.join("data/PG_VERSION").exists()
}

/// Removes the remains of interrupted creations, ignoring errors: the `initdb` of a killed process runs
/// until its watchdog has stopped it.
fn clear_unfinished(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Runs `initdb` with a random password; the socket needs none, as its directory is private.
///
/// `data` is renamed into place when it is complete: no server can open what an interrupted `initdb`
/// leaves.
fn initialise(
    directory: &Path,
    binaries: &Binaries,
    watchdog: &mut Watchdog,
    persistent: bool,
) -> Result<(), TestingError> {
    clear_unfinished(directory);
    // A unique name, so that an `initdb` that is still being stopped cannot write to it.
    let fresh = directory.join(format!("{UNFINISHED}{}", random_hex(4)?));
    let (data, password) = (directory.join("data"), directory.join("password"));
    fs::remove_file(&password)
        .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
        .map_err(|error| problem(&password, &error))?;
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&password)
        .and_then(|mut file| {
            file.write_all(random_hex(16).map_err(io::Error::other)?.as_bytes())?;
            if persistent { file.sync_all() } else { Ok(()) }
        })
        .map_err(|error| problem(&password, &error))?;
    chown_to_server(&password, binaries)?;
    let mut initdb = binaries.command("initdb");
    initdb
        .arg("--pgdata")
        .arg(&fresh)
        .arg("--pwfile")
        .arg(&password)
        .args(["--username=postgres", "--encoding=UTF8", "--no-locale"])
        .args(["--auth-local=trust", "--auth-host=scram-sha-256"]);
    if !persistent {
        initdb.arg("--no-sync");
    }
    process::run(&initdb, binaries, watchdog)?;
    fs::rename(&fresh, &data).map_err(|error| problem(&data, &error))
}

fn chown_to_server(path: &Path, binaries: &Binaries) -> Result<(), TestingError> {
    match binaries.user {
        Some((uid, gid)) => {
            chown(path, Some(uid), Some(gid)).map_err(|error| problem(path, &error))
        }
        None => Ok(()),
    }
}

pub(super) fn random_hex(bytes: usize) -> Result<String, TestingError> {
    use std::io::Read;
    let path = Path::new("/dev/urandom");
    let mut random = vec![0; bytes];
    fs::File::open(path)
        .and_then(|mut file| file.read_exact(&mut random))
        .map_err(|error| problem(path, &error))?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

pub(super) fn problem(path: &Path, error: &io::Error) -> TestingError {
    TestingError::Directory { path: path.to_owned(), problem: error.to_string() }
}
