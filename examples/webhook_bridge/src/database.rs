//! Where PostgreSQL is: a server that somebody runs, or a private one that we start.

use matrix_sdk_postgres::PostgresStoreConfig;
use secrecy::{ExposeSecret, SecretString};

#[cfg(feature = "embedded-postgres")]
use crate::embedded::PrivateServer;
use crate::{config::Database, errors::BridgeError};

/// A database that can be connected to.
pub enum Located {
    Elsewhere(SecretString),
    /// Where the environment says.
    Environment,
    #[cfg(feature = "embedded-postgres")]
    Private(Box<PrivateServer>),
}

impl Located {
    /// Find the database, or start the private one.
    pub async fn new(database: &Database) -> Result<Self, BridgeError> {
        match database {
            Database::Url(url) => Ok(Self::Elsewhere(url.clone())),
            Database::Environment => Ok(Self::Environment),
            #[cfg(feature = "embedded-postgres")]
            Database::Embedded(directory) => {
                Ok(Self::Private(Box::new(PrivateServer::start(directory).await?)))
            }
            #[cfg(not(feature = "embedded-postgres"))]
            Database::Embedded(directory) => Err(BridgeError::last(
                crate::errors::exit_code::CONFIGURATION,
                format!(
                    "this bridge was built without the private PostgreSQL that would use {}: set \
                     DATABASE_URL, as in DATABASE_URL=postgres://bot@localhost/bots",
                    directory.display()
                ),
            )),
        }
    }

    /// The store's settings for an account in it.
    pub fn settings(&self, account: &str) -> Result<PostgresStoreConfig, BridgeError> {
        Ok(match self {
            Self::Elsewhere(url) => PostgresStoreConfig::new(url.expose_secret(), account),
            Self::Environment => PostgresStoreConfig::from_env(account)?,
            #[cfg(feature = "embedded-postgres")]
            Self::Private(server) => {
                PostgresStoreConfig::new(server.url().expose_secret(), account)
            }
        })
    }

    /// Start a private server again if it has died: nobody else will.
    pub async fn revive(&self) -> Result<(), BridgeError> {
        match self {
            Self::Elsewhere(_) | Self::Environment => Ok(()),
            #[cfg(feature = "embedded-postgres")]
            Self::Private(server) => server.revive().await,
        }
    }

    /// Stop a private server.
    pub async fn stop(self) {
        match self {
            Self::Elsewhere(_) | Self::Environment => {}
            #[cfg(feature = "embedded-postgres")]
            Self::Private(server) => server.stop().await,
        }
    }
}
