//! Data directories: a cached template for throwaway servers, a lasting one for others.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
};

use super::{TestingError, binaries::Binaries};

/// A directory with `data/` (the cluster) and `password` (of the superuser, for TCP).
#[derive(Debug)]
pub(super) struct Home {
    pub(super) path: PathBuf,
    pub(super) throwaway: bool,
}

impl Home {
    pub(super) fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    pub(super) fn password(&self) -> Result<String, TestingError> {
        let path = self.path.join("password");
        let password = fs::read_to_string(&path).map_err(|error| problem(&path, &error))?;
        Ok(password.trim_end().to_owned())
    }

    /// A copy of the template, which saves the second that `initdb` takes.
    pub(super) fn throwaway(binaries: &Binaries) -> Result<Self, TestingError> {
        let template = template(binaries)?;
        let path = private_directory(binaries)?;
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(template.join("data")).arg(template.join("password")).arg(&path);
        binaries.as_user(&mut copy);
        binaries.run(&mut copy)?;
        Ok(Self { path, throwaway: true })
    }

    /// A directory that lasts; made when it is missing or empty.
    pub(super) fn lasting(path: &Path, binaries: &Binaries) -> Result<Self, TestingError> {
        let path = std::path::absolute(path).map_err(|error| problem(path, &error))?;
        fs::create_dir_all(&path).map_err(|error| problem(&path, &error))?;
        let home = Self { path, throwaway: false };
        give(&home.path, binaries)?;
        home.check_enterable(binaries)?;
        if !home.data().join("PG_VERSION").exists() {
            initialise(&home.path, binaries)?;
        }
        Ok(home)
    }

    /// As root we enter everything, the user that runs PostgreSQL does not.
    fn check_enterable(&self, binaries: &Binaries) -> Result<(), TestingError> {
        let mut test = Command::new("test");
        test.arg("-x").arg(&self.path);
        binaries.as_user(&mut test);
        binaries.run(&mut test).map(drop).map_err(|_| TestingError::Directory {
            path: self.path.clone(),
            problem: "PostgreSQL does not run as root, and the user it runs as cannot enter this \
                      directory: choose one outside of root's home"
                .to_owned(),
        })
    }
}

/// A new directory with a random name, that only the user who runs PostgreSQL may enter.
pub(super) fn private_directory(binaries: &Binaries) -> Result<PathBuf, TestingError> {
    // Short: a Unix socket's path has at most 107 bytes.
    let path = std::env::temp_dir().join(format!("mxsp-{}", random_hex(8)?));
    fs::DirBuilder::new().mode(0o700).create(&path).map_err(|error| problem(&path, &error))?;
    give(&path, binaries)?;
    Ok(path)
}

/// `initdb` once per binaries and user; processes that meet here do not disturb one another.
fn template(binaries: &Binaries) -> Result<PathBuf, TestingError> {
    let uid = binaries.uid().unwrap_or_default();
    let origin: u64 = binaries
        .directory
        .to_string_lossy()
        .bytes()
        .fold(5381, |hash, byte| hash.wrapping_mul(33).wrapping_add(u64::from(byte)));
    let name = format!("mxsp-template-{}-{uid}-{origin:x}", binaries.major);
    let template = std::env::temp_dir().join(name);
    if is_ours(&template, uid) {
        return Ok(template);
    }
    let fresh = private_directory(binaries)?;
    initialise(&fresh, binaries)?;
    // Whoever is first wins; the directory of somebody else is not touched.
    match fs::rename(&fresh, &template) {
        Ok(()) => Ok(template),
        Err(_) if is_ours(&template, uid) => {
            fs::remove_dir_all(&fresh).map_err(|error| problem(&fresh, &error))?;
            Ok(template)
        }
        Err(error) => Err(problem(&template, &error)),
    }
}

/// Others may write to the temporary directory: a template that is not ours is no template.
fn is_ours(template: &Path, uid: u32) -> bool {
    fs::symlink_metadata(template).is_ok_and(|metadata| {
        metadata.is_dir() && metadata.uid() == uid && metadata.permissions().mode() & 0o077 == 0
    }) && template.join("data/PG_VERSION").exists()
}

/// Runs `initdb` with a random password; the socket needs none, for its directory is private.
fn initialise(home: &Path, binaries: &Binaries) -> Result<(), TestingError> {
    let password = home.join("password");
    fs::write(&password, random_hex(16)?).map_err(|error| problem(&password, &error))?;
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600))
        .map_err(|error| problem(&password, &error))?;
    give(&password, binaries)?;
    let mut initdb = binaries.command("initdb");
    initdb
        .arg("--pgdata")
        .arg(home.join("data"))
        .arg("--pwfile")
        .arg(&password)
        .args(["--username=postgres", "--encoding=UTF8", "--no-locale", "--no-sync"])
        .args(["--auth-local=trust", "--auth-host=scram-sha-256"]);
    binaries.run(&mut initdb).map(drop)
}

fn give(path: &Path, binaries: &Binaries) -> Result<(), TestingError> {
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
