//! Finds PostgreSQL's programs, and the user to run them as.

use std::{
    fs,
    io::ErrorKind,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::TestingError;

/// The programs of one PostgreSQL, and the user that runs them.
#[derive(Debug, Clone)]
pub(super) struct Binaries {
    pub(super) directory: PathBuf,
    pub(super) major: u32,
    /// Set if this process runs as root, as which PostgreSQL refuses to run.
    pub(super) user: Option<(u32, u32)>,
}

impl Binaries {
    /// `existing` is the cluster that exists already, if any: it needs the major version that wrote it
    /// and, as root, the user that owns it.
    pub(super) fn find(
        directory: Option<&Path>,
        existing: Option<&Path>,
    ) -> Result<Self, TestingError> {
        let directory = match directory {
            Some(directory) => usable(directory.to_owned())
                .ok_or(TestingError::NoBinaries { searched: directory.display().to_string() })?,
            None => search(existing)?,
        };
        let user = match own_uid() {
            Some(0) => Some(existing.and_then(owner).map_or_else(unprivileged_user, Ok)?),
            _ => None,
        };
        let mut binaries = Self { directory, major: 0, user };
        let output = binaries.run(binaries.command("postgres").arg("--version"))?;
        // "postgres (PostgreSQL) 17.2 (Debian …)"
        let version = output.split_whitespace().find(|word| word.starts_with(char::is_numeric));
        let major = version.and_then(|version| {
            version.split(|c: char| !c.is_ascii_digit()).next().and_then(|major| major.parse().ok())
        });
        binaries.major = major.ok_or_else(|| TestingError::Program {
            program: "postgres --version".to_owned(),
            output: output.clone(),
        })?;
        Ok(binaries)
    }

    /// A command as the right user, in a directory that this user can enter.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.directory.join(program));
        self.as_user(&mut command);
        command
    }

    pub(super) fn as_user(&self, command: &mut Command) {
        // A locale that every machine has; PG* variables must not reach the server.
        command.current_dir("/").env("LC_ALL", "C");
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"PG") {
                command.env_remove(name);
            }
        }
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
    }

    pub(super) fn uid(&self) -> Option<u32> {
        self.user.map(|(uid, _)| uid).or_else(own_uid)
    }

    /// Runs a command to its end and returns what it printed.
    pub(super) fn run(&self, command: &mut Command) -> Result<String, TestingError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let failed = |output: String| TestingError::Program { program: program.clone(), output };
        let output = command.stdin(Stdio::null()).output().map_err(|error| {
            let hint = match self.user {
                // Usually a directory below /root.
                Some((uid, _)) if error.kind() == ErrorKind::PermissionDenied => {
                    format!(": it is run as user {uid}, not as root: choose a directory that this user can enter")
                }
                _ => String::new(),
            };
            failed(format!("{error}{hint}"))
        })?;
        if !output.status.success() {
            return Err(failed(tail(&String::from_utf8_lossy(&output.stderr))));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The last lines, where programs report errors.
pub(super) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

fn search(existing: Option<&Path>) -> Result<PathBuf, TestingError> {
    if let Some(directory) = std::env::var_os("PG_BIN") {
        let directory = PathBuf::from(directory);
        let searched = format!("PG_BIN ({})", directory.display());
        return usable(directory).ok_or(TestingError::NoBinaries { searched });
    }
    let mut debian: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let major = entry.file_name().to_str()?.parse().ok()?;
            Some((major, usable(entry.path().join("bin"))?))
        })
        .collect();
    debian.sort();
    let writer = existing
        .and_then(|cluster| fs::read_to_string(cluster.join("PG_VERSION")).ok())
        .and_then(|major| major.trim().parse::<u32>().ok());
    let same = debian.iter().position(|(major, _)| Some(*major) == writer);
    if let Some((_, chosen)) = same.map(|found| debian.swap_remove(found)).or_else(|| debian.pop())
    {
        return Ok(chosen);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        // The programs find their share directory relative to their own, so links are resolved.
        .filter_map(|directory| fs::canonicalize(directory.join("initdb")).ok())
        .find_map(|initdb| usable(initdb.parent()?.to_owned()))
        .or_else(|| usable(line_of(Command::new("pg_config").arg("--bindir"))?.into()))
        .ok_or(TestingError::NoBinaries {
            searched: "PG_BIN, /usr/lib/postgresql, PATH and `pg_config --bindir`".to_owned(),
        })
}

/// The output of a program, if it exists and succeeds.
fn line_of(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).output().ok().filter(|it| it.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

fn usable(directory: PathBuf) -> Option<PathBuf> {
    let directory = fs::canonicalize(directory).ok()?;
    ["initdb", "postgres"]
        .iter()
        .all(|program| directory.join(program).is_file())
        .then_some(directory)
}

/// The effective user of this process.
fn own_uid() -> Option<u32> {
    let from_proc = fs::metadata("/proc/self").ok().map(|metadata| metadata.uid());
    from_proc.or_else(|| line_of(Command::new("id").arg("-u"))?.parse().ok())
}

fn owner(cluster: &Path) -> Option<(u32, u32)> {
    let metadata = fs::metadata(cluster).ok()?;
    Some((metadata.uid(), metadata.gid())).filter(|(uid, _)| *uid != 0)
}

fn unprivileged_user() -> Result<(u32, u32), TestingError> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let find = |name: &str| {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    find("postgres").or_else(|| find("nobody")).ok_or(TestingError::NoUser)
}
