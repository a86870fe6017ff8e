//! The PEM files of a connection string, read when a store is opened.

use std::path::{Path, PathBuf};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use zeroize::Zeroizing;

use crate::{OpenStoreError, config::tls::TlsSettings};

/// A client certificate, its intermediates, and its key.
pub(super) struct ClientCertificate {
    pub(super) path: PathBuf,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

/// A file in libpq's directory, if it is there.
pub(super) fn default_file(name: &str) -> Option<PathBuf> {
    Some(std::env::home_dir()?.join(".postgresql").join(name)).filter(|path| path.is_file())
}

pub(super) fn client_certificate(
    settings: &TlsSettings,
) -> Result<Option<ClientCertificate>, OpenStoreError> {
    let Some(path) = settings.cert.clone().or_else(|| default_file("postgresql.crt")) else {
        return match settings.key {
            Some(_) => Err(invalid("sslkey is given without sslcert")),
            None => Ok(None),
        };
    };
    let Some(key) = settings.key.clone().or_else(|| default_file("postgresql.key")) else {
        return Err(invalid(format!("the key of {} is missing: add sslkey", path.display())));
    };
    let (chain, key) = (certificates("sslcert", &path)?, private_key(&key)?);
    Ok(Some(ClientCertificate { path, chain, key }))
}

/// All certificates of a file; at least one.
pub(super) fn certificates(
    parameter: &str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, OpenStoreError> {
    let text = read(parameter, path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(invalid(format!("{parameter}: {} holds no PEM certificate", path.display()))),
        Err(error) => {
            Err(invalid(format!("{parameter}: {} is malformed: {error}", path.display())))
        }
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, OpenStoreError> {
    let text = Zeroizing::new(read("sslkey", path)?);
    check_permissions(path)?;
    if text.windows(9).any(|window| window == b"ENCRYPTED") {
        return Err(invalid(format!(
            "sslkey: {} is encrypted: decrypt it with `openssl pkey`",
            path.display()
        )));
    }
    PrivateKeyDer::from_pem_slice(&text).map_err(|_| {
        // The parser's text is left out: it may quote the key.
        invalid(format!("sslkey: {} holds no PEM private key", path.display()))
    })
}

/// libpq's rule: 0600, or 0640 for a file that belongs to root.
#[cfg(unix)]
fn check_permissions(path: &Path) -> Result<(), OpenStoreError> {
    use std::os::unix::fs::MetadataExt;

    let metadata = std::fs::metadata(path).map_err(|error| unreadable("sslkey", path, &error))?;
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & forbidden != 0 {
        return Err(invalid(format!(
            "sslkey: {} has group or world access: permissions must be 0600, or 0640 if it \
             belongs to root",
            path.display()
        )));
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_permissions(_: &Path) -> Result<(), OpenStoreError> {
    Ok(())
}

fn read(parameter: &str, path: &Path) -> Result<Vec<u8>, OpenStoreError> {
    std::fs::read(path).map_err(|error| unreadable(parameter, path, &error))
}

fn unreadable(parameter: &str, path: &Path, error: &std::io::Error) -> OpenStoreError {
    invalid(format!("{parameter}: {} cannot be read: {error}", path.display()))
}

pub(super) fn invalid(text: impl Into<String>) -> OpenStoreError {
    OpenStoreError::InvalidConfig(text.into())
}
