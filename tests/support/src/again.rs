//! This program once more, as a child that is killed or lives elsewhere.

use std::{
    io::{BufRead, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
};

const CHILD: &str = "RELIABILITY_CHILD";

/// What the parent asks of the child, if this is one.
pub fn task() -> Option<String> {
    std::env::var(CHILD).ok()
}

/// Says something to the parent.
pub fn say(text: impl std::fmt::Display) {
    println!("child: {text}");
}

/// Runs the test once more, alone in a process of its own, for what a process has only one of. Returns
/// whether it has: `false` in that process.
///
/// ```ignore
/// if again::has_run_alone("secrecy::logs::logs_hold_no_secret") {
///     return;
/// }
/// ```
pub fn has_run_alone(test: &str) -> bool {
    if task().is_some() {
        return false;
    }
    passes(test, &[(CHILD, "alone")]);
    true
}

/// Runs one test in a process with these variables. It must pass.
pub fn passes(test: &str, variables: &[(&str, &str)]) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).envs(variables.iter().copied());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    println!("{text}");
    // A name that no test has is no failure to libtest.
    assert!(output.status.success() && text.contains("1 passed"), "{test} failed in a process");
}

/// A child that runs one test, with its task; `wrapper` is the command that starts it, if any.
pub struct Again {
    pub child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Again {
    pub fn start(test: &str, task: &str) -> Self {
        Self::within(&[], test, task)
    }

    pub fn within(wrapper: &[&str], test: &str, task: &str) -> Self {
        let program = std::env::current_exe().unwrap();
        let program = program.to_str().unwrap();
        let words: Vec<&str> =
            wrapper.iter().copied().chain([program, "--exact", test, "--nocapture"]).collect();
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .env(CHILD, task)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// What the child says next; `None` when it has ended.
    pub fn hear(&mut self) -> Option<String> {
        let mut lines = self.lines.by_ref().map_while(Result::ok);
        lines.find_map(|line| line.split_once("child: ").map(|(_, said)| said.to_owned()))
    }

    /// `kill -9`; returns what it had said before.
    pub fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::iter::from_fn(|| self.hear()).collect()
    }
}

impl Drop for Again {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
