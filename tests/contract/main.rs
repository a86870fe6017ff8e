//! The rules learnt from other stores' bugs, seen through `CryptoStore`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;

mod backup;
mod damaged_rows;
mod hostile_ids;
mod key_requests;
mod large_batches;
mod leases;
mod paging;
mod same_key_again;
mod swapped_rows;
