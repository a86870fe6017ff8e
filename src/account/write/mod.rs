//! The write path: staging, the writer lane, and the commit.

pub(crate) mod atomically;
pub(crate) mod batch;
pub(crate) mod exchange;
pub(crate) mod lane;
mod open_transaction;
