//! In which configurations each history takes place. The one place to extend.

use matrix_sdk_postgres::{OwnershipSettings, PoolSettings, PostgresCryptoStore};
use test_support::Mode;

use super::place::Place;

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
    /// So little that it forgets all the time, and knows the keys of the smallest tables only.
    Small,
}

/// How statements travel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Statements {
    Prepared,
    Unnamed,
    /// Over a pool that is not the store's own: unnamed, and not closed with the store.
    ForeignPool,
}

impl Configuration {
    /// The configurations of a case: they take turns, but for the cache, which is off and on.
    pub fn of(case: u64) -> Vec<Self> {
        let modes = [Mode::Plain, Mode::Key];
        // Mostly the one that needs no connections of its own: it is quicker.
        let statements = match case / 2 % 6 {
            0 => Statements::Prepared,
            1 => Statements::Unnamed,
            _ => Statements::ForeignPool,
        };
        let mode = modes[(case % 2) as usize];
        let on = if (case / 12).is_multiple_of(2) { Cache::On } else { Cache::Small };
        [on, Cache::Off].map(|cache| Self { mode, statements, cache }).into()
    }

    pub async fn open(self, place: &Place, url: &str, account: &str) -> PostgresCryptoStore {
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
                PostgresCryptoStore::open_with_pool(place.pool.clone(), &config).await
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
