use tokio_postgres::{Config, NoTls, config::Host};

use super::{TestingError, directory::random_hex};

/// A database of its own, dropped with the value.
///
/// ```
/// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
/// let database = matrix_sdk_postgres::testing::database()?;
/// assert!(database.url().ends_with(database.name()));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct TestDatabase {
    /// The server, through a database that is always there.
    server: String,
    socket: Option<String>,
    name: String,
}

impl TestDatabase {
    pub(super) fn create(server: &str, socket: Option<String>) -> Result<Self, TestingError> {
        let name = format!("mxsp_{}", random_hex(8)?);
        // template0 has no sessions, so several can be copied at once.
        execute(server, format!("CREATE DATABASE {name} TEMPLATE template0"))
            .map_err(TestingError::CreateDatabase)?;
        Ok(Self { server: server.to_owned(), socket, name })
    }

    /// The database's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The database's URL, over TCP on a throwaway server.
    pub fn url(&self) -> String {
        with_database(&self.server, &self.name)
    }

    /// The database's URL over the server's Unix socket; on the server at `DATABASE_URL`, the same
    /// as [`url`](Self::url).
    pub fn socket_url(&self) -> String {
        with_database(self.socket.as_ref().unwrap_or(&self.server), &self.name)
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        // A server that is gone has taken the database along.
        let _ = execute(&self.server, format!("DROP DATABASE {} WITH (FORCE)", self.name));
    }
}

/// Runs a statement on a thread of its own, so that it may be called from async code.
fn execute(url: &str, sql: String) -> Result<(), String> {
    let url = url.to_owned();
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| error.to_string())?;
        runtime.block_on(async {
            let connected = tokio_postgres::connect(&url, NoTls).await;
            let (client, connection) = connected.map_err(describe)?;
            let connection = tokio::spawn(connection);
            let result = client.batch_execute(&sql).await.map_err(describe);
            drop(client);
            let _ = connection.await;
            result
        })
    };
    std::thread::spawn(run).join().unwrap_or_else(|_| Err("the thread ended early".to_owned()))
}

fn describe(error: tokio_postgres::Error) -> String {
    crate::DatabaseError::from(error).to_string()
}

/// The same server, user and password, another database.
fn with_database(url: &str, name: &str) -> String {
    let Ok(config) = url.parse::<Config>() else { return url.to_owned() };
    let encode = |text: &str| -> String {
        let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        text.bytes()
            .map(|byte| match safe(byte) {
                true => char::from(byte).to_string(),
                false => format!("%{byte:02X}"),
            })
            .collect()
    };
    let user = config.get_user().map(encode).unwrap_or_default();
    let password = config
        .get_password()
        .map(|password| format!(":{}", encode(&String::from_utf8_lossy(password))));
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(host)) if host.contains(':') => format!("[{host}]"),
        Some(Host::Tcp(host)) => host.clone(),
        Some(Host::Unix(path)) => encode(&path.to_string_lossy()),
        None => String::new(),
    };
    let port = config.get_ports().first().map_or(5432, |port| *port);
    format!("postgres://{user}{}@{host}:{port}/{name}", password.unwrap_or_default())
}
