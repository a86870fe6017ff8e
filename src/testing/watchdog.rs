//! Stops the server when this process is gone, `kill -9` included.
//!
//! A shell waits for the end of a pipe that only this process writes to. A signal on the parent's
//! death would not do: it fires when the thread that started the server ends.

use std::{
    io::Write,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
};

use super::TestingError;

/// `$1` the signal that stops the server, `$2` for how many seconds it is given time, `$3` what to
/// remove. Each line read names the server's process id; an empty one says that there is none.
const SCRIPT: &str = r#"
trap '' HUP INT QUIT TERM
pid=
while read -r line; do pid=$line; done
running() {
    kill -s 0 "$pid" || return 1
    # Where nobody waits for orphans, the dead stay as zombies.
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
rm -rf -- "$3" || { sleep 1; rm -rf -- "$3"; }
"#;

#[derive(Debug)]
pub(super) struct Watchdog(Child);

impl Watchdog {
    /// Starts before the server, so that there is no moment in which nobody watches.
    pub(super) fn start(scratch: &Path, throwaway: bool) -> Result<Self, TestingError> {
        // Throwaway data need no clean shutdown; lasting data get one.
        let (signal, seconds) = if throwaway { ("QUIT", "10") } else { ("INT", "60") };
        Command::new("sh")
            .args(["-c", SCRIPT, "watchdog", signal, seconds])
            .arg(scratch)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            // Not reached by a Ctrl-C that ends us.
            .process_group(0)
            .spawn()
            .map(Self)
            .map_err(|error| failed(&error))
    }

    /// Names the server to stop; `None` when there is none.
    pub(super) fn watch(&mut self, server: Option<u32>) -> Result<(), TestingError> {
        let line = server.map_or_else(|| "\n".to_owned(), |pid| format!("{pid}\n"));
        match &mut self.0.stdin {
            // One short write is never torn.
            Some(pipe) => pipe.write_all(line.as_bytes()).map_err(|error| failed(&error)),
            None => Ok(()),
        }
    }
}

impl Drop for Watchdog {
    /// Makes the watchdog do its work now, and waits for it.
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn failed(error: &std::io::Error) -> TestingError {
    TestingError::Program { program: "sh (the watchdog)".to_owned(), output: error.to_string() }
}
