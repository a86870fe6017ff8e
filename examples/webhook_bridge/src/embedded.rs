//! A private PostgreSQL in the data directory, for those who run none.

use std::{fmt::Display, net::TcpStream, path::Path};

use matrix_sdk_postgres::testing::PostgresServer;
use secrecy::{ExposeSecret, SecretString};
use tokio::{sync::Mutex, task::spawn_blocking};
use tracing::{info, warn};

use crate::errors::{BridgeError, exit_code};

/// It ends with this process, however that ends.
pub struct PrivateServer {
    url: SecretString,
    /// Empty while a blocking thread has it.
    server: Mutex<Option<PostgresServer>>,
}

impl PrivateServer {
    pub async fn start(directory: &Path) -> Result<Self, BridgeError> {
        let data = std::path::absolute(directory).map_err(refused)?;
        info!(directory = %data.display(), "starting the private PostgreSQL");
        let start = || PostgresServer::builder().data_directory(data).durable(true).start();
        let server = spawn_blocking(start).await.map_err(refused)?.map_err(refused)?;
        Ok(Self { url: server.url().into(), server: Mutex::new(Some(server)) })
    }

    pub fn url(&self) -> &SecretString {
        &self.url
    }

    /// Start the server again if it has died.
    pub async fn revive(&self) -> Result<(), BridgeError> {
        let mut slot = self.server.lock().await;
        let Some(mut server) = slot.take() else { return Ok(()) };
        let attempt = spawn_blocking(move || {
            let mut started = Ok(());
            if TcpStream::connect(("127.0.0.1", server.port())).is_err() {
                warn!("the private PostgreSQL has died: starting it again");
                // What is left of it has to go first.
                server.kill();
                started = server.start_again();
            }
            (server, started)
        });
        let (server, started) = attempt.await.map_err(refused)?;
        started.map_err(refused)?;
        if server.url() != self.url.expose_secret() {
            return Err(refused("another program has taken its port: start the bridge again"));
        }
        *slot = Some(server);
        Ok(())
    }

    pub async fn stop(self) {
        let server = self.server.into_inner();
        // Stopping blocks; that it failed would change nothing.
        let _ = spawn_blocking(move || drop(server)).await;
    }
}

fn refused(reason: impl Display) -> BridgeError {
    BridgeError::last(
        exit_code::DATABASE,
        format!(
            "the private PostgreSQL cannot be started: {reason}. Or set DATABASE_URL to a server \
             of yours"
        ),
    )
}
