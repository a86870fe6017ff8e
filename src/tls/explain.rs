//! What went wrong with TLS, and what to do about it.

use std::error::Error;

use super::{Mode, TlsSettings};

/// What `tokio-postgres` calls a failed handshake; its errors' kinds cannot be asked otherwise.
const HANDSHAKE: &str = "error performing TLS handshake";

/// The text for an error that is about TLS, or `None` for another.
pub(crate) fn explain(error: &tokio_postgres::Error, settings: &TlsSettings) -> Option<String> {
    #[cfg(feature = "rustls")]
    if let Some(error) = find::<rustls::Error>(error) {
        return Some(explain_rustls(error, settings));
    }
    if error.to_string() != HANDSHAKE {
        return None;
    }
    let reason = error.source().map(ToString::to_string).unwrap_or_default();
    if reason.contains("does not support TLS") {
        return Some(format!(
            "the server offers no TLS, and sslmode={} demands it: set `ssl = on` in the server's \
             configuration, or use sslmode=prefer",
            name(settings.mode)
        ));
    }
    Some(reason)
}

#[cfg(feature = "rustls")]
fn explain_rustls(error: &rustls::Error, settings: &TlsSettings) -> String {
    use rustls::{CertificateError, Error::*};

    const UNVERIFIED: &str = "sslmode=prefer encrypts without verification";
    match error {
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
        AlertReceived(_) if settings.cert.is_some() => {
            format!(
                "the server broke off ({error}): check the client certificate, sslcert and sslkey"
            )
        }
        AlertReceived(_) => format!(
            "the server broke off ({error}): if it demands a client certificate, give sslcert and \
             sslkey"
        ),
        _ => error.to_string(),
    }
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

/// Looks for a cause of a type, within I/O errors too, which hide theirs from `source()`.
pub(crate) fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    std::iter::successors(Some(error), |&error| {
        match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        }
    })
    .find_map(|error| error.downcast_ref())
}
