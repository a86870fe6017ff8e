//! Integration tests of the public interface. `tests/README.md` lists all tests by subject.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod accounts;
mod admin;
mod atomically;
mod bot_day;
mod cache;
mod config;
mod connecting;
mod contract;
mod deferred;
mod docs;
mod format;
mod front_door;
mod large_saves;
mod layout;
mod lifecycle;
mod machine;
mod ownership;
mod prefetch;
mod preparing;
mod readers;
mod reserved;
mod round_trips;
mod scope;
mod secrecy;
mod small_tables;
mod spans;
mod statements;
mod testing_server;
mod testing_server_owner;
#[cfg(feature = "rustls")]
mod tls;
mod upstream_suite;
mod writer;
