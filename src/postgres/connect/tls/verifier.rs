//! Which certificates of a server are accepted.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

use super::{
    certificate::with_fault,
    files::{certificates, default_file, invalid},
};
use crate::{
    OpenStoreError,
    config::tls::{Mode, Roots, TlsSettings},
};

/// The verifier of an `sslmode`.
pub(super) fn verifier(
    settings: &TlsSettings,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, OpenStoreError> {
    if settings.mode == Mode::Prefer {
        return Ok(Arc::new(Unverified(provider)));
    }
    let file = match &settings.roots {
        Roots::File(path) => Some(path.clone()),
        Roots::Unset => default_file("root.crt"),
        Roots::System => None,
    };
    let Some(file) = file else {
        if settings.mode == Mode::VerifyCa {
            // Public authorities sign for every host: without a check of the name, that verifies
            // nothing.
            return Err(invalid(
                "sslmode=verify-ca needs sslrootcert=<the CA's file> (or ~/.postgresql/root.crt); \
                 for the system's authorities use sslmode=verify-full",
            ));
        }
        let webpki = webpki(system_roots()?, provider)?;
        return Ok(Arc::new(ChainVerifier { webpki, trusted: Vec::new(), check_name: true }));
    };
    let trusted = certificates("sslrootcert", &file)?;
    let mut roots = RootCertStore::empty();
    for certificate in &trusted {
        roots.add(certificate.clone()).map_err(|error| {
            invalid(format!("sslrootcert: {} is malformed: {error}", file.display()))
        })?;
    }
    Ok(Arc::new(ChainVerifier {
        webpki: webpki(roots, provider)?,
        trusted,
        check_name: settings.mode == Mode::VerifyFull,
    }))
}

fn webpki(
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, OpenStoreError> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| invalid(format!("the trusted certificates are unusable: {error}")))
}

fn system_roots() -> Result<RootCertStore, OpenStoreError> {
    let mut roots = RootCertStore::empty();
    // Certificates that cannot be read are skipped: the others are still trusted.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(invalid(no_roots(|name| std::env::var_os(name).is_some())));
    }
    Ok(roots)
}

/// What to do when there are no trusted authorities. `is_set`: whether a variable is set.
fn no_roots(is_set: impl Fn(&str) -> bool) -> String {
    let variables: Vec<&str> =
        ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().filter(|name| is_set(name)).collect();
    if variables.is_empty() {
        "this host has no trusted certificates: install ca-certificates, or give \
         sslrootcert=<the CA's file>"
            .to_owned()
    } else {
        let variables = variables.join(" and ");
        format!("{variables} names no readable file with a PEM certificate: correct or unset it")
    }
}

/// Accepts certificates signed by the given authorities, for any name or for the host's only.
#[derive(Debug)]
struct ChainVerifier {
    webpki: Arc<WebPkiServerVerifier>,
    trusted: Vec<CertificateDer<'static>>,
    check_name: bool,
}

impl ChainVerifier {
    fn verify_chain(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verdict = self.webpki.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verdict {
            // webpki checks the name last, after the chain.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.check_name => Ok(ServerCertVerified::assertion()),
            // webpki refuses a self-signed server certificate, after checking its dates, because it
            // is also an authority's; accepted if it is identical to a trusted one.
            Err(Error::InvalidCertificate(CertificateError::Other(_)))
                if self.trusted.iter().any(|trusted| trusted == end_entity) =>
            {
                if self.check_name {
                    verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                }
                Ok(ServerCertVerified::assertion())
            }
            verdict => verdict,
        }
    }
}

impl ServerCertVerifier for ChainVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify_chain(end_entity, intermediates, server_name, ocsp_response, now)
            .map_err(|error| with_fault(error, end_entity))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki
            .verify_tls12_signature(message, cert, signature)
            .map_err(|error| with_fault(error, cert))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki
            .verify_tls13_signature(message, cert, signature)
            .map_err(|error| with_fault(error, cert))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// Accepts every certificate. Signatures of the handshake are still verified: without proof that
/// the server holds the key, SCRAM's channel binding would be useless.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signature, algorithms)
            .map_err(|error| with_fault(error, cert))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signature, algorithms)
            .map_err(|error| with_fault(error, cert))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
