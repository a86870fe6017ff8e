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

/// `$1` the server's process id, `$2` the signal, `$3` the data directory, `$4` what to remove
/// ("" for nothing), `$5` the socket's directory.
const SCRIPT: &str = r#"
read -r word
[ "$word" = release ] && exit 0
running() { kill -0 "$1" 2>/dev/null && [ "$(head -n 1 "$2/postmaster.pid" 2>/dev/null)" = "$1" ]; }
if running "$1" "$3"; then
    kill -s "$2" "$1" 2>/dev/null
    tries=0
    while running "$1" "$3"; do
        tries=$((tries + 1))
        [ "$tries" -eq 300 ] && kill -s KILL "$1" 2>/dev/null
        sleep 0.05
    done
fi
rm -rf -- "$5"
[ -z "$4" ] || rm -rf -- "$4"
"#;

#[derive(Debug)]
pub(super) struct Watchdog(Child);

impl Watchdog {
    /// Watches over a server. At the end it is stopped, and with `remove` its home is removed.
    pub(super) fn start(
        pid: u32,
        data: &Path,
        remove: Option<&Path>,
        socket: &Path,
    ) -> Result<Self, TestingError> {
        // Throwaway data need no clean shutdown; lasting data get one.
        let signal = if remove.is_some() { "QUIT" } else { "INT" };
        Command::new("sh")
            .args(["-c", SCRIPT, "watchdog", &pid.to_string(), signal])
            .arg(data)
            .arg(remove.unwrap_or(Path::new("")))
            .arg(socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            // Not reached by a Ctrl-C that ends us.
            .process_group(0)
            .spawn()
            .map(Self)
            .map_err(|error| TestingError::Program {
                program: "sh".to_owned(),
                output: error.to_string(),
            })
    }

    /// Sends the watchdog away: the server was stopped already, and its home stays.
    pub(super) fn release(mut self) {
        if let Some(mut pipe) = self.0.stdin.take() {
            let _ = pipe.write_all(b"release\n");
        }
        let _ = self.0.wait();
    }

    /// Makes the watchdog do its work now, and waits for it.
    pub(super) fn finish(mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
