//! Texts for TLS failures: the cause, and the remedy.

use std::error::Error;

use super::TlsPhase;
use crate::{
    config::tls::{Mode, TlsSettings},
    error::has_io_cause,
};

/// The server of the handshake.
pub(crate) struct Peer<'a> {
    /// The name that its certificate must show, which may be an address.
    pub(crate) name: &'a str,
    pub(crate) port: u16,
}

/// The text for a TLS error, or `None` for any other. The driver's errors do not say which they
/// are, so the phase that the connection had reached decides.
pub(crate) fn explain(
    error: &tokio_postgres::Error,
    settings: &TlsSettings,
    peer: &Peer<'_>,
    phase: TlsPhase,
) -> Option<String> {
    #[cfg(feature = "rustls")]
    if let Some(error) = find::<rustls::Error>(error) {
        return Some(explain_rustls(error, settings, peer));
    }
    let cause = error.source()?;
    match phase {
        TlsPhase::Handshake => Some(cause.to_string()),
        // Before the login, the driver itself fails for this reason only.
        TlsPhase::NotBegun if settings.mode > Mode::Prefer && !has_io_cause(error) => {
            Some(format!(
                "the server {}, port {}, offers no TLS, and sslmode={} requires it: set `ssl = on` in \
                 its configuration, or use sslmode=prefer",
                peer.name,
                peer.port,
                name(settings.mode)
            ))
        }
        TlsPhase::NotBegun | TlsPhase::Encrypted => None,
    }
}

#[cfg(feature = "rustls")]
const UNVERIFIED: &str = "sslmode=prefer encrypts without verification";

#[cfg(feature = "rustls")]
fn explain_rustls(error: &rustls::Error, settings: &TlsSettings, peer: &Peer<'_>) -> String {
    use rustls::{AlertDescription, CertificateError, Error::*};

    match error {
        InvalidCertificate(error) if super::certificate::fault(error).is_some() => {
            super::certificate::fault(error).map(|fault| remedy(fault, peer)).unwrap_or_default()
        }
        InvalidCertificate(CertificateError::UnknownIssuer) => format!(
            "the server's certificate is not signed by a trusted authority: give the \
             authority's certificate with sslrootcert=<the CA's file>; {UNVERIFIED}"
        ),
        InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => format!(
            "the server's certificate is for another name ({error}): connect by a name in its \
             subjectAltName, or use sslmode=verify-ca with sslrootcert=<the CA's file>"
        ),
        InvalidCertificate(_) => {
            format!(
                "the server's certificate is not acceptable ({error}): replace it; {UNVERIFIED}"
            )
        }
        // The server found no signature scheme in common, and did not send its certificate.
        AlertReceived(AlertDescription::HandshakeFailure) => format!(
            "the server aborted the TLS handshake ({error}): it has no algorithm in common with this \
             client. Its TLS is older than 1.2, or its key is of a kind that is not supported \
             (P-521, RSA-PSS): {}",
            new_certificate(peer)
        ),
        AlertReceived(_) if settings.cert.is_some() => {
            format!(
                "the server aborted the TLS handshake ({error}): check the client certificate, \
                 sslcert and sslkey"
            )
        }
        AlertReceived(_) => format!(
            "the server aborted the TLS handshake ({error}): if it requires a client certificate, \
             set sslcert and sslkey"
        ),
        _ => error.to_string(),
    }
}

/// What is wrong with the server's certificate, and the command that fixes it.
#[cfg(feature = "rustls")]
fn remedy(fault: super::certificate::Fault, peer: &Peer<'_>) -> String {
    use super::certificate::Fault::*;

    match fault {
        Version1 => format!(
            "the server's certificate is of version 1, which is not supported, as it has no \
             subjectAltName: {}",
            new_certificate(peer)
        ),
        CommonNameOnly => format!(
            "the server's certificate has no subjectAltName, and its common name is ignored: {}; or \
             use sslmode=verify-ca with sslrootcert=<the CA's file>",
            new_certificate(peer)
        ),
        UnsupportedKey(kind) => format!(
            "the server's certificate has a key of a kind that is not supported ({kind}): {}",
            new_certificate(peer)
        ),
        SelfSigned => format!(
            "the server's certificate is self-signed, and not among those that are trusted: fetch it \
             with `openssl s_client -starttls postgres -connect {}:{} </dev/null | openssl x509 -out \
             server.crt`, compare it with the server's own file, and set \
             sslrootcert=server.crt; {UNVERIFIED}",
            peer.name, peer.port
        ),
    }
}

/// How to make a certificate for the server that every mode accepts.
#[cfg(feature = "rustls")]
fn new_certificate(peer: &Peer<'_>) -> String {
    let name = peer.name;
    let kind = if name.parse::<std::net::IpAddr>().is_ok() { "IP" } else { "DNS" };
    format!(
        "create a new one with `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
         -days 825 -subj /CN={name} -addext subjectAltName={kind}:{name} -keyout server.key -out \
         server.crt`, and set sslrootcert=server.crt"
    )
}

fn name(mode: Mode) -> &'static str {
    match mode {
        Mode::Disable => "disable",
        Mode::Prefer => "prefer",
        Mode::Require => "require",
        Mode::VerifyCa => "verify-ca",
        Mode::VerifyFull => "verify-full",
    }
}

/// Finds a cause of type `T`, also within I/O errors, whose `source()` skips it.
pub(crate) fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    std::iter::successors(Some(error), |&error| {
        match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        }
    })
    .find_map(|error| error.downcast_ref())
}
