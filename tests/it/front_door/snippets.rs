//! The README's code is the examples' code, and these are as short as it says.

use std::{fs, path::Path};

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

#[test]
fn the_examples_are_as_short_as_the_readme_says() {
    for (file, limit) in [("examples/client_bot.rs", 100), ("examples/webhook_minimal.rs", 150)] {
        assert!(read(file).lines().count() < limit, "{file}");
    }
}

/// From the first line to the last one, in both of them.
#[test]
fn the_readmes_guard_is_that_of_the_examples() {
    let guard = |file: &str| {
        let text = read(file);
        let from = text.find("    let is_last").unwrap();
        let end = "map_or(0, |at| at + 1);\n";
        let to = from + text[from..].find(end).unwrap() + end.len();
        text[from..to].to_owned()
    };
    for example in ["examples/client_bot.rs", "examples/webhook_minimal.rs"] {
        assert_eq!(guard("README.md"), guard(example), "{example}");
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
