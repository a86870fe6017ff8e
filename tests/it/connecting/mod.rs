//! Connecting: the sources of the password, the choice of the server, and errors when no server is usable.

mod refusals;

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use assert_matches::assert_matches;
use matrix_sdk_postgres::{
    OpenStoreError, PoolSettings, PostgresCryptoStore, PostgresStoreConfig, Timeouts,
    deadpool_postgres::Object, testing::PostgresServer,
};
use test_support::child_process;

/// A server, its password, and a directory for files.
struct Environment {
    server: PostgresServer,
    password: String,
}

fn environment() -> Environment {
    let server = PostgresServer::start().unwrap();
    let password = server.url().split([':', '@']).nth(2).unwrap().to_owned();
    Environment { server, password }
}

impl Environment {
    /// Without a password.
    fn config(&self, words: &str) -> PostgresStoreConfig {
        let port = self.server.port();
        // Not the password file of the user who runs the tests.
        let passfile = if words.contains("passfile") { "" } else { "passfile=/none" };
        PostgresStoreConfig::new(
            format!("host=127.0.0.1 port={port} user=postgres dbname=postgres {passfile} {words}"),
            "connecting",
        )
    }

    /// Where it is, and no password.
    fn words(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.server.port())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.server.data_directory().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }
}

/// A short retry timeout, because these errors are permanent.
const SHORT: Duration = Duration::from_millis(100);

async fn works(config: &PostgresStoreConfig) -> bool {
    config.build_pool().unwrap().get().await.is_ok()
}

async fn error(config: &PostgresStoreConfig) -> OpenStoreError {
    PostgresCryptoStore::open_with_config(config).await.unwrap_err()
}

#[tokio::test]
async fn a_password_file_is_read_for_each_connection() {
    let environment = environment();
    let path = environment.write("secret", "wrong\n");
    let config = environment
        .config("")
        .password_file(&path)
        .timeouts(Timeouts { retry: SHORT, ..Default::default() });
    let pool = config.build_pool().unwrap();
    assert!(pool.get().await.is_err());
    assert_matches!(
        error(&config).await,
        OpenStoreError::Authentication(error) if error.sqlstate() == Some("28P01")
    );
    for ending in ["", "\n", "\r\n"] {
        fs::write(&path, format!("{}{ending}", environment.password)).unwrap();
        let connection = pool.get().await.unwrap();
        drop(Object::take(connection));
    }
    fs::write(&path, "\n").unwrap();
    assert_matches!(
        error(&config).await,
        OpenStoreError::InvalidConfig(text) if text.contains("secret is empty")
    );
    fs::remove_file(&path).unwrap();
    assert_matches!(
        error(&config).await,
        OpenStoreError::InvalidConfig(text) if text.contains("secret cannot be read")
    );
}

#[tokio::test]
async fn a_password_callback_is_called_for_each_connection() {
    let environment = environment();
    let (calls, password) = (Arc::new(AtomicUsize::new(0)), environment.password.clone());
    let counter = Arc::clone(&calls);
    let config = environment.config("").password_callback(move || {
        counter.fetch_add(1, Ordering::SeqCst);
        let password = password.clone();
        async move { Ok(password) }
    });
    let pool = config.build_pool().unwrap();
    let (first, second) = (pool.get().await.unwrap(), pool.get().await.unwrap());
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    drop((first, second));
    drop(pool.get().await.unwrap());
    assert_eq!(calls.load(Ordering::SeqCst), 2);

    let failing =
        environment.config("").password_callback(|| async { Err("no token today".into()) });
    assert_matches!(
        error(&failing).await,
        OpenStoreError::Connect(error) if error.to_string().contains("no token today")
    );
    let hanging = environment
        .config("")
        .pool(PoolSettings {
            connect_timeout: Some(Duration::from_millis(200)),
            ..Default::default()
        })
        .password_callback(|| async { std::future::pending().await });
    assert_matches!(
        error(&hanging).await,
        OpenStoreError::Connect(error) if error.to_string().contains("returned no password")
    );
}

#[tokio::test]
async fn the_order_of_the_passwords_sources() {
    let environment = environment();
    let right = environment.password.clone();
    let passfile = environment.write("pgpass", &format!("127.0.0.1:*:postgres:postgres:{right}\n"));
    let passfile = format!("passfile={}", passfile.display());
    let (good, bad) = (environment.write("good", &right), environment.write("bad", "wrong"));
    let callback = move || {
        let right = right.clone();
        async move { Ok(right) }
    };
    assert!(works(&environment.config(&passfile)).await);
    assert!(!works(&environment.config(&format!("{passfile} password=wrong"))).await);
    assert!(works(&environment.config("password=wrong").password_file(&good)).await);
    assert!(
        works(&environment.config("password=wrong").password_file(bad).password_callback(callback))
            .await
    );
}

