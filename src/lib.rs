#![doc = include_str!("../README.md")]

mod account;
mod batch;
mod codec;
mod config;
mod connection;
mod connector;
mod conninfo;
mod crypto_store;
mod error;
mod migrations;
mod password;
mod schema;
mod secret;
mod statement;
#[cfg(feature = "testing")]
pub mod testing;
mod tls;
mod writer;

pub use config::PostgresStoreConfig;
pub use crypto_store::PostgresCryptoStore;
pub use deadpool_postgres;
pub use error::{DatabaseError, Error, OpenStoreError};
