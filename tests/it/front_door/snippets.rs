//! The README's code is the examples' code, and these are as short as it says.

const README: &str = include_str!("../../../README.md");
const CLIENT_BOT: &str = include_str!("../../../examples/client_bot.rs");
const WEBHOOK_MINIMAL: &str = include_str!("../../../examples/webhook_minimal.rs");
const MANIFEST: &str = include_str!("../../../Cargo.toml");

#[test]
fn the_examples_are_as_short_as_the_readme_says() {
    assert!(CLIENT_BOT.lines().count() < 100, "examples/client_bot.rs");
    assert!(WEBHOOK_MINIMAL.lines().count() < 150, "examples/webhook_minimal.rs");
}

/// From the first line to the last one, in both of them.
#[test]
fn the_readmes_guard_is_that_of_the_examples() {
    let guard = |text: &str| {
        let from = text.find("    let last = last.map(").or(text.find("    let is_last")).unwrap();
        let rest = &text[from..];
        let rest = &rest[rest.find("    let is_last").unwrap()..];
        let end = "map_or(0, |at| at + 1);\n";
        rest[..rest.find(end).unwrap() + end.len()].to_owned()
    };
    assert_eq!(guard(README), guard(CLIENT_BOT));
    assert_eq!(guard(README), guard(WEBHOOK_MINIMAL));
}

/// Without these lines a debug build takes seconds to open a store.
#[test]
fn the_readmes_profile_is_that_of_the_workspace() {
    let profile = |text: &str| {
        let rest = text.split("[profile.dev.package]\n").nth(1).unwrap();
        rest.lines().take_while(|line| line.contains("opt-level")).map(ToOwned::to_owned).collect()
    };
    let lines: Vec<String> = profile(README);
    assert!(lines.len() > 3, "{lines:?}");
    assert_eq!(lines, profile(MANIFEST));
}
