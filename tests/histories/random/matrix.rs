//! The configurations in which each history runs.

use matrix_sdk_postgres::{OwnershipSettings, PoolSettings, PostgresCryptoStore};
use test_support::Mode;

use super::environment::Environment;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Configuration {
    pub mode: Mode,
    pub statements: Statements,
    pub cache: Cache,
}

/// What the store keeps in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cache {
    Off,
    On,
    /// So small that rows are evicted all the time, and that only the smallest tables have a key set.
    Small,
}

/// How statements are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Statements {
    Prepared,
    Unnamed,
    /// Unnamed, over a pool of the application's, which is not closed with the store.
    ForeignPool,
}

impl Configuration {
    /// The configurations of a case: alternating by its number, each with the cache on and off.
    pub fn of(case: u64) -> Vec<Self> {
        let modes = [Mode::Plain, Mode::Key];
        // Mostly the shared pool, which is quicker because it opens no connections.
        let statements = match case / 2 % 6 {
            0 => Statements::Prepared,
            1 => Statements::Unnamed,
            _ => Statements::ForeignPool,
        };
        let mode = modes[(case % 2) as usize];
        let on = if (case / 12).is_multiple_of(2) { Cache::On } else { Cache::Small };
        [on, Cache::Off].map(|cache| Self { mode, statements, cache }).into()
    }

    pub async fn open(
        self,
        environment: &Environment,
        url: &str,
        account: &str,
    ) -> PostgresCryptoStore {
        let config =
            self.mode.config(url, account).pool(PoolSettings { max_size: 3, ..Default::default() });
        let config = match self.cache {
            Cache::Off => config.access(OwnershipSettings { cache_bytes: 0, ..Default::default() }),
            Cache::On => config,
            Cache::Small => {
                config.access(OwnershipSettings { cache_bytes: 4_000, ..Default::default() })
            }
        };
        let opened = match self.statements {
            Statements::ForeignPool => {
                PostgresCryptoStore::open_with_pool(environment.pool.clone(), &config).await
            }
            Statements::Prepared => PostgresCryptoStore::open_with_config(&config).await,
            Statements::Unnamed => {
                let config = config.pool(PoolSettings {
                    max_size: 3,
                    prepared_statements: false,
                    ..Default::default()
                });
                PostgresCryptoStore::open_with_config(&config).await
            }
        };
        opened.unwrap()
    }
}
