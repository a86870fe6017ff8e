//! Histories of calls: random ones of one process, compared with a model, and concurrent ones of several
//! processes, checked for linearizability.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod concurrent;
mod random;
