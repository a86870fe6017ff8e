//! Configuration: refused settings, redacted secrets, and time limits.
use std::time::Duration;

use assert_matches::assert_matches;
use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{
    OpenStoreError, OwnershipSettings, PoolSettings, PostgresCryptoStore, PostgresStoreConfig,
    Takeover, Timeouts, testing,
};

const SECRET: &str = "hunter2-geheim";

/// The error of `build_pool`.
fn build_pool_error(config: &PostgresStoreConfig) -> String {
    match config.build_pool() {
        Err(OpenStoreError::InvalidConfig(text)) => text,
        other => panic!("{:?}", other.map(|_| "a pool")),
    }
}

fn config() -> PostgresStoreConfig {
    PostgresStoreConfig::new("postgres://bot@db.example/bots", "my-bot")
}

fn sized(max_size: usize) -> PostgresStoreConfig {
    config().pool(PoolSettings { max_size, ..Default::default() })
}

fn with_instance(name: &str) -> PostgresStoreConfig {
    config().access(OwnershipSettings::default().instance(name))
}

fn labelled(label: &str) -> PostgresStoreConfig {
    config().access(OwnershipSettings { label: label.to_owned(), ..Default::default() })
}

#[test]
fn invalid_settings_are_refused_when_the_pool_is_built() {
    for (config, expected) in [
        (PostgresStoreConfig::new("", "my-bot"), "the connection string is empty"),
        (PostgresStoreConfig::new("host=db", ""), "the account's name is empty"),
        (PostgresStoreConfig::new("host=db", "a\0b"), "the account's name"),
        (config().passphrase(Some("")), "the passphrase is empty"),
        (PostgresStoreConfig::for_account("my-bot"), "no URL is given"),
        (sized(0), "pool.max_size is 0"),
        (sized(10_001), "pool.max_size is 10001"),
        (sized(usize::MAX), "pool.max_size is 184467"),
        (labelled("a\0b"), "the owner's label contains a control character"),
        (labelled(&"a".repeat(256)), "the owner's label has 256 bytes"),
        (with_instance(""), "the owner's instance is empty"),
        (with_instance("a\0b"), "the owner's instance contains a control character"),
        (with_instance(&"a".repeat(256)), "the owner's instance has 256 bytes"),
    ] {
        let text = build_pool_error(&config);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn account_names() {
    for (name, expected) in [
        (String::new(), "the account's name is empty"),
        ("a\0b".to_owned(), "the account's name contains a control character"),
        ("a\nb".to_owned(), "the account's name contains a control character"),
        ("a\u{85}b".to_owned(), "the account's name contains a control character"),
        (" bot".to_owned(), "the account's name begins or ends with a blank"),
        ("bot ".to_owned(), "the account's name begins or ends with a blank"),
        ("bot\u{a0}".to_owned(), "the account's name begins or ends with a blank"),
        ("a".repeat(256), "the account's name has 256 bytes"),
        ("ü".repeat(128), "the account's name has 256 bytes"),
    ] {
        let text = build_pool_error(&PostgresStoreConfig::new("host=db", &name));
        assert!(text.contains(expected), "{name:?}: {text}");
    }
    for name in ["a", "my bot", "o'brien", "@bot:example.org", "ü", &"a".repeat(255)] {
        PostgresStoreConfig::new("host=db", name).build_pool().unwrap();
    }
}

/// All settings that are durations.
#[derive(Default)]
struct Times {
    pool: PoolSettings,
    timeouts: Timeouts,
    ownership: OwnershipSettings,
}

impl Times {
    fn put_into(self, config: PostgresStoreConfig) -> PostgresStoreConfig {
        config.pool(self.pool).timeouts(self.timeouts).access(self.ownership)
    }
}

type Setter = fn(&mut Times, Duration);

const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
const SHORTEST: Duration = Duration::from_millis(10);
const MILLISECOND: Duration = Duration::from_millis(1);

/// Each duration, with its shortest and its longest value.
const TIMES: [(&str, Setter, Duration, Duration); 9] = [
    ("pool.connect_timeout", |t, time| t.pool.connect_timeout = Some(time), SHORTEST, DAY),
    ("pool.wait_timeout", |t, time| t.pool.wait_timeout = time, SHORTEST, DAY),
    ("timeouts.statement", |t, time| t.timeouts.statement = time, SHORTEST, DAY),
    ("timeouts.atomically", |t, time| t.timeouts.atomically = time, SHORTEST, DAY),
    ("timeouts.transaction_idle", |t, time| t.timeouts.transaction_idle = time, SHORTEST, DAY),
    ("timeouts.retry", |t, time| t.timeouts.retry = time, SHORTEST, DAY),
    ("heartbeat_interval", |t, time| t.ownership.heartbeat_interval = time, SHORTEST, DAY),
    (
        "pool.max_connection_age",
        |t, time| t.pool.max_connection_age = Some(time),
        MILLISECOND,
        YEAR,
    ),
    (
        "pool.max_connection_idle",
        |t, time| t.pool.max_connection_idle = Some(time),
        MILLISECOND,
        YEAR,
    ),
];

fn with_time(set: Setter, time: Duration) -> PostgresStoreConfig {
    let mut times = Times::default();
    set(&mut times, time);
    times.put_into(config())
}

#[test]
fn each_time_has_a_shortest_and_a_longest_value() {
    let nanosecond = Duration::from_nanos(1);
    for (name, set, shortest, longest) in TIMES {
        for time in [shortest, longest] {
            with_time(set, time).build_pool().unwrap();
        }
        for time in
            [Duration::ZERO, nanosecond, shortest - nanosecond, longest + nanosecond, Duration::MAX]
        {
            let text = build_pool_error(&with_time(set, time));
            for expected in [&format!("{name} is "), &format!("from {shortest:?} to {longest:?}")] {
                assert!(text.contains(expected), "{time:?}: {text}");
            }
        }
    }
    let mut times = Times::default();
    times.pool.max_connection_age = None;
    times.pool.max_connection_idle = None;
    times.put_into(config()).build_pool().unwrap();
}

/// No value overflows in the client or in the server.
#[tokio::test]
async fn a_store_works_with_all_times_and_sizes_at_their_longest() {
    let database = testing::database().unwrap();
    let longest = |account: &str, label: &str| {
        let mut times = Times::default();
        for (_, set, _, longest) in TIMES {
            set(&mut times, longest);
        }
        times.pool.max_size = 10_000;
        times.ownership.takeover = Takeover::WaitUntilFree(Duration::MAX);
        times.ownership.cache_bytes = usize::MAX;
        times.ownership.label = label.to_owned();
        times.ownership.instance = Some(label.to_owned());
        times.put_into(PostgresStoreConfig::new(database.url(), account))
    };
    let named = longest(&"ü".repeat(127), &"a".repeat(255));
    for config in [longest("bot", "label").passphrase(Some("a passphrase")), named] {
        let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
        store.set_custom_value("key", b"value".to_vec()).await.unwrap();
        let large = vec![7; 20 << 20];
        store.set_custom_value("large", large.clone()).await.unwrap();
        assert_eq!(store.get_custom_value("large").await.unwrap(), Some(large));
        assert_eq!(store.get_user_devices("@a:b.c".try_into().unwrap()).await.unwrap().len(), 0);
        store.close().await.unwrap();
        store.reopen().await.unwrap();
        assert_eq!(store.get_custom_value("key").await.unwrap(), Some(b"value".to_vec()));
    }
    // In a connection string, 0 means no limit.
    let url = format!("{}?connect_timeout=0", database.url().split('?').next().unwrap());
    drop(PostgresStoreConfig::new(url, "bot").build_pool().unwrap().get().await.unwrap());
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
fn debug_shows_server_and_account_but_no_secret() {
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

/// Every change of one character: the error may not contain the password.
#[test]
fn a_mangled_connection_string_never_shows_its_password() {
    let originals = [
        format!("postgres://bot:{SECRET}@db.example:6432/bots?sslmode=disable&user=bot"),
        format!("postgres://db.example/bots?user=bot&password={SECRET}&sslmode=disable"),
        format!("host=db.example user=bot password={SECRET} dbname=bots sslmode=disable"),
        format!("host=db.example user=bot password='{SECRET}' dbname=bots sslmode=disable"),
    ];
    // Two thirds of the password, so that a truncated one is found, too.
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
                    shown.push_str(&error.to_string());
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
