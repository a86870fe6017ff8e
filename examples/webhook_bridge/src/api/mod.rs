//! The HTTP API: the last messages, and attachments. Off unless `BRIDGE_API_TOKEN` is set.

mod attachments;
mod limits;
mod media;
mod messages;
mod reply;

use std::sync::{Arc, OnceLock};

use axum::{
    Router,
    extract::{Request, State},
    http::header,
    middleware::{Next, from_fn_with_state},
    response::Response,
    routing::get,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::info;

pub use self::attachments::path;
use self::{limits::Limits, reply::Error};
use crate::{
    auth::BearerToken, config::ApiConfig, errors::BridgeError, homeserver::Homeserver,
    inbox::Inbox, labels::Labels, sealing::Sealer, server,
};

const DESCRIPTION: &str = include_str!("../../openapi.json");

/// What a process needs to answer that owns the account.
pub struct Backend {
    pub inbox: Inbox,
    pub sealer: Sealer,
    pub homeserver: Arc<Homeserver>,
    pub labels: Labels,
}

struct Api {
    token: BearerToken,
    limits: Limits,
    config: ApiConfig,
    backend: Arc<OnceLock<Backend>>,
    /// Limits concurrent downloads.
    downloads: Arc<Semaphore>,
}

/// Each download is in memory, encrypted and decrypted.
const CONCURRENT_DOWNLOADS: usize = 2;

impl Api {
    /// A standby has no backend.
    fn backend(&self) -> Result<&Backend, Error> {
        self.backend.get().ok_or(Error::NotReady)
    }
}

/// Serve in the background until `stop`.
pub async fn serve(
    config: &ApiConfig,
    backend: Arc<OnceLock<Backend>>,
    stop: CancellationToken,
) -> Result<(), BridgeError> {
    let address = config.listen;
    let listener = server::bind(address, "BRIDGE_API_LISTEN").await?;
    info!(%address, "serving the API");
    let token = BearerToken::new(&config.token);
    let api = Arc::new(Api {
        token,
        limits: Limits::new(config.rate),
        config: config.clone(),
        backend,
        downloads: Arc::new(Semaphore::new(CONCURRENT_DOWNLOADS)),
    });
    let router = Router::new()
        .route("/api/v1/messages/{target}", get(messages::get))
        .route("/api/v1/attachments/{id}", get(attachments::get))
        .layer(from_fn_with_state(api.clone(), admit))
        .route("/api/v1/openapi.json", get(describe))
        .fallback(|| async { Error::UnknownPath })
        .method_not_allowed_fallback(|| async { Error::Method })
        .with_state(api);
    server::spawn(listener, router, stop);
    Ok(())
}

/// Requests without the token have a limit of their own, so that they do not use up that of the others.
async fn admit(
    State(api): State<Arc<Api>>,
    request: Request,
    next: Next,
) -> Result<Response, Error> {
    let permitted = api.token.permits(request.headers());
    api.limits.check(permitted).map_err(Error::TooMany)?;
    if !permitted {
        return Err(Error::Unauthorized);
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    Ok(response)
}

async fn describe() -> ([(header::HeaderName, &'static str); 1], &'static str) {
    ([(header::CONTENT_TYPE, "application/json")], DESCRIPTION)
}
