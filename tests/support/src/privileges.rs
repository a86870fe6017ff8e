//! Tests that need root, or a user name space (`scripts/check tests` makes one).

use std::{fs, process::Command};

/// The bit of `CAP_SYS_ADMIN` (capabilities(7)), which mounting requires.
const SYS_ADMIN: u64 = 1 << 21;

/// Whether this process may mount file systems.
pub fn may_mount() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(capabilities.trim(), 16).unwrap() & SYS_ADMIN != 0
}

/// Whether the privileges for this test are present. Fails if not, unless `RELIABILITY_WITHOUT_ROOT` is set.
pub fn has_privileges_for(test: &str) -> bool {
    if may_mount() {
        return true;
    }
    let accepted = std::env::var_os("RELIABILITY_WITHOUT_ROOT").is_some();
    assert!(
        accepted,
        "{test} needs root: run it as root, or with scripts/check tests, or set \
         RELIABILITY_WITHOUT_ROOT=1"
    );
    println!("NOT TESTED, root is required: {test}");
    false
}

/// Runs a command that must succeed.
pub fn run(command: &str) {
    let words: Vec<&str> = command.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output();
    let output = output.unwrap_or_else(|error| panic!("{command}: {error}"));
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}
