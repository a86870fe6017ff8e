//! Serves HTTP with limits that `axum::serve` does not have, so that idle clients do not use up connections.

use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::errors::{BridgeError, exit_code};

/// Connections at a time; others wait.
const MAX_CONNECTIONS: usize = 128;
/// The headers of the next request must arrive within this time.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Afterwards a connection takes no more requests.
const MAX_AGE: Duration = Duration::from_secs(5 * 60);
/// The last response must be read within this time.
const LAST_RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);

/// Listen on an address, which is that of a setting.
pub async fn bind(address: SocketAddr, setting: &str) -> Result<TcpListener, BridgeError> {
    TcpListener::bind(address).await.map_err(|error| {
        BridgeError::fatal(
            exit_code::CONFIGURATION,
            format!("cannot listen on {address} ({error}): set {setting} to a free address"),
        )
    })
}

/// Serve in the background until `stop`.
pub fn spawn(listener: TcpListener, router: Router, stop: CancellationToken) {
    tokio::spawn(async move { stop.run_until_cancelled(accept(&listener, &router)).await });
}

async fn accept(listener: &TcpListener, router: &Router) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Ok(permit) = permits.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    serve(stream, router).await;
                    drop(permit);
                });
            }
            // Such as no more file descriptors.
            Err(error) => {
                warn!("a connection cannot be accepted: {error}");
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Errors are those of the client.
async fn serve(stream: TcpStream, router: Router) {
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
    );
    if timeout(MAX_AGE, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = timeout(LAST_RESPONSE_TIMEOUT, connection).await;
    }
}
