//! The account's one write path: what is staged, in which order it is sent, and how it commits.

pub(crate) mod atomically;
pub(crate) mod batch;
pub(crate) mod exchange;
pub(crate) mod lane;
mod open_transaction;
