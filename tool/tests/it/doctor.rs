//! `doctor`.

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::testing::PostgresServer;
use ruma::user_id;
use serde_json::json;
use test_support::{
    machine::{Relay, open_machine},
    pooler::{self, Pooler, Release},
};

use crate::{
    homeserver::Homeserver,
    support::{Place, Ran},
};

/// The status of each check, by its name.
pub fn status(ran: &Ran, name: &str) -> String {
    let json = ran.json();
    let checks = json["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == name);
    let check = check.unwrap_or_else(|| panic!("no check {name}: {json:#}"));
    check["status"].as_str().unwrap().to_owned()
}

pub const COMMAND: [&str; 4] = ["doctor", "--account", "bot", "--json"];

/// A server that forgets nothing.
pub fn durable() -> (PostgresServer, Place) {
    let server = PostgresServer::builder().durable(true).start().unwrap();
    let place = Place { database: server.create_database().unwrap() };
    (server, place)
}

#[tokio::test]
async fn a_bot_in_order_has_no_problem_and_is_not_disturbed() {
    let (_server, place) = durable();
    let (bot, _) = place.filled("bot").await;
    let commits = bot.commit_count().await.unwrap();
    let ran = place.run_unlocked(&COMMAND).await.expect(0);
    let names = [
        "connection",
        "TLS",
        "server version",
        "durability",
        "writable",
        "clock",
        "pooler",
        "server's log",
        "schema",
        "rights",
        "tables",
        "distribution",
        "dead rows",
        "accounts behind one role",
        "encryption at rest",
        "owner",
        "rolled back",
        "rows decode",
    ];
    for name in names {
        assert_eq!(status(&ran, name), "ok", "{name}");
    }
    assert_eq!(bot.commit_count().await.unwrap(), commits);
    bot.set_custom_value("key", b"value".to_vec()).await.unwrap();
    let text = place.run_unlocked(&COMMAND[..3]).await.expect(0).out;
    assert!(text.contains("18 in order, 0 warnings, 0 problems") && !text.contains('\u{1b}'));
}

#[tokio::test]
async fn what_is_missing_is_not_taken_for_green() {
    let (_server, place) = durable();
    let nothing = place.run(&COMMAND).await.expect(3);
    assert_eq!(status(&nothing, "schema"), "problem");
    drop(place.open("bot").await);
    let locked = place.run(&COMMAND).await.expect(0);
    assert_eq!(status(&locked, "rows decode"), "not_checked");
    let unnamed = place.run(&["doctor", "--json"]).await.expect(0);
    assert_eq!(status(&unnamed, "account"), "not_checked");
    assert!(unnamed.out.contains("no account is named"), "{}", unnamed.out);
    let misspelt = place.run(&["doctor", "--account", "bto", "--json"]).await.expect(3);
    assert_eq!(status(&misspelt, "account"), "problem");
    let mut away = place.command(&COMMAND);
    away.env("DATABASE_URL", "postgres://bot@127.0.0.1:1/bots");
    assert_eq!(status(&place.run_command(away).await.expect(3), "connection"), "problem");
}

#[tokio::test]
async fn each_fault_turns_its_line_red() {
    let (_server, place) = durable();
    let (bot, _) = place.filled("bot").await;
    let (client, name) = (place.client().await, place.database.name());
    let faults = [
        ("UPDATE matrix_sdk.devices SET data = '\\x00'", "rows decode", "problem"),
        ("ALTER TABLE matrix_sdk.olm_sessions ENABLE ROW LEVEL SECURITY", "tables", "problem"),
        (&*format!("ALTER DATABASE {name} SET synchronous_commit = off"), "durability", "problem"),
        (&*format!("ALTER DATABASE {name} SET log_statement = 'all'"), "server's log", "warning"),
        (
            "UPDATE matrix_sdk.account_owners SET since = now() + interval '1 day'",
            "rolled back",
            "warning",
        ),
    ];
    for (sql, check, expected) in faults {
        client.batch_execute(sql).await.unwrap();
        let ran = place.run_unlocked(&COMMAND).await;
        assert_eq!(status(&ran, check), expected, "{sql}");
    }
    let checkpoint = [&COMMAND[..], &["--checkpoint", "1000000"]].concat();
    assert_eq!(status(&place.run_unlocked(&checkpoint).await, "rolled back"), "problem");
    bot.close().await.unwrap();
    assert_eq!(status(&place.run_unlocked(&COMMAND).await, "owner"), "warning");
    drop(place.open("other").await);
    assert_eq!(status(&place.run_unlocked(&COMMAND).await, "accounts behind one role"), "warning");
}

/// The role that docs/operations.md makes for bots has rights on tables, and on nothing else.
#[tokio::test]
async fn the_documented_role_of_a_bot_checks_as_much() {
    let (_server, place) = durable();
    let (client, role) = (place.client().await, format!("bot_{}", fastrand::u32(..)));
    let sql = format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'x'; CREATE SCHEMA matrix_sdk;
         GRANT USAGE ON SCHEMA matrix_sdk TO {role};
         ALTER DEFAULT PRIVILEGES IN SCHEMA matrix_sdk
             GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {role}"
    );
    client.batch_execute(&sql).await.unwrap();
    let (_bot, _) = place.filled("bot").await;
    let (_, host) = place.url().split_once('@').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let doctor = |more: &[&str]| {
        let mut command = place.command(&[&COMMAND[..], more].concat());
        command.env("DATABASE_URL", format!("postgres://{role}:x@{host}"));
        place.run_command(command)
    };
    let ran = doctor(&[]).await.expect(0);
    for name in ["accounts behind one role", "encryption at rest", "owner", "rolled back"] {
        assert_eq!(status(&ran, name), "ok", "{name}");
    }
    let ran = doctor(&["--checkpoint", "1000000"]).await.expect(3);
    assert_eq!(status(&ran, "rolled back"), "problem");
}

