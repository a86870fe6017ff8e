//! HTTP to the homeserver: ruma's requests over reqwest, and what its answers mean for us.

use std::{
    sync::{
        OnceLock, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use backon::Retryable;
use bytes::{Bytes, BytesMut};
use ruma::api::{
    IncomingResponse, SupportedVersions,
    auth_scheme::SendAccessToken,
    client::discovery::get_supported_versions,
    error::{Error as MatrixError, ErrorKind, FromHttpResponseError, RetryAfter},
    path_builder::PathBuilder,
};
use secrecy::{ExposeSecret, SecretString};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use url::Url;

use crate::{
    endpoints::{Authentication, Path, Request},
    retry,
};

/// Long enough for a busy server, short enough to notice a dead connection.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Why a request did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum HomeserverError {
    #[error("the homeserver cannot be reached: {0}: check MATRIX_HOMESERVER and the network")]
    Unreachable(String),
    #[error("the homeserver answered {0}")]
    Refused(Box<MatrixError>),
    #[error("the homeserver's answer cannot be read: {0}")]
    Unreadable(String),
    #[error("stopped")]
    Stopped,
}

impl HomeserverError {
    /// Whether the same request may succeed later.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Unreadable(_) => true,
            Self::Refused(error) => {
                let status = error.status_code;
                status.is_server_error() || matches!(status.as_u16(), 408 | 429)
            }
            Self::Stopped => false,
        }
    }

    /// For a token that is no longer valid: whether the logout was soft.
    pub fn revoked_token(&self) -> Option<bool> {
        match self.kind()? {
            ErrorKind::UnknownToken(data) => Some(data.soft_logout),
            _ => None,
        }
    }

    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused(error) => Some(error.status_code.as_u16()),
            _ => None,
        }
    }

    pub fn kind(&self) -> Option<&ErrorKind> {
        match self {
            Self::Refused(error) => error.error_kind(),
            _ => None,
        }
    }

    pub fn wish(&self) -> Option<Duration> {
        match self.kind()? {
            ErrorKind::LimitExceeded(data) => match data.retry_after? {
                RetryAfter::Delay(delay) => Some(delay),
                RetryAfter::DateTime(time) => time.duration_since(SystemTime::now()).ok(),
            },
            _ => None,
        }
    }
}

/// The bot's homeserver.
pub struct Homeserver {
    http: reqwest::Client,
    base: Url,
    token: RwLock<Option<SecretString>>,
    versions: OnceLock<SupportedVersions>,
    started: Instant,
    /// Milliseconds from `started` to the last answer, plus one; 0: none yet.
    answered: AtomicU64,
}

impl Homeserver {
    pub fn new(http: reqwest::Client, base: Url) -> Self {
        Self {
            http,
            base,
            token: RwLock::new(None),
            versions: OnceLock::new(),
            started: Instant::now(),
            answered: AtomicU64::new(0),
        }
    }

    pub fn use_token(&self, token: SecretString) {
        *self.token.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(token);
    }

    /// How long ago the homeserver last answered, if it ever did.
    pub fn silent_for(&self) -> Option<Duration> {
        let at = self.answered.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.started.elapsed().saturating_sub(Duration::from_millis(at)))
    }

    /// Send once.
    pub async fn send<R: Request>(&self, request: R) -> Result<R::IncomingResponse, HomeserverError>
    where
        R::Authentication: Authentication,
        R::PathBuilder: Path,
    {
        self.send_within(request, TIMEOUT).await
    }

    /// Send once, waiting up to `patience` for the answer.
    pub async fn send_within<R: Request>(
        &self,
        request: R,
        patience: Duration,
    ) -> Result<R::IncomingResponse, HomeserverError>
    where
        R::Authentication: Authentication,
        R::PathBuilder: Path,
    {
        let versions = match self.versions.get() {
            Some(versions) => versions,
            None => {
                let request = get_supported_versions::Request::new();
                let found = self.exchange(request, (), TIMEOUT).await?;
                self.versions.get_or_init(|| found.as_supported_versions())
            }
        };
        self.exchange(request, R::PathBuilder::input(versions), patience).await
    }

    /// Send, and wait out what is temporary, until `stop`.
    pub async fn send_until<R: Request>(
        &self,
        request: R,
        stop: &CancellationToken,
    ) -> Result<R::IncomingResponse, HomeserverError>
    where
        R::Authentication: Authentication,
        R::PathBuilder: Path,
    {
        let attempts = (|| self.send(request.clone()))
            .retry(retry::policy())
            .when(HomeserverError::is_temporary)
            .adjust(|error, own| Some(own?.max(error.wish().unwrap_or_default())))
            .notify(|error, delay| warn!("{error}; trying again in {} s", delay.as_secs()));
        stop.run_until_cancelled(attempts).await.unwrap_or(Err(HomeserverError::Stopped))
    }

    async fn exchange<R: Request>(
        &self,
        request: R,
        path: <R::PathBuilder as PathBuilder>::Input<'_>,
        patience: Duration,
    ) -> Result<R::IncomingResponse, HomeserverError>
    where
        R::Authentication: Authentication,
    {
        let request = {
            let token = self.token.read().unwrap_or_else(|poisoned| poisoned.into_inner());
            let token = match &*token {
                Some(token) => SendAccessToken::IfRequired(token.expose_secret()),
                None => SendAccessToken::None,
            };
            request
                .try_into_http_request::<BytesMut>(
                    self.base.as_str(),
                    R::Authentication::input(token),
                    path,
                )
                .map_err(|error| HomeserverError::Unreadable(error.to_string()))?
                .map(BytesMut::freeze)
        };
        let response = self.round_trip(request, patience).await?;
        // A proxy that answers for a dead homeserver does not count.
        if !response.status().is_server_error() {
            self.answered.store(self.started.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
        }
        R::IncomingResponse::try_from_http_response(response).map_err(|error| match error {
            FromHttpResponseError::Server(error) => HomeserverError::Refused(Box::new(error)),
            other => HomeserverError::Unreadable(other.to_string()),
        })
    }

    async fn round_trip(
        &self,
        request: http::Request<Bytes>,
        patience: Duration,
    ) -> Result<http::Response<Bytes>, HomeserverError> {
        let unreachable = |error: reqwest::Error| HomeserverError::Unreachable(causes(error));
        let mut request = reqwest::Request::try_from(request).map_err(unreachable)?;
        *request.timeout_mut() = Some(patience);
        let response = self.http.execute(request).await.map_err(unreachable)?;
        let mut answer = http::Response::new(Bytes::new());
        *answer.status_mut() = response.status();
        *answer.headers_mut() = response.headers().clone();
        *answer.body_mut() = response.bytes().await.map_err(unreachable)?;
        Ok(answer)
    }
}

/// An error with its causes in one line, and without the URL, whose query is noise.
pub fn causes(error: reqwest::Error) -> String {
    let error = error.without_url();
    std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
