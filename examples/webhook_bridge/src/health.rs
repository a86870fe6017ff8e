//! `/healthz`, `/readyz` and `/metrics`.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    auth::BearerToken,
    errors::BridgeError,
    inbox::{Counts, Inbox},
    metrics::Metrics,
    server,
};

/// Time limit for a query of a probe.
const QUERY_TIMEOUT: Duration = Duration::from_secs(3);

/// The state that the probes report.
pub struct Health {
    pub metrics: Arc<Metrics>,
    /// Set once the database has been opened.
    pub inbox: OnceLock<Inbox>,
    /// The owner that a standby waits for, before that.
    pub waiting_for: Mutex<Option<String>>,
    pub exporter: Option<PrometheusHandle>,
    pub metrics_token: Option<BearerToken>,
    /// Held while the messages are counted.
    pub counting: Arc<tokio::sync::Mutex<()>>,
}

impl Health {
    pub fn set_waiting_for(&self, owner: Option<&str>) {
        self.metrics.standby.set(if owner.is_some() { 1 } else { 0 });
        *self.waiting_for.lock().unwrap_or_else(PoisonError::into_inner) =
            owner.map(ToOwned::to_owned);
    }

    /// Numbers of messages, one query at a time. The query is not dropped after a time limit: its connection
    /// would return to the pool while it is running.
    async fn counts(&self) -> Option<Counts> {
        let inbox = self.inbox.get()?.clone();
        let count = async {
            let turn = self.counting.clone().lock_owned().await;
            let counted = tokio::spawn(async move {
                let _turn = turn;
                inbox.counts().await.ok()
            });
            counted.await.ok()?
        };
        timeout(QUERY_TIMEOUT, count).await.ok()?
    }

    fn owner(&self) -> Option<String> {
        self.waiting_for.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Serve in the background until `stop`.
pub async fn serve(
    address: SocketAddr,
    health: Arc<Health>,
    stop: CancellationToken,
) -> Result<(), BridgeError> {
    let listener = server::bind(address, "BRIDGE_LISTEN").await?;
    info!(%address, "serving /healthz, /readyz and /metrics");
    let router = Router::new()
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(health);
    server::spawn(listener, router, stop);
    Ok(())
}

async fn ready(State(health): State<Arc<Health>>) -> (StatusCode, String) {
    if let Some(owner) = health.owner() {
        let text = format!("standby: the account is in use by {owner}\n");
        return (StatusCode::SERVICE_UNAVAILABLE, text);
    }
    let database = match health.inbox.get() {
        Some(inbox) => matches!(timeout(QUERY_TIMEOUT, inbox.ping()).await, Ok(Ok(()))),
        None => false,
    };
    // A response counts only once its sync is committed.
    let synced = health.metrics.synced_recently();
    let status = if database && synced { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let last = match health.metrics.since_sync() {
        Some(since) => format!("{} s ago", since.as_secs()),
        None => "none yet".to_owned(),
    };
    let database = if database { "ok" } else { "unavailable" };
    (status, format!("database: {database}\nlast sync committed: {last}\n"))
}

async fn metrics(State(health): State<Arc<Health>>, headers: HeaderMap) -> Response {
    if health.metrics_token.as_ref().is_some_and(|token| !token.permits(&headers)) {
        return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")]).into_response();
    }
    health.metrics.refresh(health.counts().await);
    let text = health.exporter.as_ref().map(PrometheusHandle::render).unwrap_or_default();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}
