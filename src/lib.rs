// The README's links are relative, and lead nowhere from docs.rs. Markdown uses the first of two definitions.
#![doc = concat!("[schema]: https://docs.rs/crate/matrix-sdk-postgres/", env!("CARGO_PKG_VERSION"), "/source/docs/schema.md")]
#![doc = concat!("[threats]: https://docs.rs/crate/matrix-sdk-postgres/", env!("CARGO_PKG_VERSION"), "/source/docs/threat-model.md")]
#![doc = concat!("[operations]: https://docs.rs/crate/matrix-sdk-postgres/", env!("CARGO_PKG_VERSION"), "/source/docs/operations.md")]
#![doc = concat!("[reliability]: https://docs.rs/crate/matrix-sdk-postgres/", env!("CARGO_PKG_VERSION"), "/source/docs/reliability.md")]
#![doc = concat!("[benchmarks]: https://docs.rs/crate/matrix-sdk-postgres/", env!("CARGO_PKG_VERSION"), "/source/docs/benchmarks.md")]
#![doc = concat!("[architecture]: https://docs.rs/crate/matrix-sdk-postgres/", env!("CARGO_PKG_VERSION"), "/source/docs/architecture.md")]
#![doc = concat!("[licence]: https://docs.rs/crate/matrix-sdk-postgres/", env!("CARGO_PKG_VERSION"), "/source/LICENSE")]
//! [bridge]: #see-it-work
//!
#![doc = include_str!("../README.md")]
//! # The model
//!
//! What the API follows from; [docs/architecture.md][architecture] has the whole of it.
//!
//! - **One opening, one owner.** [`PostgresStores::open`], or the short ways of [`PostgresCryptoStore`],
//!   claim the account: a random *owner token* in the database says whose it is. Every write transaction
//!   shows the token first and fails as a whole when it is another's: [`Error::Superseded`].
//! - **One lane.** All writes of a store go through one task, in the order of the calls. A write that was
//!   begun is finished even when its future is dropped, and writes that queue share a commit.
//! - **One round trip.** `BEGIN`, the checks, one statement for each table and `COMMIT` leave together:
//!
//!   ```text
//!   store                                         server
//!     | BEGIN; guard; INSERT …; count; COMMIT  ->  |
//!     |                                            |  runs them in order
//!     |  <-  five answers                          |
//!   ```
//!
//!   A read is one statement on a connection that readers share, or none: the owner answers from memory
//!   what no one else can change.
//! - **Fencing.** The last statement compares and swaps the lane's *position*: its count of commits, and the
//!   id of the last one. A transaction that comes late, is repeated, or belongs to a copy of the process
//!   finds another position and changes nothing.
//! - **Unknown outcomes are asked for.** When the answer to `COMMIT` is lost, the store moves the position and
//!   asks whether the transaction was counted. It is repeated only if it was not.
//! - **After an error, reopen.** The caller's memory may then be ahead of the database, so the store refuses
//!   writes with [`Error::ReopenRequired`] until `reopen()`.

mod account;
pub mod admin;
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
    secret::KeyRequest,
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
