use std::{fmt, sync::mpsc, thread, time::Duration};

use tokio_postgres::{NoTls, error::SqlState};

use super::{TestingError, directory::random_hex};

/// A fresh database, dropped with the value, which waits for that for 5 seconds at most: if the process ends before
/// the server has dropped it, it stays. The value may outlive its server.
///
/// ```
/// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
/// let database = matrix_sdk_postgres::testing::database()?;
/// assert!(database.url().contains(database.name()));
/// # Ok(()) }
/// ```
pub struct TestDatabase {
    /// The URL of the server's maintenance database.
    server: String,
    socket: Option<String>,
    name: String,
}

impl fmt::Debug for TestDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the password.
        f.debug_struct("TestDatabase").field("name", &self.name).finish_non_exhaustive()
    }
}

impl TestDatabase {
    pub(super) fn create(server: &str, socket: Option<String>) -> Result<Self, TestingError> {
        let name = format!("mxsp_{}", random_hex(8)?);
        // template0 has no sessions, so several can be copied at once.
        let create = format!("CREATE DATABASE {name} TEMPLATE template0");
        execute(socket.as_deref().unwrap_or(server), create)?;
        Ok(Self { server: server.to_owned(), socket, name })
    }

    /// The database's name.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
    /// # use matrix_sdk_postgres::testing;
    /// let database = testing::database()?;
    /// assert!(database.url().ends_with(database.name()));
    /// # Ok(()) }
    /// ```
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The database's URL, over TCP on a throwaway server.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
    /// # use matrix_sdk_postgres::testing;
    /// let database = testing::database()?;
    /// assert!(database.url().starts_with("postgres://"));
    /// # Ok(()) }
    /// ```
    pub fn url(&self) -> String {
        with_database(&self.server, &self.name)
    }

    /// The database's URL over the server's Unix socket; on the server at `DATABASE_URL`, the same
    /// as [`url`](Self::url).
    ///
    /// ```no_run
    /// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
    /// # use matrix_sdk_postgres::testing;
    /// let database = testing::database()?;
    /// println!("psql {}", database.socket_url());
    /// # Ok(()) }
    /// ```
    pub fn socket_url(&self) -> String {
        with_database(self.socket.as_ref().unwrap_or(&self.server), &self.name)
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let url = self.socket.as_ref().unwrap_or(&self.server).clone();
        let sql = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        let (done, is_done) = mpsc::channel();
        thread::spawn(move || {
            // If the server is gone, so is the database.
            let _ = execute_here(&url, &sql);
            let _ = done.send(());
        });
        // DROP waits for logins in progress. One may belong to a task of this thread's runtime, which
        // continues only when this returns: then the login ends, and DROP, too.
        let _ = is_done.recv_timeout(DROP_LIMIT);
    }
}

/// How long dropping a database blocks the thread.
const DROP_LIMIT: Duration = Duration::from_secs(5);

/// Runs a statement on a thread of its own, so that it may be called from async code.
fn execute(url: &str, sql: String) -> Result<(), TestingError> {
    let url = url.to_owned();
    let ended_early = || TestingError::CreateDatabase("the thread ended early".to_owned());
    thread::spawn(move || execute_here(&url, &sql)).join().unwrap_or_else(|_| Err(ended_early()))
}

fn execute_here(url: &str, sql: &str) -> Result<(), TestingError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| TestingError::CreateDatabase(error.to_string()))?;
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.map_err(describe)?;
        let connection = tokio::spawn(connection);
        let result = client.batch_execute(sql).await.map_err(describe);
        drop(client);
        let _ = connection.await;
        result
    })
}

fn describe(error: tokio_postgres::Error) -> TestingError {
    match error.code() {
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) => TestingError::NoPrivilege,
        _ => TestingError::CreateDatabase(crate::DatabaseError::from(error).to_string()),
    }
}

/// The same connection string with another database; everything else stays, options included.
fn with_database(url: &str, name: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        // Pairs such as `host=… dbname=…`, of which the last wins.
        return format!("{url} dbname={name}");
    };
    let (rest, options) = rest.split_once('?').map_or((rest, None), |(rest, it)| (rest, Some(it)));
    let authority = rest.split_once('/').map_or(rest, |(authority, _)| authority);
    let mut kept = String::new();
    for option in options.into_iter().flat_map(|options| options.split('&')) {
        if !option.starts_with("dbname=") {
            kept.push(if kept.is_empty() { '?' } else { '&' });
            kept.push_str(option);
        }
    }
    format!("{scheme}://{authority}/{name}{kept}")
}

/// Percent-encodes characters that are special in a URL.
pub(super) fn encode(text: &str) -> String {
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| match safe(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}
