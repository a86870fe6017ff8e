//! Flags, secrets, exit codes.

use crate::support::{PASSPHRASE, Place, TextFile, binary, run};

const COMMANDS: [&str; 16] = [
    "doctor",
    "self-test",
    "stats",
    "verify",
    "migrate",
    "rekey",
    "reset-device",
    "delete-account",
    "import",
    "export-keys",
    "import-keys",
    "backup",
    "restore",
    "prune",
    "completions",
    "man",
];

#[test]
fn help_names_every_exit_code_and_no_command_is_hidden() {
    let help = run(binary().arg("--help")).expect(0).out;
    for code in ["0  ", "1  ", "2  ", "3  ", "4  ", "5  ", "130"] {
        assert!(help.contains(&format!("\n  {code}")), "{code}: {help}");
    }
    for command in COMMANDS {
        assert!(help.contains(&format!("\n  {command} ")), "{command}: {help}");
        run(binary().args([command, "--help"])).expect(0);
    }
    run(binary().arg("no-such-command")).expect(2);
    let wrong = run(binary().args(["stats", "--json", "--no-such-flag"])).expect(2);
    assert_eq!(wrong.json()["exit_code"], 2);
    assert!(wrong.json()["error"].as_str().unwrap().contains("--no-such-flag"), "{wrong:?}");
    run(binary().args(["stats", "--json", "--help"])).expect(0);
}

/// A script must not take it for success.
#[test]
fn a_result_that_cannot_be_printed_is_a_failure() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = binary().arg("man").stdout(full).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(error.starts_with("error: the result cannot be printed: No space left"), "{error}");
}

#[test]
fn completions_and_the_manual_page_are_printed() {
    let script = run(binary().args(["completions", "bash"])).expect(0).out;
    assert!(script.contains("complete -F ") && script.contains("delete-account"), "{script}");
    let page = run(binary().arg("man")).expect(0).out;
    assert!(page.starts_with(".ie") && page.contains("Exit codes"), "{page}");
    let page = run(binary().args(["man", "stats"])).expect(0).out;
    assert!(page.contains("standby"), "{page}");
}

#[test]
fn a_password_on_the_command_line_is_refused() {
    for url in [
        "postgres://bot:hunter2@localhost/bots",
        "postgres://bot@localhost/bots?password=hunter2",
        "postgres://bot@localhost/bots?pass%77ord=hunter2",
        "host=localhost password=hunter2",
        "host=localhost password = hunter2",
        "host=localhost\tpassword=hunter2",
    ] {
        let refused = run(binary().args(["stats", "--url", url])).expect(1);
        assert!(refused.err.contains("DATABASE_URL"), "{}", refused.err);
        assert!(!refused.err.contains("hunter2"), "{}", refused.err);
    }
}

#[test]
fn a_server_that_is_away_has_an_exit_code_of_its_own() {
    let url = "postgres://bot@127.0.0.1:1/bots";
    let away = run(binary().args(["stats", "--url", url])).expect(5);
    assert!(away.err.starts_with("error: cannot connect to PostgreSQL"), "{}", away.err);
    let away = run(binary().args(["stats", "--json", "--url", url])).expect(5);
    assert_eq!(away.json()["exit_code"], 5);
    assert!(away.err.is_empty(), "{}", away.err);
}

/// What no later run finds either.
#[tokio::test]
async fn a_name_that_is_wrong_is_named_and_is_a_failure() {
    let place = Place::new();
    drop(place.open("bot").await);
    for command in ["stats", "verify", "prune"] {
        let mut args = vec![command, "--schema", "nope"];
        if command != "stats" {
            args.extend(["--account", "bot", "--yes"]);
        }
        if command == "prune" {
            args.extend(["--message-hashes", "1h"]);
        }
        let refused = place.run(&args).await.expect(1).err;
        let text = "error: the schema \"nope\" does not exist, or has no tables yet: check its name; \
                    matrix-postgres migrate makes it\n";
        assert_eq!(refused, text, "{command}");
    }
    let database = place.database.name();
    let url = place.url().replace(&format!("/{database}"), "/nowhere");
    let refused = run(binary().args(["stats"]).env("DATABASE_URL", url)).expect(1);
    assert!(refused.err.contains("database \"nowhere\" does not exist"), "{}", refused.err);
}

/// A person at a terminal has options and variables, and no functions.
#[tokio::test]
async fn errors_speak_of_what_the_tool_has() {
    let place = Place::new();
    drop(place.open("bot").await);
    let verify = ["verify", "--account", "bot"];
    let run_with = |variable: &str, value: &str| {
        let mut command = place.command(&verify);
        command.env(variable, value);
        place.run_command(command)
    };
    for (variable, value, expected) in [
        ("STORE_KEY", "0".repeat(64), "give STORE_PASSPHRASE"),
        ("STORE_PASSPHRASE", String::new(), "STORE_PASSPHRASE"),
    ] {
        let refused = run_with(variable, &value).await.expect(1).err;
        assert!(refused.contains(expected) && !refused.contains("()"), "{refused}");
        assert!(!refused.contains("None"), "{refused}");
    }
}

#[tokio::test]
async fn the_connection_string_comes_from_a_file_too() {
    let place = Place::new();
    drop(place.open("bot").await);
    let file = TextFile::new(&format!("{}\n", place.url()));
    let mut command = binary();
    command.args(["stats", "--url-file", file.path()]);
    assert!(run(&mut command).expect(0).out.contains("account bot (encrypted"));
    let empty = TextFile::new("");
    let refused = run(binary().args(["stats", "--url-file", empty.path()])).expect(1);
    assert!(refused.err.contains("is empty"), "{}", refused.err);
}

/// Colours, progress bars and questions are for people.
#[tokio::test]
async fn without_a_terminal_nothing_is_drawn() {
    let place = Place::new();
    drop(place.filled("bot").await);
    let shown = place.run_unlocked(&["stats"]).await.expect(0);
    assert!(shown.err.is_empty() && !shown.out.contains('\u{1b}'), "{shown:?}");
    assert!(!shown.out.contains(PASSPHRASE));
}

/// What could be known before the database is asked, or half the work done.
#[test]
fn what_is_malformed_is_refused_at_once() {
    let url = "postgres://bot@127.0.0.1:1/bots";
    for homeserver in ["example.org", "not a URL", "file:///etc"] {
        let args = ["doctor", "--account", "bot", "--url", url, "--homeserver", homeserver];
        let refused = run(binary().args(args).env("MATRIX_ACCESS_TOKEN", "token")).expect(1);
        assert!(refused.err.contains("is no base URL"), "{}", refused.err);
    }
    run(binary().args(["restore", "bot.age", "--check", "--same-device"])).expect(2);
    // More rounds than import-keys and others would read.
    let export = ["export-keys", "--account", "bot", "--url", url, "keys.txt", "--rounds"];
    run(binary().args(export).arg("10000001")).expect(2);
    run(binary().args(export).arg("0")).expect(2);
}
