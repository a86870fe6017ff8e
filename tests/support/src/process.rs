//! Signals to processes, and their states.

use std::process::{Command, Stdio};

/// Sends a signal, with the shell's built-in `kill`, because small images lack the program.
pub fn signal(pid: u32, signal: &str) {
    let status = Command::new("sh")
        .args(["-c", r#"kill -s "$@""#, "kill", signal, &pid.to_string()])
        .stderr(Stdio::null())
        .status();
    assert!(status.unwrap().success(), "cannot send {signal} to process {pid}: it has ended");
}

/// A stopped process, which is continued on drop.
pub struct Stopped(u32);

impl Stopped {
    /// Stops one of the server's processes once it is idle. A busy one may hold a lock that every other
    /// process needs, including those of the test's own connections.
    pub fn when_asleep(pid: u32) -> Self {
        while state(pid).is_some_and(|state| state != 'S') {
            std::thread::yield_now();
        }
        Self::new(pid)
    }

    pub fn new(pid: u32) -> Self {
        signal(pid, "STOP");
        // The signal is delivered asynchronously.
        while state(pid) != Some('T') {
            std::thread::yield_now();
        }
        Self(pid)
    }

    pub fn pid(&self) -> u32 {
        self.0
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let pid = self.0.to_string();
        let _ = Command::new("sh").args(["-c", r#"kill -s CONT "$1""#, "kill", &pid]).status();
    }
}

pub fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain any character.
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}
