//! A refused login had no effect, so it is retried, whatever the SQLSTATE.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use assert_matches::assert_matches;
use futures_util::future::try_join_all;
use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{
    Error, OpenStoreError, OwnershipSettings, PoolSettings, PostgresCryptoStore,
    PostgresStoreConfig, Timeouts,
};
use test_support::{proxy::Proxy, without_heartbeats};

use super::{Environment, SHORT, environment, error};

/// Codes of a server that starts or is full, of PgBouncer, PgCat and Supavisor, and of a tenant that does not
/// exist yet.
const CODES: [&str; 8] = ["57P03", "53300", "08P01", "53400", "58000", "XX000", "3D000", "42501"];

/// Those that are usually transient. Opening returns the others at once.
const CODES_AT_OPEN: [&str; 6] = ["57P03", "53300", "08P01", "53400", "58000", "XX000"];

fn address(environment: &Environment) -> String {
    format!("127.0.0.1:{}", environment.server.port())
}

/// Connects through the proxy, without a password. Each operation makes a new connection.
fn through(proxy: &Proxy, words: &str) -> PostgresStoreConfig {
    let passfile = if words.contains("passfile") { "" } else { "passfile=/none" };
    let url = format!(
        "host=127.0.0.1 port={} user=postgres dbname=postgres sslmode=disable {passfile} {words}",
        proxy.port()
    );
    PostgresStoreConfig::new(url, "refusals")
        .pool(PoolSettings {
            max_size: 1,
            max_connection_idle: Some(Duration::from_millis(1)),
            ..Default::default()
        })
        .access(OwnershipSettings { cache_bytes: 0, ..without_heartbeats() })
        .timeouts(Timeouts { retry: Duration::from_secs(60), ..Default::default() })
}

async fn open(config: &PostgresStoreConfig) -> PostgresCryptoStore {
    PostgresCryptoStore::open_with_config(config).await.unwrap()
}

/// Waits until the pool's connection is too old, so that the next operation makes a new one.
async fn expire_connection() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

#[tokio::test]
async fn refused_logins_are_retried_in_use() {
    let environment = environment();
    let proxy = Proxy::start(address(&environment));
    let store = open(&through(&proxy, &format!("password={}", environment.password))).await;
    for code in CODES {
        for read in [false, true] {
            expire_connection().await;
            proxy.refuse_logins(2, code);
            if read {
                let found = store.get_custom_value("key").await;
                assert_eq!(found.unwrap().as_deref(), Some(code.as_bytes()), "{code}");
            } else {
                store.set_custom_value("key", code.into()).await.expect(code);
            }
            assert_eq!((proxy.refusals_left(), proxy.logins()), (0, 3), "{code}");
        }
    }
}

#[tokio::test]
async fn refused_logins_are_retried_until_the_retry_timeout() {
    let environment = environment();
    let proxy = Proxy::start(address(&environment));
    let config = through(&proxy, &format!("password={}", environment.password));
    let store = open(&config.timeouts(Timeouts { retry: SHORT, ..Default::default() })).await;
    expire_connection().await;
    proxy.refuse_logins(usize::MAX, "58000");
    let error = store.set_custom_value("key", b"value".to_vec()).await.unwrap_err();
    assert_matches!(code(&error), Some("58000"));
    assert!(proxy.logins() > 1);
}

#[tokio::test]
async fn refused_logins_are_retried_at_open() {
    let environment = environment();
    let proxy = Proxy::start(address(&environment));
    let config = through(&proxy, &format!("password={}", environment.password));
    for code in CODES_AT_OPEN {
        proxy.refuse_logins(2, code);
        open(&config).await.close().await.unwrap();
        assert_eq!(proxy.refusals_left(), 0, "{code}");
    }
    for code in ["28P01", "28000", "3D000"] {
        proxy.refuse_logins(1, code);
        assert_matches!(
            error(&config).await,
            OpenStoreError::Authentication(error) if error.sqlstate() == Some(code)
        );
        assert_eq!(proxy.logins(), 1, "{code}");
    }
    proxy.refuse_logins(1, "42501");
    assert_matches!(error(&config).await, OpenStoreError::PermissionDenied { .. });
    assert_eq!(proxy.logins(), 1);
}

