//! The PostgreSQL server: an external one, or an embedded one that the bridge starts.

use matrix_sdk_postgres::PostgresStoreConfig;
use secrecy::{ExposeSecret, SecretString};

#[cfg(feature = "embedded-postgres")]
use crate::embedded::EmbeddedServer;
use crate::{config::Database, errors::BridgeError};

/// A server that accepts connections.
pub enum DatabaseServer {
    Url(SecretString),
    /// Given by `DATABASE_URL` and libpq's variables.
    Environment,
    #[cfg(feature = "embedded-postgres")]
    Embedded(Box<EmbeddedServer>),
}

impl DatabaseServer {
    /// Select the configured server, or start the embedded one.
    pub async fn new(database: &Database) -> Result<Self, BridgeError> {
        match database {
            Database::Url(url) => Ok(Self::Url(url.clone())),
            Database::Environment => Ok(Self::Environment),
            #[cfg(feature = "embedded-postgres")]
            Database::Embedded(directory) => {
                Ok(Self::Embedded(Box::new(EmbeddedServer::start(directory).await?)))
            }
            #[cfg(not(feature = "embedded-postgres"))]
            Database::Embedded(directory) => Err(BridgeError::fatal(
                crate::errors::exit_code::CONFIGURATION,
                format!(
                    "this bridge was built without the feature embedded-postgres, which would use \
                     {}: set DATABASE_URL, as in DATABASE_URL=postgres://bot@localhost/bots",
                    directory.display()
                ),
            )),
        }
    }

    /// The store's settings for an account on this server.
    pub fn settings(&self, account: &str) -> Result<PostgresStoreConfig, BridgeError> {
        Ok(match self {
            Self::Url(url) => PostgresStoreConfig::new(url.expose_secret(), account),
            Self::Environment => PostgresStoreConfig::from_env(account)?,
            #[cfg(feature = "embedded-postgres")]
            Self::Embedded(server) => {
                PostgresStoreConfig::new(server.url().expose_secret(), account)
            }
        })
    }

    /// Restart the embedded server if it has died.
    pub async fn restart_if_dead(&self) -> Result<(), BridgeError> {
        match self {
            Self::Url(_) | Self::Environment => Ok(()),
            #[cfg(feature = "embedded-postgres")]
            Self::Embedded(server) => server.restart_if_dead().await,
        }
    }

    /// Stop the embedded server.
    pub async fn stop(self) {
        match self {
            Self::Url(_) | Self::Environment => {}
            #[cfg(feature = "embedded-postgres")]
            Self::Embedded(server) => server.stop().await,
        }
    }
}
