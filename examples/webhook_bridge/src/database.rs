//! Where PostgreSQL is: a server that somebody runs, or a private one that we start.

use std::path::Path;

use secrecy::SecretString;

use crate::{
    config::Database,
    errors::{BridgeError, exit_code},
};

#[cfg(feature = "embedded-postgres")]
type Server = matrix_sdk_postgres::testing::PostgresServer;
#[cfg(not(feature = "embedded-postgres"))]
type Server = std::convert::Infallible;

/// The database's URL, and the private server while it runs.
pub struct Located {
    pub url: SecretString,
    server: Option<Server>,
}

impl Located {
    /// Find the database, or start the private one.
    pub async fn new(database: &Database) -> Result<Self, BridgeError> {
        match database {
            Database::Url(url) => Ok(Self { url: url.clone(), server: None }),
            Database::Embedded(directory) => start(directory).await,
        }
    }

    /// Stop the private server, if there is one.
    pub async fn stop(self) {
        if let Some(server) = self.server {
            let _ = tokio::task::spawn_blocking(move || drop(server)).await;
        }
    }
}

#[cfg(feature = "embedded-postgres")]
async fn start(directory: &Path) -> Result<Located, BridgeError> {
    let refused = |reason: String| {
        BridgeError::last(
            exit_code::DATABASE,
            format!(
                "the private PostgreSQL in {} cannot be started: {reason}; or set DATABASE_URL to \
                 a server of yours",
                directory.display()
            ),
        )
    };
    let data = std::path::absolute(directory).map_err(|error| refused(error.to_string()))?;
    tracing::info!(directory = %data.display(), "starting the private PostgreSQL");
    let start = move || Server::builder().data_directory(data).durable(true).start();
    let server = tokio::task::spawn_blocking(start).await;
    let server = server.map_err(|error| refused(error.to_string()))?;
    let server = server.map_err(|error| refused(error.to_string()))?;
    Ok(Located { url: server.url().into(), server: Some(server) })
}

#[cfg(not(feature = "embedded-postgres"))]
async fn start(_: &Path) -> Result<Located, BridgeError> {
    Err(BridgeError::last(
        exit_code::CONFIGURATION,
        "DATABASE_URL is not set, and this bridge was built without the embedded PostgreSQL: set \
         it, as in DATABASE_URL=postgres://bot@localhost/bots",
    ))
}
