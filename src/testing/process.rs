//! The server's process: starting it, waiting for it, stopping it.

use std::{
    fs,
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use super::{
    TestingError,
    binaries::{Binaries, tail},
    directory::problem,
    watchdog::Watchdog,
};

pub(super) const PAUSE: Duration = Duration::from_millis(5);
/// How long to wait after a stop signal before a stronger one is sent.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// Waits for a line, so that the watchdog gets the process id first; `exec` keeps the id.
const WAIT_FOR_START: &str = r#"read -r go && exec "$@" </dev/null"#;

/// Starts a program once the watchdog has its process id, so that the watchdog stops it even if this
/// process is killed at once.
fn spawn(
    program: &Command,
    binaries: &Binaries,
    watchdog: &mut Watchdog,
    (stdout, stderr): (Stdio, Stdio),
) -> Result<Child, TestingError> {
    let mut command = Command::new("sh");
    binaries.as_user(&mut command);
    let spawned = command
        .args(["-c", WAIT_FOR_START, "start"])
        .arg(program.get_program())
        .args(program.get_args())
        .stdin(Stdio::piped())
        .stdout(stdout)
        .stderr(stderr)
        // Its own process group, so that a Ctrl-C does not reach it: the watchdog stops it.
        .process_group(0)
        .spawn();
    let mut child = spawned.map_err(|error| failed(program, error.to_string()))?;
    let start_pipe = child.stdin.take();
    let started = watchdog.watch(Some(child.id())).and_then(|()| match start_pipe {
        Some(mut start_pipe) => {
            start_pipe.write_all(b"go\n").map_err(|error| failed(program, error.to_string()))
        }
        None => Ok(()),
    });
    if let Err(error) = started {
        let _ = child.kill();
        let _ = child.wait();
        return Err(error);
    }
    Ok(child)
}

/// Runs a program to its end; it may write to the directory that the watchdog removes.
pub(super) fn run(
    program: &Command,
    binaries: &Binaries,
    watchdog: &mut Watchdog,
) -> Result<(), TestingError> {
    let child = spawn(program, binaries, watchdog, (Stdio::null(), Stdio::piped()))?;
    let output = child.wait_with_output();
    watchdog.watch(None)?;
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(failed(program, tail(&String::from_utf8_lossy(&output.stderr)))),
        Err(error) => Err(failed(program, error.to_string())),
    }
}

fn failed(program: &Command, output: String) -> TestingError {
    TestingError::Program { program: program.get_program().to_string_lossy().into_owned(), output }
}

#[derive(Debug)]
pub(super) struct Postmaster(Child);

impl Postmaster {
    pub(super) fn start(
        command: &Command,
        binaries: &Binaries,
        log: &Path,
        watchdog: &mut Watchdog,
    ) -> Result<Self, TestingError> {
        let file = fs::OpenOptions::new().append(true).create(true).open(log);
        let file = file.map_err(|error| problem(log, &error))?;
        let errors = file.try_clone().map_err(|error| problem(log, &error))?;
        spawn(command, binaries, watchdog, (file.into(), errors.into())).map(Self)
    }

    pub(super) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }

    /// Sends `INT` (fast shutdown) or `QUIT` (immediate shutdown), and kills it if it does not end.
    pub(super) fn stop(&mut self, first: &str) {
        for name in [first, "QUIT"] {
            signal(&[self.id()], name);
            let started = Instant::now();
            while started.elapsed() < STOP_LIMIT {
                if self.has_ended() {
                    return;
                }
                sleep(PAUSE);
            }
        }
        self.kill();
    }

    /// Kills it and its children, and waits until all are gone.
    pub(super) fn kill(&mut self) {
        if self.has_ended() {
            return;
        }
        // A stopped process starts no more children, so that the list is complete.
        signal(&[self.id()], "STOP");
        let children = children_of(self.id());
        let _ = self.0.kill();
        signal(&children, "KILL");
        let _ = self.0.wait();
        let started = Instant::now();
        while children.iter().any(|child| is_running(*child)) && started.elapsed() < STOP_LIMIT {
            sleep(PAUSE);
        }
    }
}

/// Uses the shell's builtin `kill`: small images lack the program.
fn signal(processes: &[u32], signal: &str) {
    if !processes.is_empty() {
        let _ = Command::new("sh")
            .args(["-c", r#"kill -s "$@""#, "kill", signal])
            .args(processes.iter().map(u32::to_string))
            .stderr(Stdio::null())
            .status();
    }
}

/// State and parent of a process.
fn stat(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold blanks and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Whether a process runs; zombies do not count.
fn is_running(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z')
}

fn children_of(parent: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    processes.filter(|pid| stat(*pid).is_some_and(|(_, of)| of == parent)).collect()
}

fn pid_file(data: &Path) -> PathBuf {
    data.join("postmaster.pid")
}

/// The process id in a cluster's lock file.
pub(super) fn pid_in(data: &Path) -> Option<u32> {
    fs::read_to_string(pid_file(data)).ok()?.lines().next()?.trim().parse().ok()
}

/// Whether the server of this cluster is ready, and has this process id.
pub(super) fn is_ready(data: &Path, pid: u32) -> bool {
    // The eighth line is the state; a file left by a former server has another process id.
    let text = fs::read_to_string(pid_file(data)).unwrap_or_default();
    // A standby that accepts reads has the state "standby".
    let ready = |state: &str| ["ready", "standby"].contains(&state.trim());
    pid_in(data) == Some(pid) && text.lines().nth(7).is_some_and(ready)
}

/// Waits until a cluster's former server has ended: if its process was killed, the watchdog needs a
/// moment to stop it.
pub(super) fn wait_for_former(data: &Path, limit: Duration) -> Result<(), TestingError> {
    let started = Instant::now();
    while let Some(pid) = pid_in(data).filter(|pid| is_running(*pid)) {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if !name.is_empty() && name.trim() != "postgres" {
            // After a restart of a container process ids are reused, and PostgreSQL refuses to start
            // when any process of its user has the id in the lock file.
            return fs::remove_file(pid_file(data)).map_err(|error| problem(data, &error));
        }
        if started.elapsed() > limit {
            return Err(TestingError::InUse { path: data.to_owned(), pid: Some(pid) });
        }
        sleep(PAUSE);
    }
    Ok(())
}
