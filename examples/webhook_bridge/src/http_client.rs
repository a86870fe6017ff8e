//! One HTTP client for homeserver and webhook: rustls with ring and the machine's root certificates.

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

/// Where requests go. User and password of a URL are taken out of it: what is logged of requests
/// holds the URL.
#[derive(Clone, Debug)]
pub struct Target {
    pub url: Url,
    /// What the URL held, as a header.
    pub authorization: Option<HeaderValue>,
}

impl Target {
    pub fn new(mut url: Url) -> Self {
        let authorization = basic(&url);
        // These fail for URLs without a host only, and those hold neither.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        Self { url, authorization }
    }
}

/// The header that stands for a URL's user and password.
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
    let needs_roots =
        [&config.homeserver, &config.webhook_url].iter().any(|u| u.url.scheme() == "https");
    if needs_roots && roots.is_empty() {
        return Err(BridgeError::last(
            exit_code::CONFIGURATION,
            "this machine has no root certificates, so https cannot be used: install the package \
             ca-certificates",
        ));
    }
    let unusable = |error: &dyn std::error::Error| {
        BridgeError::last(exit_code::UNEXPECTED, format!("TLS cannot be set up: {error}"))
    };
    let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .connect_timeout(Duration::from_secs(10))
        // Names of headers have no case, but not every webhook knows.
        .http1_title_case_headers()
        // A redirect would turn a POST into a GET, and could carry the token elsewhere.
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("webhook_bridge/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| unusable(&error))
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
