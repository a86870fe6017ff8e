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
    endpoints::{Authentication, Path, Request},
    http_client::{self, Target},
    refusal::{HomeserverError, Refusal},
    responses::{HasResponse, ParseResponse, RawJson, is_empty_body},
    retry,
};

/// Long enough for a busy server, short enough to notice a dead connection.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Of a response, which is in memory twice while it is read.
const MAX_RESPONSE_BYTES: usize = 128 << 20;

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

    fn token(&self) -> Option<SecretString> {
        self.token.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    pub fn use_token(&self, token: SecretString) {
        *self.token.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(token);
    }

    /// Send once.
    pub async fn send<R: Request>(&self, request: R) -> Result<R::Response, HomeserverError> {
        self.send_within(request, TIMEOUT).await
    }

    /// Send once, waiting up to `limit` for the response.
    pub async fn send_within<R: Request>(
        &self,
        request: R,
        limit: Duration,
    ) -> Result<R::Response, HomeserverError> {
        let versions = match self.versions.get() {
            Some(versions) => versions,
            None => {
                let request = get_supported_versions::Request::new();
                let token = self.token();
                let mut found = self.exchange(request.clone(), (), TIMEOUT, &token).await;
                let has_token = token.is_some();
                let is_refused = |error: &HomeserverError| error.session_loss().is_some();
                if has_token
                    && found.as_ref().is_err_and(is_refused)
                    && let Ok(versions) = self.exchange(request, (), TIMEOUT, &None).await
                {
                    // An expired token must not prevent the requests that replace it.
                    found = Ok(versions);
                }
                // Without a token there is none to refuse: something else has responded.
                let found = found.map_err(|error| match error {
                    HomeserverError::Malformed(_) => {
                        HomeserverError::NoHomeserver(error.to_string())
                    }
                    error if error.is_temporary() => error,
                    error if has_token && error.session_loss().is_some() => error,
                    error => HomeserverError::NoHomeserver(error.to_string()),
                })?;
                self.versions.get_or_init(|| found)
            }
        };
        let used = self.token();
        let path = || R::PathBuilder::input(versions);
        match self.exchange(request.clone(), path(), limit, &used).await {
            // The token was exchanged for a new one meanwhile.
            Err(error) if error.session_loss().is_some() && !same(&used, &self.token()) => {
                self.exchange(request, path(), limit, &self.token()).await
            }
            answer => answer,
        }
    }

    /// Send, and retry temporary errors until `stop`.
    pub async fn send_until<R: Request>(
        &self,
        request: R,
        stop: &CancellationToken,
    ) -> Result<R::Response, HomeserverError> {
        let attempts = (|| self.send(request.clone()))
            .retry(retry::policy())
            .when(HomeserverError::is_temporary)
            .adjust(|error, own| Some(own?.max(error.retry_after().unwrap_or_default())))
            .notify(|error, delay| warn!("{error}; trying again in {} s", delay.as_secs()));
        stop.run_until_cancelled(attempts).await.unwrap_or(Err(HomeserverError::Stopped))
    }

    /// A GET request with the access token, for responses that are not JSON. `path` is below `_matrix`.
    pub fn get(&self, path: &[&str]) -> reqwest::RequestBuilder {
        let mut url = self.base.url.clone();
        // It fails only for URLs without a host.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("_matrix").extend(path);
        }
        let token = self.token.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let request = self.http.get(url);
        match (&*token, &self.base.authorization) {
            (Some(token), _) => request.bearer_auth(token.expose_secret()),
            (None, Some(userinfo)) => request.header(AUTHORIZATION, userinfo.clone()),
            (None, None) => request,
        }
    }

    async fn exchange<R: Request>(
        &self,
        request: R,
        path: <R::PathBuilder as PathBuilder>::Input<'_>,
        limit: Duration,
        token: &Option<SecretString>,
    ) -> Result<<R as HasResponse>::Response, HomeserverError> {
        let mut request = {
            let token = match token {
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
        let json = RawJson::parse(&body);
        let Some((json, fields)) = json.and_then(|json| Some((json, json.fields()?))) else {
            let nothing = R::Response::from_empty().filter(|_| is_empty_body(&body));
            let reason = "it is not a JSON object: check MATRIX_HOMESERVER";
            return nothing.ok_or_else(|| HomeserverError::Unreadable(reason.to_owned()));
        };
        R::Response::read(json, &fields).map_err(HomeserverError::Malformed)
    }

    async fn round_trip(
        &self,
        request: http::Request<Bytes>,
        limit: Duration,
    ) -> Result<(http::StatusCode, http::HeaderMap<HeaderValue>, Vec<u8>), HomeserverError> {
        let unreachable = |error: reqwest::Error| HomeserverError::Unreachable(causes(error));
        let mut request = reqwest::Request::try_from(request).map_err(unreachable)?;
        *request.timeout_mut() = Some(limit);
        let response = self.http.execute(request).await.map_err(unreachable)?;
        let (status, headers) = (response.status(), response.headers().clone());
        match http_client::body(response, MAX_RESPONSE_BYTES).await.map_err(unreachable)? {
            Some(body) => Ok((status, headers, body)),
            None => Err(HomeserverError::Unreadable("it is larger than 128 MiB".to_owned())),
        }
    }
}

fn same(one: &Option<SecretString>, other: &Option<SecretString>) -> bool {
    one.as_ref().map(ExposeSecret::expose_secret) == other.as_ref().map(ExposeSecret::expose_secret)
}

/// An error with its causes in one line, without the URL, which may hold secrets.
pub fn causes(error: reqwest::Error) -> String {
    let error = error.without_url();
    std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
