//! Histories of calls, and whether a store may answer so: random ones of one process against a model, and
//! concurrent ones of several processes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod concurrent;
mod random;
