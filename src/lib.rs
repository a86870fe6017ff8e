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

mod access;
mod account;
mod atomically;
mod batch;
mod cache;
mod caller;
mod codec;
mod config;
mod connection;
mod connector;
mod conninfo;
mod crypto_store;
mod error;
mod heartbeat;
mod migrations;
mod ownership;
mod password;
mod readers;
mod schema;
mod secret;
mod statement;
#[cfg(feature = "testing")]
pub mod testing;
mod tls;
mod transaction;
mod writer;

pub use access::{Access, OnOwner};
pub use atomically::Transaction;
pub use config::PostgresStoreConfig;
pub use crypto_store::PostgresCryptoStore;
pub use deadpool_postgres;
pub use error::{DatabaseError, Error, OpenStoreError};

/// The page's code is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../docs/operations.md")]
mod operations {}
