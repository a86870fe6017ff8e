//! What is refused at login had no effect, so it is retried, whatever the code.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use assert_matches::assert_matches;
use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{
    Error, OpenStoreError, OwnershipSettings, PoolSettings, PostgresCryptoStore,
    PostgresStoreConfig, Timeouts,
};
use test_support::{proxy::Proxy, without_heartbeats};

use super::{SHORT, World, error, world};

/// A server that starts or is full; PgBouncer; PgCat; Supavisor; an account that is not known yet.
const CODES: [&str; 8] = ["57P03", "53300", "08P01", "53400", "58000", "XX000", "3D000", "42501"];

/// Of these, what passes by itself as a rule: opening reports the others at once.
const CODES_AT_OPEN: [&str; 6] = ["57P03", "53300", "08P01", "53400", "58000", "XX000"];

fn address(world: &World) -> String {
    format!("127.0.0.1:{}", world.server.port())
}

/// Through the gate, without a password; each operation makes a new connection.
fn through(gate: &Proxy, words: &str) -> PostgresStoreConfig {
    let passfile = if words.contains("passfile") { "" } else { "passfile=/none" };
    let url = format!(
        "host=127.0.0.1 port={} user=postgres dbname=postgres sslmode=disable {passfile} {words}",
        gate.port()
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

/// Lets the pool's connection grow too old, so that the next operation makes a new one.
async fn rest() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

#[tokio::test]
async fn refused_logins_are_retried_in_use() {
    let world = world();
    let gate = Proxy::start(address(&world));
    let store = open(&through(&gate, &format!("password={}", world.password))).await;
    for code in CODES {
        for read in [false, true] {
            rest().await;
            gate.refuse_logins(2, code);
            if read {
                let found = store.get_custom_value("key").await;
                assert_eq!(found.unwrap().as_deref(), Some(code.as_bytes()), "{code}");
            } else {
                store.set_custom_value("key", code.into()).await.expect(code);
            }
            assert_eq!((gate.refusals_left(), gate.logins()), (0, 3), "{code}");
        }
    }
}

#[tokio::test]
async fn refused_logins_are_retried_until_the_retry_timeout() {
    let world = world();
    let gate = Proxy::start(address(&world));
    let config = through(&gate, &format!("password={}", world.password));
    let store = open(&config.timeouts(Timeouts { retry: SHORT, ..Default::default() })).await;
    rest().await;
    gate.refuse_logins(usize::MAX, "58000");
    let error = store.set_custom_value("key", b"value".to_vec()).await.unwrap_err();
    assert_matches!(code(&error), Some("58000"));
    assert!(gate.logins() > 1);
}

#[tokio::test]
async fn refused_logins_are_retried_at_open() {
    let world = world();
    let gate = Proxy::start(address(&world));
    let config = through(&gate, &format!("password={}", world.password));
    for code in CODES_AT_OPEN {
        gate.refuse_logins(2, code);
        open(&config).await.close().await.unwrap();
        assert_eq!(gate.refusals_left(), 0, "{code}");
    }
    for code in ["28P01", "28000", "3D000"] {
        gate.refuse_logins(1, code);
        assert_matches!(
            error(&config).await,
            OpenStoreError::Authentication(error) if error.sqlstate() == Some(code)
        );
        assert_eq!(gate.logins(), 1, "{code}");
    }
    gate.refuse_logins(1, "42501");
    assert_matches!(error(&config).await, OpenStoreError::PermissionDenied { .. });
    assert_eq!(gate.logins(), 1);
}

/// Neither the pool's own nor a shared one repeats what cannot succeed.
#[tokio::test]
async fn a_fixed_password_that_is_refused_fails_at_once() {
    let world = world();
    let gate = Proxy::start(address(&world));
    let config = through(&gate, &format!("password={}", world.password));
    for shared in [false, true] {
        let store = match shared {
            false => open(&config).await,
            true => {
                let pool = config.build_pool().unwrap();
                PostgresCryptoStore::open_with_pool(pool, &config).await.unwrap()
            }
        };
        rest().await;
        gate.refuse_logins(1, "28P01");
        let error = store.set_custom_value("key", b"value".to_vec()).await.unwrap_err();
        assert_matches!(code(&error), Some("28P01"));
        assert_eq!(gate.logins(), 1);
        assert_matches!(
            store.set_custom_value("key", b"value".to_vec()).await,
            Err(Error::ReopenRequired)
        );
    }
}

/// Each of the sources that are read again for each connection, with a pool of its own and a shared
/// one.
#[tokio::test]
async fn a_rotated_password_that_arrives_late_is_waited_for() {
    let world = world();
    let gate = Proxy::start(address(&world));
    let right = world.password.clone();
    let file = world.write("late", &right);
    let passfile = world.write("late-pgpass", &format!("*:*:*:*:{right}\n"));
    let callback = move || {
        let right = right.clone();
        async move { Ok(right) }
    };
    let none = through(&gate, "");
    for config in [
        none.clone().password_callback(callback),
        none.password_file(file),
        through(&gate, &format!("passfile={}", passfile.display())),
    ] {
        for code in ["28P01", "28000"] {
            let pool = config.build_pool().unwrap();
            gate.refuse_logins(2, code);
            let own = open(&config).await;
            assert_eq!(gate.refusals_left(), 0);
            let shared = PostgresCryptoStore::open_with_pool(pool, &config).await.unwrap();
            own.close().await.unwrap();
            rest().await;
            gate.refuse_logins(2, code);
            shared.set_custom_value("key", b"value".to_vec()).await.unwrap();
            assert_eq!((gate.refusals_left(), gate.logins()), (0, 3));
        }
    }
}

/// The same with a real server's real answers.
#[tokio::test]
async fn a_password_changes_on_the_server_first() {
    let world = world();
    let (asked, new) = (Arc::new(AtomicUsize::new(0)), "the-new-one");
    // The old one is still given out twice.
    let (counter, old) = (asked.clone(), world.password.clone());
    let from = Arc::new(AtomicUsize::new(usize::MAX));
    let change = from.clone();
    let config = world.config("").password_callback(move || {
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
    let admin = PostgresStoreConfig::new(world.server.url(), "admin").build_pool().unwrap();
    let alter = format!("ALTER ROLE postgres PASSWORD '{new}'");
    admin.get().await.unwrap().batch_execute(&alter).await.unwrap();
    from.store(asked.load(SeqCst) + 2, SeqCst);
    rest().await;
    store.set_custom_value("key", b"value".to_vec()).await.unwrap();
    assert!(asked.load(SeqCst) > from.load(SeqCst));
    from.store(asked.load(SeqCst) + 2, SeqCst);
    store.close().await.unwrap();
    store.reopen().await.unwrap();
}

fn code(error: &Error) -> Option<&str> {
    match error {
        Error::Database(error) => error.sqlstate(),
        _ => None,
    }
}
