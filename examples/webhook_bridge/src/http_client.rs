//! One HTTP client for homeserver and webhook: rustls with ring and the machine's root certificates.

use std::{sync::Arc, time::Duration};

use rustls::{ClientConfig, RootCertStore, crypto::ring};

use crate::{
    config::Config,
    errors::{BridgeError, exit_code},
};

pub fn build(config: &Config) -> Result<reqwest::Client, BridgeError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let needs_roots =
        [&config.homeserver, &config.webhook_url].iter().any(|u| u.scheme() == "https");
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
