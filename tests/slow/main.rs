//! Tests that take long, for the rows they write or for the servers they start.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod buffers;
mod large_batches;
mod plans;
mod size;
mod streaming;
mod synapse;
