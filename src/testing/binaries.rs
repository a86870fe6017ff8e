//! Finds PostgreSQL's programs, and whom to run them as.

use std::{
    fs,
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
    /// Set when we are root, whom PostgreSQL refuses.
    pub(super) user: Option<(u32, u32)>,
}

impl Binaries {
    pub(super) fn find(directory: Option<&Path>) -> Result<Self, TestingError> {
        let directory = match directory {
            Some(directory) => usable(directory.to_owned())
                .ok_or(TestingError::NoBinaries { searched: directory.display().to_string() })?,
            None => search()?,
        };
        let user = if own_uid() == Some(0) { Some(unprivileged_user()?) } else { None };
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
        // A locale that every machine has; and nothing of PG* must leak into the server.
        command.current_dir("/").env("LC_ALL", "C").env_remove("PGDATA").env_remove("PGPORT");
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
        let output =
            command.stdin(Stdio::null()).output().map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            return Err(failed(tail(&String::from_utf8_lossy(&output.stderr))));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The last lines: where programs say what went wrong.
pub(super) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

fn search() -> Result<PathBuf, TestingError> {
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
    if let Some((_, newest)) = debian.pop() {
        return Ok(newest);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        // The programs find their share directory beside themselves, so links are followed.
        .filter_map(|directory| fs::canonicalize(directory.join("initdb")).ok())
        .find_map(|initdb| usable(initdb.parent()?.to_owned()))
        .ok_or(TestingError::NoBinaries {
            searched: "PG_BIN, /usr/lib/postgresql and PATH".to_owned(),
        })
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
    fs::metadata("/proc/self").ok().map(|metadata| metadata.uid())
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
