mod running;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use super::{
    PostgresServerBuilder, TestDatabase, TestingError,
    binaries::Binaries,
    database::encode,
    directory::{ServerDirectory, problem},
    process::Postmaster,
};

/// A private PostgreSQL server. It is stopped when the value is dropped or the process ends, even by
/// `kill -9`; throwaway data are removed.
///
/// Everything here blocks, dropping included: from async code, use `spawn_blocking`.
///
/// ```
/// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
/// use matrix_sdk_postgres::testing::PostgresServer;
///
/// let mut server = PostgresServer::start()?;
/// let database = server.create_database()?;
/// assert!(server.version() >= 13);
/// server.kill(); // as a crash would
/// server.start_again()?; // the same data, at the same address
/// # drop(database); Ok(()) }
/// ```
pub struct PostgresServer {
    binaries: Binaries,
    arguments: Vec<String>,
    password: String,
    port: u16,
    postmaster: Option<Postmaster>,
    directory: ServerDirectory,
}

impl fmt::Debug for PostgresServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the password.
        f.debug_struct("PostgresServer")
            .field("version", &self.version())
            .field("data_directory", &self.data_directory())
            .field("port", &self.port)
            .field("pid", &self.pid())
            .finish_non_exhaustive()
    }
}

impl PostgresServer {
    /// Starts a throwaway server.
    ///
    /// # Errors
    ///
    /// See [`TestingError`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
    /// # use matrix_sdk_postgres::testing::PostgresServer;
    /// let server = PostgresServer::start()?;
    /// println!("{}", server.url());
    /// # Ok(()) }
    /// ```
    pub fn start() -> Result<Self, TestingError> {
        Self::builder().start()
    }

    /// A server with other settings.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
    /// # use matrix_sdk_postgres::testing::PostgresServer;
    /// let server = PostgresServer::builder().durable(true).start()?;
    /// # drop(server); Ok(()) }
    /// ```
    pub fn builder() -> PostgresServerBuilder {
        PostgresServerBuilder::default()
    }

    pub(super) fn new(
        binaries: Binaries,
        directory: ServerDirectory,
        arguments: Vec<String>,
    ) -> Result<Self, TestingError> {
        let password = directory.password()?;
        fs::write(directory.log(), "").map_err(|error| problem(&directory.log(), &error))?;
        let mut server =
            Self { binaries, arguments, password, port: 0, postmaster: None, directory };
        server.start_again()?;
        Ok(server)
    }

    /// The URL of the database `postgres` over TCP, as superuser, with the password.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
    /// # use matrix_sdk_postgres::testing::PostgresServer;
    /// let server = PostgresServer::start()?;
    /// assert!(server.url().ends_with("/postgres"));
    /// # Ok(()) }
    /// ```
    pub fn url(&self) -> String {
        format!("postgres://postgres:{}@127.0.0.1:{}/postgres", self.password, self.port)
    }

    /// The URL of the database `postgres` over the Unix socket, as superuser. Connecting this way
    /// is faster, as there is no password to check.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
    /// # use matrix_sdk_postgres::testing::PostgresServer;
    /// let server = PostgresServer::start()?;
    /// assert!(server.socket_url().contains("%2F"));
    /// # Ok(()) }
    /// ```
    pub fn socket_url(&self) -> String {
        let directory = encode(&self.socket_directory().to_string_lossy());
        format!("postgres://postgres@{directory}:{}/postgres", self.port)
    }

    /// The TCP port on 127.0.0.1, which is also part of the socket's name.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
    /// # use matrix_sdk_postgres::testing::PostgresServer;
    /// let server = PostgresServer::start()?;
    /// assert_ne!(server.port(), 0);
    /// # Ok(()) }
    /// ```
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of the Unix socket. Only the server's user (and root) may enter it.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
    /// # use matrix_sdk_postgres::testing::PostgresServer;
    /// let server = PostgresServer::start()?;
    /// assert!(server.socket_directory().is_dir());
    /// # Ok(()) }
    /// ```
    pub fn socket_directory(&self) -> &Path {
        &self.directory.scratch.path
    }

    /// The cluster's data directory.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
    /// # use matrix_sdk_postgres::testing::PostgresServer;
    /// let server = PostgresServer::start()?;
    /// assert!(server.data_directory().join("PG_VERSION").is_file());
    /// # Ok(()) }
    /// ```
    pub fn data_directory(&self) -> PathBuf {
        self.directory.data()
    }

    /// The postmaster's process id, or `None` while the server is stopped.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
    /// # use matrix_sdk_postgres::testing::PostgresServer;
    /// let server = PostgresServer::start()?;
    /// assert!(server.pid().is_some());
    /// # Ok(()) }
    /// ```
    pub fn pid(&self) -> Option<u32> {
        self.postmaster.as_ref().map(Postmaster::id)
    }

    /// PostgreSQL's major version.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
    /// # use matrix_sdk_postgres::testing::PostgresServer;
    /// let server = PostgresServer::start()?;
    /// assert!(server.version() >= 13);
    /// # Ok(()) }
    /// ```
    pub fn version(&self) -> u32 {
        self.binaries.major
    }

    /// The server's log since this value was created.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
    /// # use matrix_sdk_postgres::testing::PostgresServer;
    /// let server = PostgresServer::start()?;
    /// assert!(server.log().contains("ready to accept connections"));
    /// # Ok(()) }
    /// ```
    pub fn log(&self) -> String {
        fs::read(self.directory.log())
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// Creates a fresh database on this server, dropped when the value is dropped.
    ///
    /// # Errors
    ///
    /// [`TestingError::CreateDatabase`] when the server does not answer.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
    /// # use matrix_sdk_postgres::testing::PostgresServer;
    /// let server = PostgresServer::start()?;
    /// let database = server.create_database()?;
    /// println!("{}", database.url());
    /// # Ok(()) }
    /// ```
    pub fn create_database(&self) -> Result<TestDatabase, TestingError> {
        TestDatabase::create(&self.url(), Some(self.socket_url()))
    }

    /// Shuts the server down (a fast shutdown), keeping its data. It can be started again.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
    /// # use matrix_sdk_postgres::testing::PostgresServer;
    /// let mut server = PostgresServer::start()?;
    /// server.stop();
    /// assert_eq!(server.pid(), None);
    /// # Ok(()) }
    /// ```
    pub fn stop(&mut self) {
        self.end(|postmaster| postmaster.stop("INT"));
    }

    /// Kills the server as a crash would, and waits until its last process is gone.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
    /// # use matrix_sdk_postgres::testing::PostgresServer;
    /// let mut server = PostgresServer::start()?;
    /// server.kill();
    /// assert_eq!(server.pid(), None);
    /// # Ok(()) }
    /// ```
    pub fn kill(&mut self) {
        self.end(Postmaster::kill);
    }

    /// Shuts the server down and starts it again, with the same data at the same address.
    ///
    /// # Errors
    ///
    /// See [`TestingError`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
    /// # use matrix_sdk_postgres::testing::PostgresServer;
    /// let mut server = PostgresServer::start()?;
    /// server.restart()?;
    /// # Ok(()) }
    /// ```
    pub fn restart(&mut self) -> Result<(), TestingError> {
        self.stop();
        self.start_again()
    }
}
