//! Configuration: what is refused, what is never shown, and where passwords come from.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use assert_matches::assert_matches;
use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{
    OpenStoreError, PostgresCryptoStore, PostgresStoreConfig, Takeover, testing,
};

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
        (config().pool_max_size(10_001), "pool_max_size is 10001"),
        (config().pool_max_size(usize::MAX), "pool_max_size is 184467"),
        (config().owner_label("a\0b"), "owner_label contains a control character"),
        (config().owner_label(&"a".repeat(256)), "owner_label has 256 bytes"),
    ] {
        let text = complaint(&config);
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
        let text = complaint(&PostgresStoreConfig::new("host=db", &name));
        assert!(text.contains(expected), "{name:?}: {text}");
    }
    for name in ["a", "my bot", "o'brien", "@bot:example.org", "ü", &"a".repeat(255)] {
        PostgresStoreConfig::new("host=db", name).build_pool().unwrap();
    }
}

type Setter = fn(PostgresStoreConfig, Duration) -> PostgresStoreConfig;

const DAY: Duration = Duration::from_secs(24 * 3600);
const SHORTEST: Duration = Duration::from_millis(10);

/// Each setting that is a time, with its shortest and its longest value.
const TIMES: [(&str, Setter, Duration, Duration); 9] = [
    ("connect_timeout", PostgresStoreConfig::connect_timeout, SHORTEST, DAY),
    ("pool_timeout", PostgresStoreConfig::pool_timeout, SHORTEST, DAY),
    ("statement_timeout", PostgresStoreConfig::statement_timeout, SHORTEST, DAY),
    ("atomically_timeout", PostgresStoreConfig::atomically_timeout, SHORTEST, DAY),
    ("heartbeat_interval", PostgresStoreConfig::heartbeat_interval, SHORTEST, DAY),
    ("transaction_idle_timeout", PostgresStoreConfig::transaction_idle_timeout, SHORTEST, DAY),
    ("retry_timeout", PostgresStoreConfig::retry_timeout, SHORTEST, DAY),
    (
        "max_connection_age",
        |config, age| config.max_connection_age(Some(age)),
        Duration::from_millis(1),
        Duration::from_secs(365 * 24 * 3600),
    ),
    (
        "max_connection_idle",
        |config, idle| config.max_connection_idle(Some(idle)),
        Duration::from_millis(1),
        Duration::from_secs(365 * 24 * 3600),
    ),
];

#[test]
fn each_time_has_a_shortest_and_a_longest_value() {
    let nanosecond = Duration::from_nanos(1);
    for (name, set, shortest, longest) in TIMES {
        for time in [shortest, longest] {
            set(config(), time).build_pool().unwrap();
        }
        for time in
            [Duration::ZERO, nanosecond, shortest - nanosecond, longest + nanosecond, Duration::MAX]
        {
            let text = complaint(&set(config(), time));
            for expected in [&format!("{name} is "), &format!("from {shortest:?} to {longest:?}")] {
                assert!(text.contains(expected), "{time:?}: {text}");
            }
        }
    }
    config().max_connection_age(None).max_connection_idle(None).build_pool().unwrap();
}

/// Nothing overflows, in the client or in the server.
#[tokio::test]
async fn a_store_works_with_all_times_and_sizes_at_their_longest() {
    let database = testing::database().unwrap();
    let longest = |account: &str| {
        TIMES
            .iter()
            .fold(
                PostgresStoreConfig::new(database.url(), account),
                |config, (_, set, _, longest)| set(config, *longest),
            )
            .takeover(Takeover::WaitUntilFree(Duration::MAX))
            .pool_max_size(10_000)
            .cache_bytes(usize::MAX)
            .cache_max_keys(usize::MAX)
    };
    let named = longest(&"ü".repeat(127)).owner_label(&"a".repeat(255));
    for config in [longest("bot").passphrase(Some("a passphrase")), named] {
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
    // A connection string may ask for no limit.
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
