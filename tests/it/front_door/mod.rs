//! What a newcomer meets first: the README's links and code, and the texts of the first errors.

mod links;
mod snippets;
mod texts;
#[cfg(feature = "rustls")]
mod trust;
