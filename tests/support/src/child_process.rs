//! Runs the test program again as a child process, which can be killed or run in another name space.

use std::{
    io::{BufRead, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
};

const CHILD: &str = "RELIABILITY_CHILD";

/// The task that the parent has passed to this process; `None` in the parent.
pub fn task() -> Option<String> {
    std::env::var(CHILD).ok()
}

/// Sends a line to the parent.
pub fn send(text: impl std::fmt::Display) {
    println!("child: {text}");
}

/// Runs the test alone in a child process, because it needs a resource that a process has only once.
/// Returns `true` in the parent, after the child has passed, and `false` in the child.
///
/// ```ignore
/// if child_process::run_alone("secrecy::logs::logs_hold_no_secret") {
///     return;
/// }
/// ```
pub fn run_alone(test: &str) -> bool {
    if task().is_some() {
        return false;
    }
    passes(command(test).env(CHILD, "alone"));
    true
}

/// A command that runs one test of this program.
pub fn command(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]);
    command
}

/// The same as a child process with a task.
pub fn command_with_task(test: &str, task: &str) -> Command {
    let mut command = command(test);
    command.env(CHILD, task);
    command
}

/// Runs one test with a command. It must pass. Returns its output.
pub fn passes(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    println!("{text}");
    // A name that no test has is no failure to libtest.
    let passed = output.status.success() && text.contains("1 passed");
    assert!(passed, "the test failed in a process: {command:?}");
    text
}

/// A child process that runs one test with a task.
pub struct ChildProcess {
    pub child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl ChildProcess {
    pub fn start(test: &str, task: &str) -> Self {
        Self::start_wrapped(&[], test, task)
    }

    /// `wrapper`: the command that starts the program, such as `unshare`.
    pub fn start_wrapped(wrapper: &[&str], test: &str, task: &str) -> Self {
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

    /// The next line that the child has sent; `None` after its end.
    pub fn receive(&mut self) -> Option<String> {
        let mut lines = self.lines.by_ref().map_while(Result::ok);
        lines.find_map(|line| line.split_once("child: ").map(|(_, text)| text.to_owned()))
    }

    /// Kills the child with SIGKILL; returns the lines that it had sent.
    pub fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::iter::from_fn(|| self.receive()).collect()
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
