//! On a terminal: what is asked, shown and coloured.

use std::{
    io::{Read, Write},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use matrix_sdk_crypto::store::CryptoStore;

use crate::{
    doctor::durable,
    support::{PASSPHRASE, Place},
};

/// A command on a terminal of its own, where Ctrl-C is a character.
pub struct Terminal {
    child: Child,
    out: ChildStdout,
    shown: Vec<u8>,
}

impl Terminal {
    pub fn start(command: &Command) -> Self {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words: Vec<_> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--command", &words.join(" "), "/dev/null"]);
        script.env_clear().env("TERM", "xterm");
        for (name, value) in command.get_envs() {
            script.env(name, value.unwrap());
        }
        let script = script.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = script.spawn().expect("script of util-linux");
        let out = child.stdout.take().unwrap();
        Self { child, out, shown: Vec::new() }
    }

    /// Waits for a question, and answers it.
    pub fn answer(&mut self, question: &str, answer: &str) {
        while !self.shown.ends_with(question.as_bytes()) {
            let mut byte = [0];
            let read = self.out.read_exact(&mut byte);
            assert!(read.is_ok(), "{question}: {}", String::from_utf8_lossy(&self.shown));
            self.shown.extend(byte);
        }
        // The terminal stops to show what is typed a moment after the question is shown.
        std::thread::sleep(Duration::from_millis(300));
        self.child.stdin.as_mut().unwrap().write_all(answer.as_bytes()).unwrap();
    }

    /// The exit code, and all that was shown.
    pub fn end(mut self) -> (Option<i32>, String) {
        self.out.read_to_end(&mut self.shown).unwrap();
        (self.child.wait().unwrap().code(), String::from_utf8(self.shown).unwrap())
    }
}

async fn shown(command: Command) -> (Option<i32>, String) {
    tokio::task::spawn_blocking(move || Terminal::start(&command).end()).await.unwrap()
}

const NEW: &str = "a brand new secret";
const REKEY: [&str; 3] = ["rekey", "--account", "bot"];
const ASKED_FIRST: &str = "New passphrase: ";
const ASKED_AGAIN: &str = "New passphrase, again: ";
const QUESTION: &str = "Type yes to go on: ";

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_typed_is_not_shown() {
    let place = Place::new();
    place.filled("bot").await.0.close().await.unwrap();
    let command = place.command(&REKEY);
    let (code, shown) = tokio::task::spawn_blocking(move || {
        let mut terminal = Terminal::start(&command);
        terminal.answer(ASKED_FIRST, &format!("{NEW}\n"));
        terminal.answer(ASKED_AGAIN, &format!("{NEW}\n"));
        terminal.answer(QUESTION, "yes\n");
        let account = "Passphrase of the account \"bot\": ";
        terminal.answer(account, &format!("{PASSPHRASE}\n"));
        terminal.end()
    })
    .await
    .unwrap();
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("has its new secret"), "{shown}");
    assert!(!shown.contains(NEW) && !shown.contains(PASSPHRASE), "{shown}");
    let config = place.config("bot").passphrase(Some(NEW));
    let opened = matrix_sdk_postgres::PostgresCryptoStore::open_with_config(&config).await;
    opened.unwrap().close().await.unwrap();
}

#[test]
fn what_is_not_confirmed_is_not_done() {
    let mut command = crate::support::binary();
    command.args(REKEY).env("DATABASE_URL", "postgres://localhost/bots");
    let mut terminal = Terminal::start(&command);
    terminal.answer(ASKED_FIRST, "one\n");
    terminal.answer(ASKED_AGAIN, "another\n");
    let (code, shown) = terminal.end();
    assert_eq!(code, Some(4), "{shown}");
    assert!(shown.contains("the two are not the same; nothing was changed"), "{shown}");

    command.env("NEW_STORE_PASSPHRASE", NEW);
    for answer in ["no\n", "y\n", "\n", "\x04"] {
        let mut terminal = Terminal::start(&command);
        terminal.answer(QUESTION, answer);
        let (code, shown) = terminal.end();
        assert_eq!(code, Some(4), "{answer:?}: {shown}");
        assert!(shown.contains("refused: nothing was changed"), "{answer:?}: {shown}");
    }
}

#[test]
fn ctrl_c_at_a_question_ends_the_command() {
    let mut command = crate::support::binary();
    command.args(REKEY).env("DATABASE_URL", "postgres://localhost/bots");
    for question in [ASKED_FIRST, QUESTION] {
        let mut terminal = Terminal::start(&command);
        terminal.answer(question, "\x03");
        let (code, shown) = terminal.end();
        assert_eq!(code, Some(130), "{question}: {shown}");
        assert!(shown.contains("error: interrupted"), "{question}: {shown}");
        command.env("NEW_STORE_PASSPHRASE", NEW);
    }
}

/// Of colours: green, and red.
const COLOURS: [&str; 2] = ["\u{1b}[32m", "\u{1b}[31m"];

#[tokio::test(flavor = "multi_thread")]
async fn colours_are_for_terminals_that_want_them() {
    let (_server, place) = durable();
    let doctor = || place.command(&["doctor", "--account", "bot"]);
    let (code, coloured) = shown(doctor()).await;
    assert_eq!(code, Some(3), "{coloured}");
    assert!(COLOURS.iter().all(|colour| coloured.contains(colour)), "{coloured}");
    let self_test = |args: &[&str]| shown(place.command(&[&["self-test"][..], args].concat()));
    let (_, failed) = self_test(&[]).await;
    assert!(failed.contains("\u{1b}[31mFAILED\u{1b}[0m  open"), "{failed}");
    let (_, passed) = self_test(&["--migrate"]).await;
    assert!(passed.contains("\u{1b}[32mok    \u{1b}[0m  open"), "{passed}");
    let without = |name: &'static str, value: &'static str| {
        let mut command = doctor();
        command.env(name, value);
        command
    };
    let mut json = doctor();
    json.arg("--json");
    for command in [without("NO_COLOR", "1"), without("TERM", "dumb"), json] {
        let (_, plain) = shown(command).await;
        assert!(!COLOURS.iter().any(|colour| plain.contains(colour)), "{plain}");
    }
    // An empty value is as good as none.
    let (_, coloured) = shown(without("NO_COLOR", "")).await;
    assert!(coloured.contains(COLOURS[0]), "{coloured}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_long_has_a_progress_bar_on_a_terminal() {
    let place = Place::new();
    place.filled("bot").await.0.close().await.unwrap();
    place.slow_down_a_table().await;
    let commands: [(&[&str], &str); 3] = [
        (&["stats"], "counting"),
        (&["verify", "--account", "bot"], "verifying"),
        (&["prune", "--account", "bot", "--withheld", "0s", "--dry-run"], "counting"),
    ];
    for (args, bar) in commands {
        let mut command = place.command(args);
        command.env("STORE_PASSPHRASE", PASSPHRASE);
        let (code, with) = shown(command).await;
        assert_eq!(code, Some(0), "{with}");
        assert!(with.contains(bar), "{args:?}: {with}");
        // It is wiped when it is done: what follows stands on its line.
        assert!(with.contains("\u{1b}[2K"), "{args:?}: {with}");
        for flag in ["--no-progress", "--json"] {
            let mut command = place.command(args);
            command.env("STORE_PASSPHRASE", PASSPHRASE).arg(flag);
            let (code, without) = shown(command).await;
            assert_eq!(code, Some(0), "{without}");
            let is_plain = !without.contains(bar) && !without.contains('\u{1b}');
            assert!(is_plain, "{args:?} {flag}: {without}");
        }
    }
}
