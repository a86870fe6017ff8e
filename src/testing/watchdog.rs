//! Stops the server when this process ends, `kill -9` included.
//!
//! A shell waits for the end of a pipe that only this process writes to. A parent-death
//! signal (`PR_SET_PDEATHSIG`) would be sent when the thread that started the server ends.

use std::{
    io::Write,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
};

use super::TestingError;

/// `$1`: the signal that stops the server; `$2`: seconds to wait for its end; `$3`: the directory to
/// remove. Each input line is the id of the process to stop, or empty if there is none.
const SCRIPT: &str = r#"
trap '' HUP INT QUIT TERM
pid=
while read -r line; do pid=$line; done
running() {
    kill -s 0 "$pid" || return 1
    # Without an init that reaps orphans, ended processes stay as zombies.
    [ -r "/proc/$pid/stat" ] || return 0
    read -r number name state rest <"/proc/$pid/stat" && [ "$state" != Z ]
}
stop() {
    kill -s "$1" "$pid"
    # A stopped process acts on no other signal.
    kill -s CONT "$pid"
    tries=$(($2 * 20))
    while [ "$tries" -gt 0 ] && running; do sleep 0.05; tries=$((tries - 1)); done
}
if [ -n "$pid" ]; then
    if running; then stop "$1" "$2"; fi
    if running; then stop QUIT 10; fi
    if running; then stop KILL 5; fi
fi
# Children of a killed server may still write.
tries=20
until rm -rf -- "$3" || [ "$tries" -eq 0 ]; do sleep 0.25; tries=$((tries - 1)); done
"#;

#[derive(Debug)]
pub(super) struct Watchdog(Child);

impl Watchdog {
    /// Started before the server, so that the server is never without a watchdog.
    pub(super) fn start(scratch: &Path, throwaway: bool) -> Result<Self, TestingError> {
        // Throwaway data need no clean shutdown; persistent data get one.
        let (signal, seconds) = if throwaway { ("QUIT", "10") } else { ("INT", "60") };
        Command::new("sh")
            .args(["-c", SCRIPT, "watchdog", signal, seconds])
            .arg(scratch)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            // Its own process group, so that a Ctrl-C does not end it.
            .process_group(0)
            .spawn()
            .map(Self)
            .map_err(|error| failed(&error))
    }

    /// Sets the process to stop; `None` when there is none.
    pub(super) fn watch(&mut self, process: Option<u32>) -> Result<(), TestingError> {
        let line = process.map_or_else(|| "\n".to_owned(), |pid| format!("{pid}\n"));
        match &mut self.0.stdin {
            // A short write to a pipe is atomic.
            Some(pipe) => pipe.write_all(line.as_bytes()).map_err(|error| failed(&error)),
            None => Ok(()),
        }
    }
}

impl Drop for Watchdog {
    /// Closes the pipe, so that the watchdog stops the server now, and waits for it.
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn failed(error: &std::io::Error) -> TestingError {
    TestingError::Program { program: "sh (the watchdog)".to_owned(), output: error.to_string() }
}
