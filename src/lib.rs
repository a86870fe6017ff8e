// The README's links are relative, which works in the repository and on crates.io, but not on docs.rs. So each
// is defined here as a URL of this version's tag: Markdown uses the first of duplicate link definitions.
#![doc = concat!("[webhook_minimal]: ", env!("CARGO_PKG_REPOSITORY"), "/blob/v", env!("CARGO_PKG_VERSION"), "/examples/webhook_minimal.rs")]
#![doc = concat!("[client_bot]: ", env!("CARGO_PKG_REPOSITORY"), "/blob/v", env!("CARGO_PKG_VERSION"), "/examples/client_bot.rs")]
#![doc = concat!("[outbox_bot]: ", env!("CARGO_PKG_REPOSITORY"), "/blob/v", env!("CARGO_PKG_VERSION"), "/examples/outbox_bot.rs")]
#![doc = concat!("[bridge]: ", env!("CARGO_PKG_REPOSITORY"), "/blob/v", env!("CARGO_PKG_VERSION"), "/examples/webhook_bridge")]
#![doc = concat!("[schema]: ", env!("CARGO_PKG_REPOSITORY"), "/blob/v", env!("CARGO_PKG_VERSION"), "/docs/schema.md")]
#![doc = concat!("[threats]: ", env!("CARGO_PKG_REPOSITORY"), "/blob/v", env!("CARGO_PKG_VERSION"), "/docs/threat-model.md")]
#![doc = concat!("[operations]: ", env!("CARGO_PKG_REPOSITORY"), "/blob/v", env!("CARGO_PKG_VERSION"), "/docs/operations.md")]
#![doc = concat!("[checklist]: ", env!("CARGO_PKG_REPOSITORY"), "/blob/v", env!("CARGO_PKG_VERSION"), "/docs/operations.md#production-checklist")]
#![doc = concat!("[from_sqlite]: ", env!("CARGO_PKG_REPOSITORY"), "/blob/v", env!("CARGO_PKG_VERSION"), "/docs/from-sqlite.md")]
#![doc = concat!("[troubleshooting]: ", env!("CARGO_PKG_REPOSITORY"), "/blob/v", env!("CARGO_PKG_VERSION"), "/docs/troubleshooting.md")]
#![doc = concat!("[security]: ", env!("CARGO_PKG_REPOSITORY"), "/blob/v", env!("CARGO_PKG_VERSION"), "/SECURITY.md")]
#![doc = concat!("[contributing]: ", env!("CARGO_PKG_REPOSITORY"), "/blob/v", env!("CARGO_PKG_VERSION"), "/CONTRIBUTING.md")]
#![doc = concat!("[monitoring]: ", env!("CARGO_PKG_REPOSITORY"), "/blob/v", env!("CARGO_PKG_VERSION"), "/docs/operations.md#monitoring")]
#![doc = concat!("[rollback]: ", env!("CARGO_PKG_REPOSITORY"), "/blob/v", env!("CARGO_PKG_VERSION"), "/docs/operations.md#rollback-detection")]
#![doc = concat!("[reliability]: ", env!("CARGO_PKG_REPOSITORY"), "/blob/v", env!("CARGO_PKG_VERSION"), "/docs/reliability.md")]
#![doc = concat!("[benchmarks]: ", env!("CARGO_PKG_REPOSITORY"), "/blob/v", env!("CARGO_PKG_VERSION"), "/docs/benchmarks.md")]
#![doc = concat!("[architecture]: ", env!("CARGO_PKG_REPOSITORY"), "/blob/v", env!("CARGO_PKG_VERSION"), "/docs/architecture.md")]
#![doc = concat!("[tool]: ", env!("CARGO_PKG_REPOSITORY"), "/blob/v", env!("CARGO_PKG_VERSION"), "/tool")]
#![doc = concat!("[releasing]: ", env!("CARGO_PKG_REPOSITORY"), "/blob/v", env!("CARGO_PKG_VERSION"), "/RELEASING.md")]
#![doc = concat!("[licence]: ", env!("CARGO_PKG_REPOSITORY"), "/blob/v", env!("CARGO_PKG_VERSION"), "/LICENSE")]
#![doc = concat!("[bot_day]: ", env!("CARGO_PKG_REPOSITORY"), "/raw/v", env!("CARGO_PKG_VERSION"), "/docs/benchmarks/bot_day.svg")]
//!
#![doc = include_str!("../README.md")]
//! # The model
//!
//! The concepts behind the API; [docs/architecture.md][architecture] describes them in full.
//!
//! - **One account, one owner.** [`PostgresStores::open`], or the shortcuts of [`PostgresCryptoStore`],
//!   claim the account: a random *owner token* in the database identifies the owner. Every write
//!   transaction first compares its token and fails as a whole if there is another:
//!   [`Error::Superseded`].
//! - **One lane.** All writes of a store go through one task, in the order of the calls. A write that was
//!   begun is finished even when its future is dropped, and queued writes share a commit (group commit).
//!   Message indices are reserved ahead, so most sent messages need no commit.
//! - **One round trip.** `BEGIN`, the checks, one statement for each table and `COMMIT` leave together:
//!
//!   ```text
//!   store                                         server
//!     | BEGIN; guard; INSERT …; count; COMMIT  ->  |
//!     |                                            |  runs them in order
//!     |  <-  five answers                          |
//!   ```
//!
//!   A read is one query on a shared connection, or none: the owner serves cached rows from memory, as no
//!   other process can change them.
//! - **Fencing.** The last statement compares and swaps the lane's *position*: its count of commits, and the
//!   id of the last one. A transaction that arrives late, is repeated, or was sent by a copy of the process
//!   finds another position and changes nothing.
//! - **Unknown outcomes are resolved.** When the answer to `COMMIT` is lost, the store changes the position
//!   and reads whether the transaction was counted. It is retried only if it was not.
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

/// A second store, which shows that the engine supports more than one.
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

/// Compiles the page's code with the tests.
#[cfg(doctest)]
#[doc = include_str!("../docs/operations.md")]
mod operations {}
