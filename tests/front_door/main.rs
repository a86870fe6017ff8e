//! What somebody meets first: the README's links and code, and the texts of the first errors.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod links;
mod snippets;
mod texts;
#[cfg(feature = "rustls")]
mod trust;
