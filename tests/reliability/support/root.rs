//! What only root may do.

use std::{os::unix::fs::MetadataExt, process::Command};

/// Whether the test can be run. It fails where it cannot, unless `RELIABILITY_WITHOUT_ROOT` says
/// that this is known.
pub fn is_root(test: &str) -> bool {
    if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
        return true;
    }
    let accepted = std::env::var_os("RELIABILITY_WITHOUT_ROOT").is_some();
    assert!(accepted, "{test} needs root: run it as root, or set RELIABILITY_WITHOUT_ROOT=1");
    println!("NOT TESTED, for want of root: {test}");
    false
}

/// Runs a command that must succeed.
pub fn run(command: &str) {
    let words: Vec<&str> = command.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output();
    let output = output.unwrap_or_else(|error| panic!("{command}: {error}"));
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}