/// The server of a test that runs again in a process with other variables.
const SERVER: &str = "TEST_SERVER";

#[tokio::test]
async fn pgpassword_is_read_where_the_connection_string_has_no_password() {
    if let Ok(server) = std::env::var(SERVER) {
        let config = |words| PostgresStoreConfig::new(format!("{server} {words}"), "connecting");
        assert!(works(&config("")).await);
        assert!(!works(&config("password=wrong")).await);
        return;
    }
    let environment = environment();
    let server = format!("{} passfile=/none", environment.words());
    let name = "connecting::pgpassword_is_read_where_the_connection_string_has_no_password";
    let mut child = child_process::command(name);
    child_process::passes(child.env(SERVER, &server).env("PGPASSWORD", &environment.password));
}

#[tokio::test]
async fn the_password_file_is_pgpassfile_or_that_in_the_home_directory() {
    if let Ok(server) = std::env::var(SERVER) {
        assert!(works(&PostgresStoreConfig::new(server, "connecting")).await);
        return;
    }
    let environment = environment();
    let text = format!("*:*:*:*:{}\n", environment.password);
    let (named, wrong) =
        (environment.write("named", &text), environment.write("wrong", "*:*:*:*:wrong\n"));
    let home = environment.write(".pgpass", &text);
    let home = home.parent().unwrap();
    let name = "connecting::the_password_file_is_pgpassfile_or_that_in_the_home_directory";
    let passes = |home: &Path, file: &str| {
        let home = home.to_str().unwrap();
        let variables = [(SERVER, &*environment.words()), ("HOME", home), ("PGPASSFILE", file)];
        let mut child = child_process::command(name);
        child_process::passes(child.envs(variables).env("PGPASSWORD", ""));
    };
    passes(home, "");
    passes(Path::new("/nowhere"), named.to_str().unwrap());
    assert!(!works(&environment.config(&format!("passfile={}", wrong.display()))).await);
}

#[tokio::test]
async fn a_password_file_that_others_may_read_is_ignored() {
    let environment = environment();
    let path = environment.write("pgpass", &format!("*:*:*:*:{}\n", environment.password));
    let config = environment
        .config(&format!("passfile={}", path.display()))
        .timeouts(Timeouts { retry: SHORT, ..Default::default() });
    assert!(works(&config).await);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    assert_matches!(
        error(&config).await,
        OpenStoreError::Authentication(error)
            if error.to_string().contains("requires authentication, and no password is configured")
    );
}

#[tokio::test]
async fn refused_logins() {
    let environment = environment();
    let right = format!("password={}", environment.password);
    for (words, code) in [
        ("password=wrong".to_owned(), "28P01"),
        (format!("{right} dbname=nowhere"), "3D000"),
        (format!("{right} user=nobody_at_all"), "28P01"),
    ] {
        assert_matches!(
            error(&environment.config(&words)).await,
            OpenStoreError::Authentication(error) if error.sqlstate() == Some(code),
            "{words}"
        );
    }
}

#[tokio::test]
async fn a_role_that_may_not_connect() {
    let environment = environment();
    let pool = PostgresStoreConfig::new(environment.server.url(), "admin").build_pool().unwrap();
    let connection = pool.get().await.unwrap();
    for sql in [
        "CREATE ROLE guest LOGIN PASSWORD 'guest'",
        "CREATE DATABASE closed",
        "REVOKE CONNECT ON DATABASE closed FROM PUBLIC",
    ] {
        connection.batch_execute(sql).await.unwrap();
    }
    let config = environment.config("user=guest password=guest dbname=closed");
    assert_matches!(
        error(&config).await,
        OpenStoreError::PermissionDenied { source, .. } if source.sqlstate() == Some("42501")
    );
}

/// Accepts connections, but sends nothing.
fn silent() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// How many connections have reached the listener since the last call.
fn accepted(listener: &TcpListener) -> usize {
    listener.set_nonblocking(true).unwrap();
    std::iter::from_fn(|| listener.accept().ok()).count()
}

fn closed_port() -> u16 {
    silent().1
}

