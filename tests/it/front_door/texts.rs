//! The first errors that a new user sees name the setting, which parameter, which file.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt, time::Duration};

use matrix_sdk_crypto::CryptoStoreError;
use matrix_sdk_postgres::{
    Error, OpenStoreError, OwnershipSettings, PoolSettings, PostgresCryptoStore,
    PostgresStoreConfig, Timeouts, testing::PostgresServer,
};

async fn error(config: &PostgresStoreConfig) -> OpenStoreError {
    PostgresCryptoStore::open_with_config(config).await.map(|_| ()).unwrap_err()
}

/// The text of the error that a connection string leads to.
async fn text(url: &str) -> String {
    error(&PostgresStoreConfig::new(url, "bot")).await.to_string()
}

/// A `main` prints the error that it returns with `Debug`.
#[test]
fn what_main_prints_of_an_error_is_its_text() {
    let wrong = OpenStoreError::WrongPassphrase { account: "alerts-bot".to_owned() };
    let text = "wrong passphrase for account \"alerts-bot\"";
    assert_eq!(format!("{wrong:?}"), text);
    let reopening = Error::Reopen(Box::new(wrong));
    assert_eq!(format!("{reopening:?}"), text);
    let sdk = format!("{:?}", CryptoStoreError::from(reopening));
    assert!(sdk.contains(text), "{sdk}");
}

#[tokio::test]
async fn a_time_that_is_zero_is_named() {
    let config = PostgresStoreConfig::new("postgres://localhost/bots", "bot");
    let zero = Duration::ZERO;
    let pool = |pool| config.clone().pool(pool);
    let timeouts = |timeouts| config.clone().timeouts(timeouts);
    let d = Timeouts::default;
    for (name, config) in [
        (
            "pool.connect_timeout",
            pool(PoolSettings { connect_timeout: Some(zero), ..Default::default() }),
        ),
        ("pool.wait_timeout", pool(PoolSettings { wait_timeout: zero, ..Default::default() })),
        ("timeouts.statement", timeouts(Timeouts { statement: zero, ..d() })),
        ("timeouts.atomically", timeouts(Timeouts { atomically: zero, ..d() })),
        ("timeouts.transaction_idle", timeouts(Timeouts { transaction_idle: zero, ..d() })),
        ("timeouts.retry", timeouts(Timeouts { retry: zero, ..d() })),
        (
            "heartbeat_interval",
            config
                .clone()
                .access(OwnershipSettings { heartbeat_interval: zero, ..Default::default() }),
        ),
    ] {
        let text = error(&config).await.to_string();
        assert!(text.contains(&format!("{name} is 0")), "{text}");
    }
}

#[tokio::test]
async fn an_unknown_parameter_is_named_where_it_cannot_be_a_password() {
    for (url, expected) in [
        ("postgres://bot@db/bots?sslmod=require", "\"sslmod\" (did you mean sslmode?)"),
        ("postgres://bot:secret@db/bots?foo=1", "\"foo\" (number 1 after the '?')"),
        ("host=db foo=1", "\"foo\" (pair 2)"),
    ] {
        let text = text(url).await;
        assert!(text.contains(expected), "{url}: {text}");
    }
    for url in ["host=db password=top secret=1", "postgres://db?password=top&secret=1"] {
        let text = text(url).await;
        assert!(text.contains("an unknown parameter (") && !text.contains("secret"), "{text}");
    }
}

/// The configured limit is reported, not what happened to be left of it.
#[tokio::test]
async fn a_server_that_does_not_answer_is_reported_with_the_configured_limit() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let limit =
        PoolSettings { connect_timeout: Some(Duration::from_millis(300)), ..Default::default() };
    for (host, expected) in [
        ("127.0.0.1", "did not respond within the connect timeout, 300ms"),
        ("127.0.0.1,127.0.0.1", "its part of the connect timeout, 300ms for 2 addresses"),
    ] {
        let url = format!("host={host} port={port} user=bot sslmode=disable");
        let config = PostgresStoreConfig::new(url, "bot").pool(limit);
        let text = error(&config).await.to_string();
        assert!(text.contains(expected), "{text}");
    }
}

/// This test subscribes to no log.
#[tokio::test]
async fn a_password_file_that_is_not_used_is_named_with_the_reason() {
    let server = PostgresServer::start().unwrap();
    let directory = tempfile(&server);
    let url = |file: &str| {
        let (port, file) = (server.port(), directory.join(file));
        format!(
            "host=127.0.0.1 port={port} user=postgres dbname=postgres passfile={}",
            file.display()
        )
    };
    let write = |name: &str, text: &str, mode: u32| {
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    write("open", "*:*:*:*:secret\n", 0o644);
    write("other", "elsewhere:*:*:*:secret\n", 0o600);
    fs::create_dir(directory.join("folder")).unwrap();
    for (file, expected) in [
        ("open", "it has group or world access, its permissions must be 0600"),
        ("folder", "it is not a plain file"),
        ("other", "has no line for this host, port, database and user"),
    ] {
        let short = Timeouts { retry: Duration::from_millis(10), ..Default::default() };
        let error = error(&PostgresStoreConfig::new(url(file), "bot").timeouts(short)).await;
        assert!(matches!(error, OpenStoreError::Authentication(_)), "{error:?}");
        let text = error.to_string();
        let path = directory.join(file);
        assert!(text.contains(expected) && text.contains(path.to_str().unwrap()), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
    // A file that is missing is none: there is nothing to say of it.
    let text = text(&format!("{} connect_timeout=5", url("missing"))).await;
    assert!(
        text.contains("no password is configured") && !text.contains("password file"),
        "{text}"
    );
}

/// A directory that goes away with the server.
fn tempfile(server: &PostgresServer) -> std::path::PathBuf {
    let directory = server.data_directory().join("front_door");
    fs::create_dir(&directory).unwrap();
    directory
}
