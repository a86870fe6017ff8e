//! Faults of a server's certificate that the verifier's error does not name.
//!
//! Reads only the DER elements that identify a fault; a certificate that cannot be read has no
//! known fault.

use std::fmt;

use rustls::{CertificateError, Error, OtherError, pki_types::CertificateDer};

/// Object identifiers, with tag and length.
const P521: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23];
const RSA_PSS: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a];
const ALTERNATIVE_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x11];

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const VERSION: u8 = 0xa0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Version 1 has no extensions, and so no subjectAltName.
    Version1,
    /// The server's name is in the common name only.
    CommonNameOnly,
    UnsupportedKey(&'static str),
    SelfSigned,
}

/// An error of the verifier, and the fault that caused it.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) fault: Fault,
    error: Error,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Refused {}

/// Adds the fault to the verifier's error, if it is a known one.
pub(super) fn with_fault(error: Error, certificate: &CertificateDer<'_>) -> Error {
    let fault = Certificate::read(certificate).and_then(|read| read.fault(&error));
    match fault {
        Some(fault) => {
            let refused = std::sync::Arc::new(Refused { fault, error });
            Error::InvalidCertificate(CertificateError::Other(OtherError(refused)))
        }
        None => error,
    }
}

/// The fault that [`with_fault`] added.
pub(super) fn fault(error: &CertificateError) -> Option<Fault> {
    match error {
        CertificateError::Other(OtherError(inner)) => {
            inner.downcast_ref::<Refused>().map(|refused| refused.fault)
        }
        _ => None,
    }
}

struct Certificate<'a> {
    is_version_1: bool,
    issuer: &'a [u8],
    subject: &'a [u8],
    key: &'a [u8],
    extensions: &'a [u8],
}

impl<'a> Certificate<'a> {
    /// RFC 5280, 4.1.
    fn read(der: &'a [u8]) -> Option<Self> {
        let (_, certificate, _) = element(der)?;
        let (_, mut rest, _) = element(certificate)?;
        let mut next = |tag: u8| {
            let (found, value, after) = element(rest)?;
            (found == tag).then(|| rest = after)?;
            Some(value)
        };
        let is_version_1 = next(VERSION).is_none();
        next(INTEGER)?;
        let [_, issuer, _, subject, key] = [(); 5].map(|()| next(SEQUENCE));
        let (issuer, subject, key) = (issuer?, subject?, key?);
        Some(Self { is_version_1, issuer, subject, key, extensions: rest })
    }

    fn fault(&self, error: &Error) -> Option<Fault> {
        let contains = |bytes: &[u8], identifier: &[u8]| {
            bytes.windows(identifier.len()).any(|window| window == identifier)
        };
        let is_about_the_name = matches!(
            error,
            Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
            )
        );
        if self.is_version_1 {
            Some(Fault::Version1)
        } else if contains(self.key, P521) {
            Some(Fault::UnsupportedKey("P-521"))
        } else if contains(self.key, RSA_PSS) {
            Some(Fault::UnsupportedKey("RSA-PSS"))
        } else if is_about_the_name {
            (!contains(self.extensions, ALTERNATIVE_NAME)).then_some(Fault::CommonNameOnly)
        } else if is_about_the_issuer(error) && self.issuer == self.subject {
            Some(Fault::SelfSigned)
        } else {
            None
        }
    }
}

/// `Other` includes an authority's certificate used as a server's.
fn is_about_the_issuer(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidCertificate(
            CertificateError::UnknownIssuer
                | CertificateError::BadSignature
                | CertificateError::Other(_)
        )
    )
}

/// The first element's tag and value, and the remaining bytes.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let mut length = usize::from(first);
    if first & 0x80 != 0 {
        length = 0;
        for _ in 0..first & 0x7f {
            let (&byte, after) = rest.split_first()?;
            length = length.checked_mul(256)?.checked_add(byte.into())?;
            rest = after;
        }
    }
    let (value, after) = rest.split_at_checked(length)?;
    Some((tag, value, after))
}

#[cfg(test)]
mod tests {
    use super::{Certificate, element};

    #[test]
    fn a_malformed_certificate_is_not_read() {
        for bytes in [&[][..], &[0x30], &[0x30, 0x05, 1], &[0x30, 0x89, 1], &[0x30, 0x02, 0x30, 0]]
        {
            assert!(Certificate::read(bytes).is_none(), "{bytes:?}");
        }
        assert_eq!(element(&[0x30, 0x81, 1, 7, 8]), Some((0x30, &[7][..], &[8][..])));
    }
}