#[tokio::test]
async fn unreachable_servers() {
    let environment = environment();
    let port = closed_port();
    let error_of = |words: String| async move {
        match error(&PostgresStoreConfig::new(words, "connecting")).await {
            OpenStoreError::Connect(error) => error.to_string(),
            other => panic!("{other:?}"),
        }
    };
    let text = error_of(format!("host=127.0.0.1 port={port} user=a password=geheim")).await;
    assert!(text.contains(&format!("127.0.0.1 port {port}")) && text.contains("refused"), "{text}");
    assert!(!text.contains("geheim"), "{text}");
    let text = error_of(format!("host=localhost hostaddr=127.0.0.1 port={port} user=a")).await;
    assert!(text.contains(&format!("localhost (127.0.0.1) port {port}")), "{text}");
    let text = error_of("host=/nowhere user=a".to_owned()).await;
    assert!(text.contains("socket /nowhere/.s.PGSQL.5432"), "{text}");
    let text = error_of("host=no-such-host.invalid user=a".to_owned()).await;
    assert!(text.contains("no-such-host.invalid\" cannot be resolved"), "{text}");
    drop(environment);
}

#[tokio::test]
async fn a_silent_server_times_out() {
    let (listener, port) = silent();
    for mode in ["disable", "prefer"] {
        let config = PostgresStoreConfig::new(
            format!("host=127.0.0.1 port={port} user=a sslmode={mode}"),
            "connecting",
        )
        .pool(PoolSettings {
            connect_timeout: Some(Duration::from_millis(500)),
            ..Default::default()
        });
        assert_matches!(
            error(&config).await,
            OpenStoreError::Connect(error) if error.to_string().contains("did not respond within the connect timeout, 500ms")
        );
        assert_eq!(accepted(&listener), 1, "{mode}");
    }
}

#[tokio::test]
async fn the_first_reachable_of_several_servers_is_used() {
    let environment = environment();
    let (_listener, mute) = silent();
    let (dead, port, password) = (closed_port(), environment.server.port(), &environment.password);
    for ports in [format!("{dead},{port}"), format!("{mute},{port}"), format!("{port},{dead}")] {
        for order in ["disable", "random"] {
            let config = PostgresStoreConfig::new(
                format!(
                    "host=127.0.0.1,localhost hostaddr=127.0.0.1,127.0.0.1 port={ports} \
                     user=postgres password={password} load_balance_hosts={order}"
                ),
                "connecting",
            )
            .pool(PoolSettings {
                connect_timeout: Some(Duration::from_secs(4)),
                ..Default::default()
            });
            assert!(works(&config).await, "{ports} {order}");
        }
    }
    // After a refused login the next server is not tried.
    let (listener, mute) = silent();
    let config = PostgresStoreConfig::new(
        format!("postgres://postgres:wrong@127.0.0.1:{port},127.0.0.1:{mute}/postgres"),
        "connecting",
    );
    assert_matches!(error(&config).await, OpenStoreError::Authentication(_));
    assert_eq!(accepted(&listener), 0);
}

#[tokio::test]
async fn the_writable_one_of_several_servers_is_used() {
    let standby =
        PostgresServer::builder().setting("default_transaction_read_only", "on").start().unwrap();
    let primary = environment();
    let (closed, open) = (standby.port(), primary.server.port());
    // Both accept the same user, so that only their state decides.
    for server in [&standby, &primary.server] {
        let rules = server.data_directory().join("pg_hba.conf");
        fs::write(&rules, "host all all 127.0.0.1/32 trust\nlocal all all trust\n").unwrap();
        let config = PostgresStoreConfig::new(server.socket_url(), "admin");
        let connection = config.build_pool().unwrap().get().await.unwrap();
        connection.query_one("SELECT pg_reload_conf()", &[]).await.unwrap();
    }
    let url = format!("postgres://postgres@127.0.0.1:{closed},127.0.0.1:{open}/postgres");
    let mut found = 0;
    // The reload is asynchronous.
    for _ in 0..50 {
        let pool = PostgresStoreConfig::new(&url, "connecting").build_pool().unwrap();
        if let Ok(connection) = pool.get().await {
            found = connection.query_one("SELECT inet_server_port()", &[]).await.unwrap().get(0);
            if found == i32::from(open) {
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(found, i32::from(open));
    // If none is writable, the error must name a standby or the setting instead of a wrong address.
    let closed_twice =
        format!("postgres://postgres@127.0.0.1:{closed},127.0.0.1:{closed}/postgres");
    assert_matches!(
        error(&PostgresStoreConfig::new(closed_twice, "connecting")).await,
        OpenStoreError::Connect(error)
            if error.to_string().contains("accepts no writes: it is a standby, or default_transaction")
    );
    let any = PostgresStoreConfig::new(format!("{url}?target_session_attrs=any"), "connecting");
    let connection = any.build_pool().unwrap().get().await.unwrap();
    let port: i32 = connection.query_one("SELECT inet_server_port()", &[]).await.unwrap().get(0);
    assert_eq!(port, i32::from(closed));
}
