//! Where PostgreSQL is: a server that somebody runs, or a private one that we start.

use secrecy::SecretString;

#[cfg(feature = "embedded-postgres")]
use crate::embedded::PrivateServer;
use crate::{config::Database, errors::BridgeError};

/// A database that can be connected to.
pub enum Located {
    Elsewhere(SecretString),
    #[cfg(feature = "embedded-postgres")]
    Private(PrivateServer),
}

impl Located {
    /// Find the database, or start the private one.
    pub async fn new(database: &Database) -> Result<Self, BridgeError> {
        match database {
            Database::Url(url) => Ok(Self::Elsewhere(url.clone())),
            #[cfg(feature = "embedded-postgres")]
            Database::Embedded(directory) => {
                Ok(Self::Private(PrivateServer::start(directory).await?))
            }
            #[cfg(not(feature = "embedded-postgres"))]
            Database::Embedded(_) => Err(BridgeError::last(
                crate::errors::exit_code::CONFIGURATION,
                "DATABASE_URL is not set, and this bridge was built without the private \
                 PostgreSQL: set it, as in DATABASE_URL=postgres://bot@localhost/bots",
            )),
        }
    }

    pub fn url(&self) -> &SecretString {
        match self {
            Self::Elsewhere(url) => url,
            #[cfg(feature = "embedded-postgres")]
            Self::Private(server) => server.url(),
        }
    }

    /// Start a private server again if it has died: nobody else will.
    pub async fn revive(&self) -> Result<(), BridgeError> {
        match self {
            Self::Elsewhere(_) => Ok(()),
            #[cfg(feature = "embedded-postgres")]
            Self::Private(server) => server.revive().await,
        }
    }

    /// Stop a private server.
    pub async fn stop(self) {
        match self {
            Self::Elsewhere(_) => {}
            #[cfg(feature = "embedded-postgres")]
            Self::Private(server) => server.stop().await,
        }
    }
}
