//! An embedded PostgreSQL server in the data directory, for a trial without a database.

use std::{fmt::Display, net::TcpStream, path::Path};

use matrix_sdk_postgres::testing::PostgresServer;
use secrecy::{ExposeSecret, SecretString};
use tokio::{sync::Mutex, task::spawn_blocking};
use tracing::{info, warn};

use crate::errors::{BridgeError, exit_code};

/// Ends with this process, even after `kill -9`.
pub struct EmbeddedServer {
    url: SecretString,
    /// `None` while a blocking thread restarts it.
    server: Mutex<Option<PostgresServer>>,
}

impl EmbeddedServer {
    pub async fn start(directory: &Path) -> Result<Self, BridgeError> {
        let data = std::path::absolute(directory).map_err(refused)?;
        info!(directory = %data.display(), "starting the embedded PostgreSQL");
        let start = || PostgresServer::builder().data_directory(data).durable(true).start();
        let server = spawn_blocking(start).await.map_err(refused)?.map_err(refused)?;
        Ok(Self { url: server.url().into(), server: Mutex::new(Some(server)) })
    }

    pub fn url(&self) -> &SecretString {
        &self.url
    }

    /// Restart the server if it has died.
    pub async fn restart_if_dead(&self) -> Result<(), BridgeError> {
        let mut slot = self.server.lock().await;
        let Some(mut server) = slot.take() else { return Ok(()) };
        let attempt = spawn_blocking(move || {
            let mut started = Ok(());
            if TcpStream::connect(("127.0.0.1", server.port())).is_err() {
                warn!("the embedded PostgreSQL has died: restarting it");
                // Processes of the dead server may be left.
                server.kill();
                started = server.start_again();
            }
            (server, started)
        });
        let (server, started) = attempt.await.map_err(refused)?;
        started.map_err(refused)?;
        if server.url() != self.url.expose_secret() {
            return Err(refused("another program uses its port: restart the bridge"));
        }
        *slot = Some(server);
        Ok(())
    }

    pub async fn stop(self) {
        let server = self.server.into_inner();
        // Stopping blocks. A failure is ignored: the process ends anyway.
        let _ = spawn_blocking(move || drop(server)).await;
    }
}

fn refused(reason: impl Display) -> BridgeError {
    BridgeError::fatal(
        exit_code::DATABASE,
        format!(
            "the embedded PostgreSQL cannot be started: {reason}. To use another server, set \
             DATABASE_URL"
        ),
    )
}
