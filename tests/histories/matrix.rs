//! In which configurations each history takes place. The one place to extend.

use matrix_sdk_postgres::PostgresCryptoStore;

use crate::{common::Mode, place::Place};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Configuration {
    pub mode: Mode,
    pub statements: Statements,
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
    /// The configurations of a case: they take turns.
    pub fn of(case: u64) -> Vec<Self> {
        let modes = [Mode::Plain, Mode::Key];
        // Mostly the one that needs no connections of its own: it is quicker.
        let statements = match case / 2 % 6 {
            0 => Statements::Prepared,
            1 => Statements::Unnamed,
            _ => Statements::ForeignPool,
        };
        let mode = modes[(case % 2) as usize];
        vec![Self { mode, statements }]
    }

    pub async fn open(self, place: &Place, url: &str, account: &str) -> PostgresCryptoStore {
        let config = self.mode.config(url, account).pool_max_size(3);
        let opened = match self.statements {
            Statements::ForeignPool => {
                PostgresCryptoStore::open_with_pool(place.pool.clone(), &config).await
            }
            Statements::Prepared => PostgresCryptoStore::open_with_config(&config).await,
            Statements::Unnamed => {
                let config = config.prepared_statements(false);
                PostgresCryptoStore::open_with_config(&config).await
            }
        };
        opened.unwrap()
    }
}
