//! HTTP to the homeserver: ruma's requests over reqwest.

use std::{
    sync::{OnceLock, RwLock},
    time::Duration,
};

use backon::Retryable;
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, header::AUTHORIZATION};
use ruma::api::{
    SupportedVersions, auth_scheme::SendAccessToken, client::discovery::get_supported_versions,
    path_builder::PathBuilder,
};
use secrecy::{ExposeSecret, SecretString};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    answers::{Answer, Answered, Piece, says_nothing},
    endpoints::{Authentication, Path, Request},
    http_client::Target,
    refusal::{HomeserverError, Refusal},
    retry,
};

/// Long enough for a busy server, short enough to notice a dead connection.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The bot's homeserver.
pub struct Homeserver {
    http: reqwest::Client,
    base: Target,
    token: RwLock<Option<SecretString>>,
    versions: OnceLock<SupportedVersions>,
}

impl Homeserver {
    pub fn new(http: reqwest::Client, base: Target) -> Self {
        Self { http, base, token: RwLock::new(None), versions: OnceLock::new() }
    }

    pub fn use_token(&self, token: SecretString) {
        *self.token.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(token);
    }

    /// Send once.
    pub async fn send<R: Request>(&self, request: R) -> Result<R::Answer, HomeserverError> {
        self.send_within(request, TIMEOUT).await
    }

    /// Send once, waiting up to `limit` for the answer.
    pub async fn send_within<R: Request>(
        &self,
        request: R,
        limit: Duration,
    ) -> Result<R::Answer, HomeserverError> {
        let versions = match self.versions.get() {
            Some(versions) => versions,
            None => {
                let request = get_supported_versions::Request::new();
                let found = self.exchange(request, (), TIMEOUT).await;
                // Only with a token a homeserver can refuse it.
                let has_token =
                    self.token.read().unwrap_or_else(|poisoned| poisoned.into_inner()).is_some();
                let found = found.map_err(|error| match error {
                    HomeserverError::Malformed(_) => HomeserverError::NotThere(error.to_string()),
                    error if error.is_temporary() => error,
                    error if has_token && error.session_loss().is_some() => error,
                    error => HomeserverError::NotThere(error.to_string()),
                })?;
                self.versions.get_or_init(|| found)
            }
        };
        self.exchange(request, R::PathBuilder::input(versions), limit).await
    }

    /// Send, and wait out what is temporary, until `stop`.
    pub async fn send_until<R: Request>(
        &self,
        request: R,
        stop: &CancellationToken,
    ) -> Result<R::Answer, HomeserverError> {
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
        limit: Duration,
    ) -> Result<<R as Answered>::Answer, HomeserverError> {
        let mut request = {
            let token = self.token.read().unwrap_or_else(|poisoned| poisoned.into_inner());
            let token = match &*token {
                Some(token) => SendAccessToken::IfRequired(token.expose_secret()),
                None => SendAccessToken::None,
            };
            request
                .try_into_http_request::<BytesMut>(
                    self.base.url.as_str(),
                    R::Authentication::input(token),
                    path,
                )
                .map_err(|error| HomeserverError::Unreadable(error.to_string()))?
                .map(BytesMut::freeze)
        };
        for value in request.headers_mut().values_mut() {
            value.set_sensitive(true);
        }
        if let Some(userinfo) = &self.base.authorization {
            request.headers_mut().entry(AUTHORIZATION).or_insert_with(|| userinfo.clone());
        }
        let (status, headers, body) = self.round_trip(request, limit).await?;
        let body = String::from_utf8_lossy(&body);
        if !status.is_success() {
            return Err(HomeserverError::Refused(Refusal::read(status, &headers, &body)));
        }
        let piece = Piece::parse(&body);
        let Some((piece, fields)) = piece.and_then(|piece| Some((piece, piece.fields()?))) else {
            let nothing = R::Answer::of_nothing().filter(|_| says_nothing(&body));
            let reason = "it is no JSON object: check MATRIX_HOMESERVER";
            return nothing.ok_or_else(|| HomeserverError::Unreadable(reason.to_owned()));
        };
        R::Answer::read(piece, &fields).map_err(HomeserverError::Malformed)
    }

    async fn round_trip(
        &self,
        request: http::Request<Bytes>,
        limit: Duration,
    ) -> Result<(http::StatusCode, http::HeaderMap<HeaderValue>, Bytes), HomeserverError> {
        let unreachable = |error: reqwest::Error| HomeserverError::Unreachable(causes(error));
        let mut request = reqwest::Request::try_from(request).map_err(unreachable)?;
        *request.timeout_mut() = Some(limit);
        let response = self.http.execute(request).await.map_err(unreachable)?;
        let (status, headers) = (response.status(), response.headers().clone());
        Ok((status, headers, response.bytes().await.map_err(unreachable)?))
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