/// A count that was given is a question: without an answer the exit code is not 0.
#[tokio::test]
async fn a_checkpoint_that_cannot_be_compared_is_a_problem() {
    let (_server, place) = durable();
    drop(place.open("bot").await);
    let missing = ["doctor", "--account", "bto", "--json", "--checkpoint", "1"];
    assert_eq!(status(&place.run(&missing).await.expect(3), "rolled back"), "problem");
}

/// Without its secret, too.
#[tokio::test]
async fn whether_the_account_is_encrypted_is_read_from_its_row() {
    let (_server, place) = durable();
    drop(place.open("bot").await);
    let sql = format!("ALTER DATABASE {} SET log_statement = 'all'", place.database.name());
    place.client().await.batch_execute(&sql).await.unwrap();
    assert_eq!(status(&place.run(&COMMAND).await.expect(0), "server's log"), "warning");
}

/// Behind pgbouncer in transaction mode, real ones: one that loses named statements, and one that does not.
#[tokio::test]
async fn a_pooler_in_between_is_seen_and_judged() {
    if !pooler::is_wanted("doctor behind PgBouncer") {
        return;
    }
    for (release, named) in [(Release::Old, "problem"), (Release::New, "ok")] {
        let (server, place) = durable();
        place.filled("bot").await.0.close().await.unwrap();
        let pooler = Pooler::start(release, &server);
        let run = |args: Vec<&'static str>| {
            let mut command = place.command(&args);
            command.env("DATABASE_URL", pooler.url(&place.url(), &server));
            command.env("STORE_PASSPHRASE", crate::support::PASSPHRASE);
            place.run_command(command)
        };
        let ran = run(COMMAND.to_vec()).await;
        assert_eq!(status(&ran, "pooler"), named, "{release:?}: {}", ran.out);
        assert!(ran.out.contains("in transaction mode"), "{release:?}: {}", ran.out);
        assert_eq!(status(&ran, "rows decode"), "ok");
        let ran = run([&COMMAND[..], &["--unnamed-statements"]].concat()).await;
        assert_eq!(status(&ran, "pooler"), "ok", "{release:?}: {}", ran.out);
        run(vec!["verify", "--account", "bot"]).await.expect(0);
    }
}

async fn ask(homeserver: &Homeserver, place: &Place, token: &str) -> Ran {
    ask_for(&COMMAND, &homeserver.url, place, token).await
}

async fn ask_for(args: &[&str], homeserver: &str, place: &Place, token: &str) -> Ran {
    let args = [args, &["--homeserver", homeserver]].concat();
    let mut command = place.command(&args);
    command.env("STORE_PASSPHRASE", crate::support::PASSPHRASE);
    command.env("MATRIX_ACCESS_TOKEN", token);
    place.run_command(command).await
}

