//! Rule 18: nothing readable at rest, and nothing readable in logs, errors and `Debug`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;

mod at_rest;
mod logs;
