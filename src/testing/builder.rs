use std::path::PathBuf;

use super::{PostgresServer, TestingError};

/// Settings of a [`PostgresServer`].
///
/// ```no_run
/// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
/// use matrix_sdk_postgres::testing::PostgresServer;
///
/// let server = PostgresServer::builder()
///     .data_directory("bot-database")
///     .durable(true)
///     .setting("log_min_duration_statement", "100")
///     .start()?;
/// # drop(server); Ok(()) }
/// ```
#[derive(Debug, Clone, Default)]
pub struct PostgresServerBuilder {
    durable: bool,
    settings: Vec<(String, String)>,
    pub(super) data_directory: Option<PathBuf>,
    pub(super) bin_directory: Option<PathBuf>,
}

impl PostgresServerBuilder {
    /// Keeps PostgreSQL's own defaults of `fsync`, `synchronous_commit` and `full_page_writes`, so
    /// that a commit survives a crash of the machine. Off by default: tests are faster without.
    #[must_use]
    pub fn durable(mut self, durable: bool) -> Self {
        self.durable = durable;
        self
    }

    /// Sets one of PostgreSQL's settings, as in `postgresql.conf`.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Keeps the data in this directory, and goes on with what is there. By default they are
    /// thrown away. As root, the directory must be one that the user `postgres` can enter.
    #[must_use]
    pub fn data_directory(mut self, path: impl Into<PathBuf>) -> Self {
        self.data_directory = Some(path.into());
        self
    }

    /// Takes PostgreSQL's programs from this directory instead of searching for them.
    #[must_use]
    pub fn bin_directory(mut self, path: impl Into<PathBuf>) -> Self {
        self.bin_directory = Some(path.into());
        self
    }

    /// Starts the server and waits until it answers.
    ///
    /// # Errors
    ///
    /// See [`TestingError`].
    pub fn start(self) -> Result<PostgresServer, TestingError> {
        PostgresServer::start_with(self)
    }

    /// Ours, then the caller's: PostgreSQL takes the last.
    pub(super) fn effective_settings(&self) -> Vec<(String, String)> {
        let mut settings = vec![("listen_addresses", "127.0.0.1"), ("max_connections", "200")];
        if !self.durable {
            settings.extend([
                ("fsync", "off"),
                ("synchronous_commit", "off"),
                ("full_page_writes", "off"),
            ]);
        }
        let own = settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        own.chain(self.settings.iter().cloned()).collect()
    }
}
