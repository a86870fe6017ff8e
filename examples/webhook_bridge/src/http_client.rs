//! The HTTP client for homeserver and webhook: rustls with ring and the system's root certificates.

use std::{sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::HeaderValue;
use percent_encoding::percent_decode_str;
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use url::Url;

use crate::{
    config::Config,
    errors::{BridgeError, exit_code},
};

/// The base URL of requests. User and password are removed from it, because URLs are logged.
#[derive(Clone, Debug)]
pub struct Target {
    pub url: Url,
    /// User and password of the URL, as a header.
    pub authorization: Option<HeaderValue>,
}

impl Target {
    pub fn new(mut url: Url) -> Self {
        let authorization = basic(&url);
        // These fail only for URLs without a host, which have no user or password.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        Self { url, authorization }
    }
}

/// The `Authorization` header for a URL's user and password.
fn basic(url: &Url) -> Option<HeaderValue> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let decode = |text| percent_decode_str(text).decode_utf8_lossy();
    let (user, password) = (decode(url.username()), decode(url.password().unwrap_or_default()));
    let userinfo = STANDARD.encode(format!("{user}:{password}"));
    let mut value = HeaderValue::try_from(format!("Basic {userinfo}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

pub fn build(config: &Config) -> Result<reqwest::Client, BridgeError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let webhooks = config.labelled_webhooks.values().chain([&config.webhook]);
    let needs_roots = webhooks
        .map(|webhook| &webhook.target)
        .chain([&config.homeserver])
        .any(|target| target.url.scheme() == "https");
    if needs_roots && roots.is_empty() {
        return Err(BridgeError::fatal(
            exit_code::CONFIGURATION,
            "no root certificates are installed, so https cannot be used: install the package \
             ca-certificates",
        ));
    }
    let unusable = |error: &dyn std::error::Error| {
        BridgeError::fatal(exit_code::UNEXPECTED, format!("TLS cannot be set up: {error}"))
    };
    let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .connect_timeout(Duration::from_secs(10))
        // Header names are case-insensitive, but some webhooks expect title case.
        .http1_title_case_headers()
        // A redirect would turn a POST into a GET, and could leak the token to another server.
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("webhook_bridge/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| unusable(&error))
}

/// The body of a response; `None` if it has more bytes than `max`.
pub async fn body(
    mut response: reqwest::Response,
    max: usize,
) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > max {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_password_leave_the_url_and_become_a_header() {
        let target = Target::new(Url::parse("https://me%40x:p%3Aw@example.org/a?b").unwrap());
        assert_eq!(target.url.as_str(), "https://example.org/a?b");
        // Of "me@x:p:w".
        assert_eq!(target.authorization.as_ref().unwrap(), "Basic bWVAeDpwOnc=");
        assert!(!format!("{target:?}").contains("bWVAe"));
        let plain = Target::new(Url::parse("https://example.org").unwrap());
        assert!(plain.authorization.is_none());
    }
}
