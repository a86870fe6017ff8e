//! How a connection is encrypted, and how far the server is verified.
//!
//! libpq's modes (PostgreSQL manual, "SSL Support"); where ours are stricter is documented at
//! [`PostgresStoreConfig::new`](crate::PostgresStoreConfig::new).

#[cfg(feature = "rustls")]
mod certificate;
mod explain;
#[cfg(feature = "rustls")]
mod files;
#[cfg(feature = "rustls")]
mod verifier;
mod watched;

use std::path::PathBuf;

pub(crate) use self::{
    explain::{Peer, explain, find},
    watched::Watched,
};
use crate::OpenStoreError;

#[cfg(feature = "rustls")]
pub(crate) type MakeTls = tokio_postgres_rustls::MakeRustlsConnect;
#[cfg(not(feature = "rustls"))]
pub(crate) type MakeTls = tokio_postgres::NoTls;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// `sslrootcert`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Roots {
    Unset,
    System,
    File(PathBuf),
}

/// The TLS words of a connection string.
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "rustls"), allow(dead_code))]
pub(crate) struct TlsSettings {
    pub(crate) mode: Mode,
    roots: Roots,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    /// Whether the server is told the name it is wanted under.
    sni: bool,
    only_tls13: bool,
    /// The handshake comes first, without PostgreSQL's own request for it.
    pub(crate) direct: bool,
}

impl TlsSettings {
    /// Reads the words; an unknown value is an error that lists the known ones.
    pub(crate) fn from_words<'a>(word: impl Fn(&str) -> Option<&'a str>) -> Result<Self, String> {
        let roots = match word("sslrootcert") {
            None => Roots::Unset,
            Some("system") => Roots::System,
            Some(path) => Roots::File(path.into()),
        };
        let given = word("sslmode").map(parse_mode).transpose()?;
        let mode = check_mode(given, &roots)?;
        let direct = match word("sslnegotiation") {
            None | Some("postgres") => false,
            Some("direct") if mode >= Mode::Require => true,
            Some("direct") => {
                return Err(
                    "sslnegotiation=direct needs sslmode=require, verify-ca or verify-full"
                        .to_owned(),
                );
            }
            Some(_) => return Err("sslnegotiation must be postgres or direct".to_owned()),
        };
        let only_tls13 = match word("ssl_min_protocol_version") {
            None | Some("TLSv1" | "TLSv1.1" | "TLSv1.2") => false,
            Some("TLSv1.3") => true,
            Some(_) => {
                return Err("ssl_min_protocol_version must be TLSv1.2 or TLSv1.3".to_owned());
            }
        };
        Ok(Self {
            mode,
            roots,
            cert: word("sslcert").map(PathBuf::from),
            key: word("sslkey").map(PathBuf::from),
            sni: word("sslsni") != Some("0"),
            only_tls13,
            direct,
        })
    }
}

fn parse_mode(text: &str) -> Result<Mode, String> {
    match text {
        "disable" => Ok(Mode::Disable),
        // `allow` would try without TLS first: with TLS first is never worse.
        "allow" | "prefer" => Ok(Mode::Prefer),
        "require" => Ok(Mode::Require),
        "verify-ca" => Ok(Mode::VerifyCa),
        "verify-full" => Ok(Mode::VerifyFull),
        _ => Err("sslmode must be disable, prefer, require, verify-ca or verify-full".to_owned()),
    }
}

/// Who names an authority wants it checked: a mode that does not is a mistake.
fn check_mode(given: Option<Mode>, roots: &Roots) -> Result<Mode, String> {
    match (given, roots) {
        (None, Roots::System) => Ok(Mode::VerifyFull),
        (Some(Mode::VerifyFull), _) => Ok(Mode::VerifyFull),
        (Some(_), Roots::System) => {
            Err("sslrootcert=system needs sslmode=verify-full, or no sslmode".to_owned())
        }
        (None | Some(Mode::Prefer), Roots::File(_)) => {
            Err("sslrootcert is given, but nothing is verified: add sslmode=verify-full (or \
                 verify-ca, without the host's name)"
                .to_owned())
        }
        (None, Roots::Unset) => Ok(Mode::Prefer),
        (Some(mode), _) => Ok(mode),
    }
}

/// Reads the certificates and builds what makes TLS connections; `None` where there is no TLS.
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
        // Without PostgreSQL's request, this is what tells the server which protocol is meant.
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
