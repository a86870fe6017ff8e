//! How a connection is encrypted, and how far the server is verified.
//!
//! libpq's modes (PostgreSQL manual, "SSL Support"); where ours are stricter is documented at
//! [`PostgresStoreConfig::new`](crate::PostgresStoreConfig::new).

#[cfg(feature = "rustls")]
mod certificate;
mod explain;
#[cfg(feature = "rustls")]
mod files;
mod phase;
#[cfg(feature = "rustls")]
mod verifier;

pub(crate) use self::{
    explain::{Peer, explain, find},
    phase::{PhaseTracker, TlsPhase},
};
use crate::{
    OpenStoreError,
    config::tls::{Mode, TlsSettings},
};

#[cfg(feature = "rustls")]
pub(crate) type MakeTls = tokio_postgres_rustls::MakeRustlsConnect;
#[cfg(not(feature = "rustls"))]
pub(crate) type MakeTls = tokio_postgres::NoTls;

/// Reads the certificates and builds the TLS connector; `None` without TLS.
#[cfg(feature = "rustls")]
pub(crate) fn make_tls(settings: &TlsSettings) -> Result<Option<MakeTls>, OpenStoreError> {
    use std::sync::Arc;

    use rustls::{ClientConfig, DEFAULT_VERSIONS, version::TLS13};

    if settings.mode == Mode::Disable {
        return Ok(None);
    }
    // Given explicitly: the process-wide default belongs to the application.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = if settings.only_tls13 { &[&TLS13][..] } else { DEFAULT_VERSIONS };
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(|error| OpenStoreError::Tls(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier::verifier(settings, provider)?);
    let mut config = match files::client_certificate(settings)? {
        None => builder.with_no_client_auth(),
        Some(client) => {
            builder.with_client_auth_cert(client.chain, client.key).map_err(|error| {
                OpenStoreError::InvalidConfig(format!(
                    "the client certificate {} cannot be used with its key: {error}",
                    client.path.display()
                ))
            })?
        }
    };
    config.enable_sni = settings.sni;
    if settings.direct {
        // Direct TLS has no SSLRequest: the server recognises the protocol by this name.
        config.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok(Some(MakeTls::new(config)))
}

/// Without rustls there are only plain connections.
#[cfg(not(feature = "rustls"))]
pub(crate) fn make_tls(settings: &TlsSettings) -> Result<Option<MakeTls>, OpenStoreError> {
    if settings.mode <= Mode::Prefer {
        return Ok(None);
    }
    Err(OpenStoreError::Tls(
        "this program was built without the feature `rustls` of matrix-sdk-postgres: enable it, \
         or use sslmode=disable"
            .to_owned(),
    ))
}
