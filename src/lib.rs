// The README's links are relative, and lead nowhere from docs.rs. Of two definitions the first counts.
#![doc = concat!("[schema]: https://docs.rs/crate/matrix-sdk-postgres/", env!("CARGO_PKG_VERSION"), "/source/docs/schema.md")]
#![doc = concat!("[threats]: https://docs.rs/crate/matrix-sdk-postgres/", env!("CARGO_PKG_VERSION"), "/source/docs/threat-model.md")]
#![doc = concat!("[operations]: https://docs.rs/crate/matrix-sdk-postgres/", env!("CARGO_PKG_VERSION"), "/source/docs/operations.md")]
#![doc = concat!("[reliability]: https://docs.rs/crate/matrix-sdk-postgres/", env!("CARGO_PKG_VERSION"), "/source/docs/reliability.md")]
#![doc = concat!("[benchmarks]: https://docs.rs/crate/matrix-sdk-postgres/", env!("CARGO_PKG_VERSION"), "/source/docs/benchmarks.md")]
#![doc = concat!("[licence]: https://docs.rs/crate/matrix-sdk-postgres/", env!("CARGO_PKG_VERSION"), "/source/LICENSE")]
//! [bridge]: #see-it-work
//!
#![doc = include_str!("../README.md")]

mod account;
mod config;
mod crypto_store;
mod error;
mod postgres;
mod stores;
#[cfg(feature = "testing")]
pub mod testing;

/// Shows that a second store can move in.
#[cfg(all(test, feature = "testing"))]
#[path = "../tests/toy_store/mod.rs"]
mod toy_store;

pub use account::write::atomically::Transaction;
pub use config::{
    PostgresStoreConfig,
    access::{Access, OwnershipSettings, Takeover},
    pool::PoolSettings,
    timeouts::Timeouts,
};
pub use crypto_store::PostgresCryptoStore;
pub use deadpool_postgres;
pub use error::{DatabaseError, Error, OpenStoreError};
pub use stores::PostgresStores;
pub use tokio_postgres;

/// The page's code is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../docs/operations.md")]
mod operations {}
