//! Support code of the tests and benchmarks.
#![allow(missing_docs, clippy::new_without_default)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod bot_day;
pub mod child_process;
pub mod cluster;
pub mod directory;
pub mod disk;
pub mod fixture;
pub mod machine;
pub mod needles;
pub mod pages;
pub mod pooler;
pub mod privileges;
pub mod process;
pub mod proxy;
pub mod reads;
mod runs;
pub mod standby;
pub mod stream;
pub mod suite;
pub mod values;

use std::{cell::RefCell, collections::HashSet, time::Duration};

use matrix_sdk_postgres::{
    Access, OwnershipSettings, PoolSettings, PostgresCryptoStore, PostgresStoreConfig,
};

pub use self::runs::{eventually, figure, milliseconds, rounds, seeded};

/// How an account is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Plain,
    Passphrase,
    Key,
}

pub const PASSPHRASE: &str = "correct horse battery staple";
pub const KEY: [u8; 32] = [42; 32];

impl Mode {
    pub fn config(self, url: &str, account: &str) -> PostgresStoreConfig {
        let config = PostgresStoreConfig::new(url, account)
            .pool(PoolSettings { max_size: 4, ..Default::default() });
        match self {
            Mode::Plain => config,
            Mode::Passphrase => config.passphrase(Some(PASSPHRASE)),
            Mode::Key => config.key(Some(&KEY)),
        }
    }

    pub async fn open(self, url: &str, account: &str) -> PostgresCryptoStore {
        PostgresCryptoStore::open_with_config(&self.config(url, account)).await.unwrap()
    }

    /// A store without a cache, so that a test may change its rows.
    pub async fn open_uncached(self, url: &str, account: &str) -> PostgresCryptoStore {
        let config = self
            .config(url, account)
            .access(OwnershipSettings { cache_bytes: 0, ..Default::default() });
        PostgresCryptoStore::open_with_config(&config).await.unwrap()
    }

    /// A read-only store: it has no cache, so it reads what another store writes.
    pub async fn open_read_only(self, url: &str, account: &str) -> PostgresCryptoStore {
        let config = self.config(url, account).access(Access::ReadOnly);
        PostgresCryptoStore::open_with_config(&config).await.unwrap()
    }
}

/// Practically disables heartbeats, which are transactions too, for tests that count or hold transactions.
pub fn without_heartbeats() -> OwnershipSettings {
    OwnershipSettings { heartbeat_interval: Duration::from_secs(3_600), ..Default::default() }
}

/// A connection of the test's own, to inspect the database and to inject faults.
pub async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// The single number that a query returns.
pub async fn number(client: &tokio_postgres::Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// Waits until the heartbeat of the database's only live process was renewed several times.
pub async fn wait_for_heartbeats(url: &str) {
    let client = connect(url).await;
    let sql = "SELECT max(alive_until)::text FROM matrix_sdk.heartbeats
               WHERE alive_until > clock_timestamp()";
    let seen = RefCell::new(HashSet::<String>::new());
    eventually("the heartbeat is renewed", async || {
        let renewed: Option<String> = client.query_one(sql, &[]).await.unwrap().get(0);
        seen.borrow_mut().extend(renewed);
        seen.borrow().len() >= 6
    })
    .await;
}