#[tokio::test]
async fn the_homeservers_view_of_the_device_is_compared_with_ours() {
    let (_server, place) = durable();
    let user = user_id!("@bot:example.org");
    let store = place.open("bot").await;
    let machine = open_machine(user, store.clone()).await;
    Relay::default().serve(&machine).await;
    let keys = store.load_account().await.unwrap().unwrap().device_keys();
    let homeserver = Homeserver::start();
    homeserver.set("whoami", json!({ "user_id": user, "device_id": "DEVICE" }));
    homeserver.set("keys/query", json!({ "device_keys": { user: { "DEVICE": keys } } }));
    homeserver.set("keys/upload", json!({ "one_time_key_counts": { "signed_curve25519": 50 } }));

    let ran = ask(&homeserver, &place, "secret-token").await.expect(0);
    assert_eq!(status(&ran, "device keys"), "ok");
    assert_eq!(status(&ran, "device signed"), "warning");
    assert_eq!(status(&ran, "one-time keys"), "ok");
    assert_eq!(status(&ran, "key backup"), "ok");

    // Another machine has uploaded its keys under our id: the commonest complaint.
    let other = place.open("other").await;
    open_machine(user, other.clone()).await;
    let other = other.load_account().await.unwrap().unwrap().device_keys();
    homeserver.set("keys/query", json!({ "device_keys": { user: { "DEVICE": other } } }));
    homeserver.set("room_keys/version", json!({ "version": "7", "auth_data": {} }));
    let ran = ask(&homeserver, &place, "secret-token").await.expect(3);
    assert_eq!(status(&ran, "device keys"), "problem");
    assert!(ran.out.contains("reset-device"), "{}", ran.out);
    assert_eq!(status(&ran, "key backup"), "warning");
    homeserver.set("keys/query", json!({ "device_keys": {} }));
    let ran = ask(&homeserver, &place, "secret-token").await.expect(3);
    assert_eq!(status(&ran, "device keys"), "problem");

    let ran = ask(&homeserver, &place, "wrong").await.expect(3);
    assert!(ran.json()["homeserver_error"].as_str().unwrap().contains("refused the token"));
    assert!(!ran.out.contains("wrong\""), "{}", ran.out);
    let text = ask_for(&COMMAND[..3], &homeserver.url, &place, "wrong").await.expect(3).out;
    assert!(text.contains("the token is wrong, or its device was logged out"), "{text}");
    assert!(text.contains(", 1 problem, "), "{text}");
    let text = ask_for(&COMMAND[..3], "http://127.0.0.1:1", &place, "token").await.expect(3).out;
    assert!(text.contains("PROBLEM  homeserver") && text.contains(", 1 problem, "), "{text}");
    homeserver.set("whoami", json!({ "user_id": user, "device_id": "OTHER" }));
    homeserver.set("keys/query", json!({ "device_keys": { user: { "DEVICE": keys } } }));
    let ran = ask(&homeserver, &place, "secret-token").await.expect(0);
    assert_eq!(status(&ran, "device keys"), "ok");
    assert_eq!(status(&ran, "one-time keys"), "not_checked");
    // The environment may be the bot's, which names the homeserver for itself.
    let mut command = place.command(&COMMAND[..3]);
    command.env("MATRIX_HOMESERVER", &homeserver.url);
    let ran = place.run_command(command).await.expect(0);
    assert!(ran.out.contains("the homeserver was not asked"), "{}", ran.out);
    let named = [&COMMAND[..3], &["--homeserver", &homeserver.url]].concat();
    assert!(place.run(&named).await.expect(1).err.contains("needs a token"));
    homeserver.set("whoami", json!({ "user_id": "@other:example.org", "device_id": "DEVICE" }));
    let ran = ask(&homeserver, &place, "secret-token").await.expect(3);
    assert!(ran.json()["homeserver_error"].as_str().unwrap().contains("@other:example.org"));
}

#[tokio::test]
async fn a_homeserver_that_is_busy_may_answer_later() {
    let (place, homeserver) = (Place::new(), Homeserver::start());
    let folder =
        crate::import_sqlite::files::filled(crate::import_sqlite::files::Mode::Plain).await.0;
    let import = |token: &str| {
        let path = folder.path().to_str().unwrap();
        let args = ["import", "sqlite", path, "--account", "bot", "--homeserver", &homeserver.url];
        let mut command = place.command(&args);
        command.env("MATRIX_ACCESS_TOKEN", token);
        place.run_command(command)
    };
    for status in ["429 Too Many Requests", "502 Bad Gateway", "503 Service Unavailable"] {
        homeserver.set_status("whoami", status);
        let busy = import("secret-token").await.expect(5);
        assert!(busy.err.contains(status), "{}", busy.err);
    }
    homeserver.set_status("whoami", "500 Internal Server Error");
    import("secret-token").await.expect(1);
    let malformed = import("secret-token\n").await.expect(1);
    assert!(malformed.err.contains("the token, which is one line"), "{}", malformed.err);
    assert!(!malformed.err.contains("secret"), "{}", malformed.err);
}