/// Neither the store's own pool nor a shared one retries it.
#[tokio::test]
async fn a_fixed_password_that_is_refused_fails_at_once() {
    let environment = environment();
    let proxy = Proxy::start(address(&environment));
    let config = through(&proxy, &format!("password={}", environment.password));
    for shared in [false, true] {
        let store = match shared {
            false => open(&config).await,
            true => {
                let pool = config.build_pool().unwrap();
                PostgresCryptoStore::open_with_pool(pool, &config).await.unwrap()
            }
        };
        expire_connection().await;
        proxy.refuse_logins(1, "28P01");
        let error = store.set_custom_value("key", b"value".to_vec()).await.unwrap_err();
        assert_matches!(code(&error), Some("28P01"));
        assert_eq!(proxy.logins(), 1);
        assert_matches!(
            store.set_custom_value("key", b"value".to_vec()).await,
            Err(Error::ReopenRequired)
        );
    }
}

/// For each source that is read again for each connection, with the store's own pool and a shared one.
#[tokio::test]
async fn a_rotated_password_that_arrives_late_is_retried() {
    let environment = environment();
    let proxy = Proxy::start(address(&environment));
    let right = environment.password.clone();
    let file = environment.write("late", &right);
    let passfile = environment.write("late-pgpass", &format!("*:*:*:*:{right}\n"));
    let callback = move || {
        let right = right.clone();
        async move { Ok(right) }
    };
    let none = through(&proxy, "");
    for config in [
        none.clone().password_callback(callback),
        none.password_file(file),
        through(&proxy, &format!("passfile={}", passfile.display())),
    ] {
        for code in ["28P01", "28000"] {
            let pool = config.build_pool().unwrap();
            proxy.refuse_logins(2, code);
            let own = open(&config).await;
            assert_eq!(proxy.refusals_left(), 0);
            let shared = PostgresCryptoStore::open_with_pool(pool, &config).await.unwrap();
            own.close().await.unwrap();
            expire_connection().await;
            proxy.refuse_logins(2, code);
            shared.set_custom_value("key", b"value".to_vec()).await.unwrap();
            assert_eq!((proxy.refusals_left(), proxy.logins()), (0, 3));
        }
    }
}

/// The same with a real server.
#[tokio::test]
async fn a_password_changes_on_the_server_first() {
    let environment = environment();
    let (calls, new) = (Arc::new(AtomicUsize::new(0)), "the-new-one");
    // The callback returns the old password twice more.
    let (counter, old) = (calls.clone(), environment.password.clone());
    let from = Arc::new(AtomicUsize::new(usize::MAX));
    let change = from.clone();
    let config = environment.config("").password_callback(move || {
        let is_new = counter.fetch_add(1, SeqCst) >= change.load(SeqCst);
        let password = if is_new { new.to_owned() } else { old.clone() };
        async move { Ok(password) }
    });
    let config = config
        .pool(PoolSettings {
            max_size: 1,
            max_connection_idle: Some(Duration::from_millis(1)),
            ..Default::default()
        })
        .access(without_heartbeats())
        .timeouts(Timeouts { retry: Duration::from_secs(60), ..Default::default() });
    let store = open(&config).await;
    let admin = PostgresStoreConfig::new(environment.server.url(), "admin").build_pool().unwrap();
    let alter = format!("ALTER ROLE postgres PASSWORD '{new}'");
    admin.get().await.unwrap().batch_execute(&alter).await.unwrap();
    from.store(calls.load(SeqCst) + 2, SeqCst);
    expire_connection().await;
    store.set_custom_value("key", b"value".to_vec()).await.unwrap();
    assert!(calls.load(SeqCst) > from.load(SeqCst));
    from.store(calls.load(SeqCst) + 2, SeqCst);
    store.close().await.unwrap();
    store.reopen().await.unwrap();
}

/// The connection that was used last is used next, so the others are seldom taken.
#[tokio::test]
async fn old_connections_are_closed_although_they_are_not_taken() {
    let (environment, age) = (environment(), Duration::from_secs(1));
    let pool = PostgresStoreConfig::new(environment.server.url(), "bot")
        .pool(PoolSettings { max_connection_age: Some(age), ..Default::default() })
        .build_pool()
        .unwrap();
    let taken = try_join_all((0..4).map(|_| pool.get())).await.unwrap();
    drop(taken);
    assert_eq!(pool.status().size, 4);
    tokio::time::sleep(age * 2).await;
    drop(pool.get().await.unwrap());
    assert_eq!(pool.status().size, 1);
}

fn code(error: &Error) -> Option<&str> {
    match error {
        Error::Database(error) => error.sqlstate(),
        _ => None,
    }
}
