//! Slow tests: they write many rows, or start a homeserver.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod buffers;
mod large_batches;
mod plans;
mod size;
mod streaming;
mod synapse;
