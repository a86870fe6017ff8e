//! The tool as a person uses it: each test runs the binary, on a database of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod backup;
mod command_line;
mod delete_account;
mod disk_full;
mod doctor;
mod doctor_faults;
mod from_sqlite;
mod half_files;
mod homeserver;
mod import_sqlite;
mod interrupted;
mod keys;
mod keys_again;
mod migrate;
mod odd_paths;
mod procedures;
mod prune;
mod refusals;
mod rekey;
mod reset_device;
mod restore_refusals;
mod self_test;
mod standby;
mod stats;
mod support;
mod terminal;
mod verify;
