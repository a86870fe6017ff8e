use std::path::PathBuf;

use super::{PostgresServer, TestingError, binaries::Binaries, directory::ServerDirectory};

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
    data_directory: Option<PathBuf>,
    bin_directory: Option<PathBuf>,
}

impl PostgresServerBuilder {
    /// Keeps PostgreSQL's own defaults of `fsync`, `synchronous_commit` and `full_page_writes`, so
    /// that a commit survives a crash of the machine. Off by default: tests are faster without.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
    /// # use matrix_sdk_postgres::testing::PostgresServer;
    /// let server = PostgresServer::builder().durable(true).start()?;
    /// # drop(server); Ok(()) }
    /// ```
    #[must_use]
    pub fn durable(mut self, durable: bool) -> Self {
        self.durable = durable;
        self
    }

    /// Sets one of PostgreSQL's settings, as in `postgresql.conf`.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
    /// # use matrix_sdk_postgres::testing::PostgresServer;
    /// let server = PostgresServer::builder().setting("log_statement", "all").start()?;
    /// # drop(server); Ok(()) }
    /// ```
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Keeps the data in this directory, and uses the data that are there. By default the data are
    /// deleted with the server.
    ///
    /// The directory is created if it is missing; one with other files in it is refused. As root, it
    /// must be one that the user `postgres` can enter. If the process that used it before was killed,
    /// its server gets ten seconds to end.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
    /// # use matrix_sdk_postgres::testing::PostgresServer;
    /// let server = PostgresServer::builder().data_directory("bot-database").start()?;
    /// # drop(server); Ok(()) }
    /// ```
    #[must_use]
    pub fn data_directory(mut self, path: impl Into<PathBuf>) -> Self {
        self.data_directory = Some(path.into());
        self
    }

    /// Takes PostgreSQL's programs from this directory instead of searching for them.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
    /// # use matrix_sdk_postgres::testing::PostgresServer;
    /// let server = PostgresServer::builder().bin_directory("/opt/postgresql/bin").start()?;
    /// # drop(server); Ok(()) }
    /// ```
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
    ///
    /// ```no_run
    /// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
    /// # use matrix_sdk_postgres::testing::PostgresServer;
    /// let server = PostgresServer::builder().start()?;
    /// # drop(server); Ok(()) }
    /// ```
    pub fn start(self) -> Result<PostgresServer, TestingError> {
        let cluster = self.data_directory.as_ref().map(|path| path.join("data"));
        let binaries = Binaries::find(self.bin_directory.as_deref(), cluster.as_deref())?;
        let directory = match &self.data_directory {
            Some(path) => ServerDirectory::persistent(path, &binaries)?,
            None => ServerDirectory::temporary(&binaries)?,
        };
        PostgresServer::new(binaries, directory, self.arguments())
    }

    /// The settings as arguments, so that the files of a persistent cluster are not changed.
    fn arguments(&self) -> Vec<String> {
        // The log is searched for English texts.
        let mut settings = vec![
            ("listen_addresses", "127.0.0.1"),
            ("max_connections", "200"),
            ("lc_messages", "C"),
        ];
        if !self.durable {
            settings.extend([
                ("fsync", "off"),
                ("synchronous_commit", "off"),
                ("full_page_writes", "off"),
            ]);
        }
        let own = self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let all = settings.into_iter().chain(own);
        all.flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]).collect()
    }
}
