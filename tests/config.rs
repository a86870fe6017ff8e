//! Configuration: what is refused, what is never shown, and where passwords come from.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use assert_matches::assert_matches;
use matrix_sdk_postgres::{OpenStoreError, PostgresStoreConfig};

const SECRET: &str = "hunter2-geheim";

/// What building a pool complains about.
fn complaint(config: &PostgresStoreConfig) -> String {
    match config.build_pool() {
        Err(OpenStoreError::InvalidConfig(text)) => text,
        other => panic!("{:?}", other.map(|_| "a pool")),
    }
}

fn config() -> PostgresStoreConfig {
    PostgresStoreConfig::new("postgres://bot@db.example/bots", "my-bot")
}

#[test]
fn mistakes_surface_when_the_pool_is_built() {
    for (config, expected) in [
        (PostgresStoreConfig::new("", "my-bot"), "the connection string is empty"),
        (PostgresStoreConfig::new("host=db", ""), "the account's name is empty"),
        (PostgresStoreConfig::new("host=db", "a\0b"), "the account's name"),
        (config().passphrase(Some("")), "the passphrase is empty"),
        (config().pool_max_size(0), "pool_max_size is 0"),
        (config().pool_timeout(Duration::ZERO), "a timeout is zero"),
    ] {
        let text = complaint(&config);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn the_later_of_passphrase_and_key_counts() {
    let key = [7; 32];
    let both = config().passphrase(Some(SECRET)).key(Some(&key));
    assert!(format!("{both:?}").contains("Key(…)"));
    let both = config().key(Some(&key)).passphrase(Some(SECRET));
    assert!(format!("{both:?}").contains("Passphrase(…)"));
    assert!(format!("{:?}", both.passphrase(None)).contains("secret: None"));
}

#[test]
fn debug_shows_where_and_who_and_nothing_secret() {
    let config = PostgresStoreConfig::new(
        format!("postgres://bot:{SECRET}@db.example:6432/bots?sslmode=verify-full"),
        "my-bot",
    )
    .passphrase(Some(SECRET))
    .password_callback(|| async { Ok(SECRET.to_owned()) });
    let shown = format!("{config:?}");
    for expected in ["db.example", "6432", "bots", "bot", "my-bot", "matrix_sdk", "VerifyFull"] {
        assert!(shown.contains(expected), "{shown}");
    }
    let pool = config.build_pool().unwrap();
    for shown in [shown, format!("{pool:?}"), format!("{:?}", pool.manager())] {
        assert!(!shown.contains("hunter2") && !shown.contains("geheim"), "{shown}");
    }
}

/// Every damage by one character: an error may come, the password may not.
#[test]
fn a_mangled_connection_string_never_shows_its_password() {
    let originals = [
        format!("postgres://bot:{SECRET}@db.example:6432/bots?sslmode=disable&user=bot"),
        format!("postgres://db.example/bots?user=bot&password={SECRET}&sslmode=disable"),
        format!("host=db.example user=bot password={SECRET} dbname=bots sslmode=disable"),
        format!("host=db.example user=bot password='{SECRET}' dbname=bots sslmode=disable"),
    ];
    // Two thirds of it, so that a cut does not hide it.
    let pieces = ["hunter", "geheim", "ter2-geh"];
    let mut refused = 0;
    for original in originals {
        for at in 0..=original.len() {
            for inserted in ["@", "/", ":", "?", "#", "%", "[", "]", "=", " ", ",", "'", "\\", "&"]
            {
                let mut mangled = original.clone();
                mangled.insert_str(at, inserted);
                let config = PostgresStoreConfig::new(&mangled, "my-bot");
                let mut shown = format!("{config:?}");
                if let Err(error) = config.build_pool() {
                    assert_matches!(error, OpenStoreError::InvalidConfig(_));
                    shown += &error.to_string();
                    refused += 1;
                }
                for piece in pieces {
                    assert!(!shown.contains(piece), "{mangled} shows {piece}: {shown}");
                }
            }
        }
    }
    assert!(refused > 500, "{refused}");
}
