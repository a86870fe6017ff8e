//! The README's code is the examples' code, and these are as short as it says.

use std::{fs, path::Path};

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

#[test]
fn the_examples_are_as_short_as_the_readme_says() {
    for (file, limit) in [("examples/client_bot.rs", 135), ("examples/webhook_minimal.rs", 200)] {
        assert!(read(file).lines().count() < limit, "{file}");
    }
}

/// The lines of a file from the first one with `from` to the next one with `to`, both included.
fn part(file: &str, from: &str, to: &str) -> Vec<String> {
    let text = read(file);
    let mut lines = text.lines().skip_while(|line| !line.contains(from)).peekable();
    assert!(lines.peek().is_some(), "{file} has no {from}");
    let mut part = Vec::new();
    for line in lines {
        part.push(line.to_owned());
        if line.contains(to) {
            return part;
        }
    }
    panic!("{file} has no {to} after {from}");
}

#[test]
fn the_readmes_guard_is_that_of_the_examples() {
    let guard = |file: &str| part(file, "    let is_last", "map_or(0, |at| at + 1);");
    for example in ["examples/client_bot.rs", "examples/webhook_minimal.rs"] {
        assert_eq!(guard("README.md"), guard(example), "{example}");
    }
}

/// What both examples do: start again, log in, sync, and take one event after the other.
#[test]
fn the_examples_differ_only_in_what_they_do_with_a_message() {
    for (from, to) in [
        ("let refusal = ", "sleep(Duration::from_secs(2))"),
        ("let stores = ", "let client = client.build()"),
        ("let login = Login {", "}"),
        ("let (device, auth)", "for (id, update) in waiting.drain"),
        ("let (name, me) = ", "return Err(\"the key of a message has not come yet\""),
    ] {
        let [bot, minimal] = ["examples/client_bot.rs", "examples/webhook_minimal.rs"]
            .map(|file| part(file, from, to));
        assert_eq!(bot, minimal);
    }
}

/// A variable that is missing ends the bot, which would try again for ever otherwise.
#[test]
fn the_examples_read_the_environment_before_their_loop() {
    for file in ["client_bot", "webhook_minimal", "outbox_bot"] {
        let text = read(&format!("examples/{file}.rs"));
        let (main, rest) =
            text.split_once("async fn main").unwrap().1.split_once("loop {").unwrap();
        assert!(main.contains("\"MATRIX_DEVICE_ID\""), "{file}");
        assert!(!rest.contains("env(\""), "{file} reads a variable late");
    }
}

/// Without these lines a debug build takes seconds to open a store.
#[test]
fn the_readmes_profile_is_that_of_the_workspace() {
    let profile = |file: &str| -> Vec<String> {
        let text = read(file);
        let lines = text.split("[profile.dev.package]\n").nth(1).unwrap().lines();
        lines.take_while(|line| line.contains("opt-level")).map(ToOwned::to_owned).collect()
    };
    let lines = profile("README.md");
    assert!(lines.len() > 3, "{lines:?}");
    assert_eq!(lines, profile("Cargo.toml"));
}
