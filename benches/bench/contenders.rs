//! The stores that are compared, and their server and directory.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use matrix_sdk_crypto::store::MemoryStore;
use matrix_sdk_postgres::{
    Access, OwnershipSettings, PostgresCryptoStore, PostgresStoreConfig, Timeouts,
    testing::{PostgresServer, TestDatabase},
};
use matrix_sdk_sqlite::SqliteCryptoStore;

use super::delay;
use test_support::{PASSPHRASE, bot_day::Subject, directory::Directory};

/// How far away PostgreSQL is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distance {
    Unix,
    Tcp,
    HalfMillisecond,
    Millisecond,
    /// In a bot's day only.
    TwentyMilliseconds,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    Memory,
    Sqlite {
        encrypted: bool,
    },
    /// A bot's day uses `atomically`.
    Postgres {
        distance: Distance,
        encrypted: bool,
    },
    /// In a bot's day only, encrypted: the calls of the SDK alone, as a `Client` makes them.
    PlainCalls {
        distance: Distance,
    },
}

pub const DISTANCES: [Distance; 4] =
    [Distance::Unix, Distance::Tcp, Distance::HalfMillisecond, Distance::Millisecond];

/// The distances at which a day is compared with and without `atomically`, and with SQLite.
pub const DISTANCES_OF_A_DAY: [Distance; 4] = [
    Distance::Unix,
    Distance::HalfMillisecond,
    Distance::Millisecond,
    Distance::TwentyMilliseconds,
];

impl Contender {
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::Memory];
        for encrypted in [false, true] {
            all.push(Self::Sqlite { encrypted });
            all.extend(DISTANCES.map(|distance| Self::Postgres { distance, encrypted }));
        }
        all
    }

    /// Those of a bot's day: more distances, and without `atomically`.
    pub fn of_a_day() -> Vec<Self> {
        let mut all = Self::all();
        all.push(Self::Postgres { distance: Distance::TwentyMilliseconds, encrypted: true });
        all.extend(DISTANCES_OF_A_DAY.map(|distance| Self::PlainCalls { distance }));
        all
    }

    pub fn name(self) -> String {
        let (name, encrypted) = match self {
            Self::Memory => return "memory".to_owned(),
            Self::Sqlite { encrypted } => ("SQLite".to_owned(), encrypted),
            Self::Postgres { distance, encrypted } => {
                (format!("PostgreSQL, {}", distance.name()), encrypted)
            }
            Self::PlainCalls { distance } => {
                (format!("PostgreSQL, {}, plain calls", distance.name()), true)
            }
        };
        if encrypted { format!("{name}, encrypted") } else { name }
    }

    pub fn encrypted(self) -> bool {
        match self {
            Self::Memory => false,
            Self::Sqlite { encrypted } | Self::Postgres { encrypted, .. } => encrypted,
            Self::PlainCalls { .. } => true,
        }
    }
}

impl Distance {
    pub fn name(self) -> &'static str {
        match self {
            Self::Unix => "Unix socket",
            Self::Tcp => "TCP",
            Self::HalfMillisecond => "0.5 ms away",
            Self::Millisecond => "1 ms away",
            Self::TwentyMilliseconds => "20 ms away",
        }
    }
}

/// A PostgreSQL server of its own, with PostgreSQL's default durability, and a directory for SQLite.
pub struct Environment {
    database: TestDatabase,
    server: PostgresServer,
    half_millisecond: u16,
    millisecond: u16,
    twenty_milliseconds: u16,
    directory: Directory,
    names: AtomicUsize,
}

impl Environment {
    pub async fn new() -> Self {
        let server = PostgresServer::builder().durable(true).start().unwrap();
        let database = server.create_database().unwrap();
        let address = format!("127.0.0.1:{}", server.port());
        let directory = Directory::new();
        std::fs::create_dir(&directory.0).unwrap();
        let environment = Self {
            database,
            half_millisecond: delay::start(address.clone(), Duration::from_micros(500)),
            millisecond: delay::start(address.clone(), Duration::from_millis(1)),
            twenty_milliseconds: delay::start(address, Duration::from_millis(20)),
            server,
            directory,
            names: AtomicUsize::new(0),
        };
        // Creates the schema before anything is measured.
        PostgresCryptoStore::open(environment.url(Distance::Unix), "first", None).await.unwrap();
        environment
    }

    pub fn postgres_version(&self) -> u32 {
        self.server.version()
    }

    pub fn url(&self, distance: Distance) -> String {
        match distance {
            Distance::Unix => self.database.socket_url(),
            Distance::Tcp => self.database.url(),
            Distance::HalfMillisecond => self.url_through(self.half_millisecond),
            Distance::Millisecond => self.url_through(self.millisecond),
            Distance::TwentyMilliseconds => self.url_through(self.twenty_milliseconds),
        }
    }

    /// The URL with another port, that of a proxy.
    pub fn url_through(&self, port: u16) -> String {
        self.database.url().replace(&self.server.port().to_string(), &port.to_string())
    }

    /// The server's address on TCP.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.server.port())
    }

    /// An unused store name.
    pub fn new_name(&self) -> String {
        format!("store{}", self.names.fetch_add(1, Ordering::Relaxed))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.0.join(name)
    }

    /// Opens the store of this name, creating what is missing; in memory, a new one.
    pub async fn open(&self, contender: Contender, name: &str) -> Subject {
        match contender {
            Contender::Memory => Subject::other(MemoryStore::new()),
            Contender::Sqlite { encrypted } => {
                let passphrase = encrypted.then_some(PASSPHRASE);
                let store = SqliteCryptoStore::open(self.path(name), passphrase).await;
                Subject::other(Arc::new(store.unwrap()))
            }
            Contender::Postgres { distance, encrypted } => {
                open_postgres(self.url(distance), name, encrypted).await
            }
            Contender::PlainCalls { distance } => {
                let config = config(self.url(distance), name, true);
                Subject::other(PostgresCryptoStore::open_with_config(&config).await.unwrap())
            }
        }
    }

    /// Opens an existing store read-only: without a cache, and next to other stores of the account.
    pub async fn open_read_only(&self, contender: Contender, name: &str) -> Subject {
        let Contender::Postgres { distance, encrypted } = contender else {
            return self.open(contender, name).await;
        };
        let config = config(self.url(distance), name, encrypted).access(Access::ReadOnly);
        Subject::postgres(PostgresCryptoStore::open_with_config(&config).await.unwrap())
    }

    /// Runs SQL as superuser.
    pub async fn execute(&self, sql: &str) {
        test_support::connect(&self.url(Distance::Unix)).await.batch_execute(sql).await.unwrap();
    }
}

pub async fn open_postgres(url: String, account: &str, encrypted: bool) -> Subject {
    let config = config(url, account, encrypted);
    Subject::postgres(PostgresCryptoStore::open_with_config(&config).await.unwrap())
}

fn config(url: String, account: &str, encrypted: bool) -> PostgresStoreConfig {
    PostgresStoreConfig::new(url, account)
        .passphrase(encrypted.then_some(PASSPHRASE))
        // No heartbeat falls into a measurement.
        .access(OwnershipSettings {
            heartbeat_interval: Duration::from_secs(3_600),
            ..Default::default()
        })
        // For a room of 5 000 members.
        .timeouts(Timeouts { atomically: Duration::from_secs(120), ..Default::default() })
}
