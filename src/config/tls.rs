//! The TLS parameters of a connection string.

use std::path::PathBuf;

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

/// The TLS parameters of a connection string.
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "rustls"), allow(dead_code))]
pub(crate) struct TlsSettings {
    pub(crate) mode: Mode,
    pub(crate) roots: Roots,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    /// Whether the handshake carries the host's name (SNI).
    pub(crate) sni: bool,
    pub(crate) only_tls13: bool,
    /// Starts with the TLS handshake, without PostgreSQL's `SSLRequest` before it.
    pub(crate) direct: bool,
}

impl TlsSettings {
    /// Reads the parameters; an unknown value is an error that lists the known ones.
    pub(crate) fn from_parameters<'a>(
        parameter: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<Self, String> {
        let roots = match parameter("sslrootcert") {
            None => Roots::Unset,
            Some("system") => Roots::System,
            Some(path) => Roots::File(path.into()),
        };
        let given = parameter("sslmode").map(parse_mode).transpose()?;
        let mode = check_mode(given, &roots)?;
        let direct = match parameter("sslnegotiation") {
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
        let only_tls13 = match parameter("ssl_min_protocol_version") {
            None | Some("TLSv1" | "TLSv1.1" | "TLSv1.2") => false,
            Some("TLSv1.3") => true,
            Some(_) => {
                return Err("ssl_min_protocol_version must be TLSv1.2 or TLSv1.3".to_owned());
            }
        };
        Ok(Self {
            mode,
            roots,
            cert: parameter("sslcert").map(PathBuf::from),
            key: parameter("sslkey").map(PathBuf::from),
            sni: parameter("sslsni") != Some("0"),
            only_tls13,
            direct,
        })
    }
}

fn parse_mode(text: &str) -> Result<Mode, String> {
    match text {
        "disable" => Ok(Mode::Disable),
        // libpq's `allow` tries without TLS first; trying with TLS first is never worse.
        "allow" | "prefer" => Ok(Mode::Prefer),
        "require" => Ok(Mode::Require),
        "verify-ca" => Ok(Mode::VerifyCa),
        "verify-full" => Ok(Mode::VerifyFull),
        _ => Err("sslmode must be disable, prefer, require, verify-ca or verify-full".to_owned()),
    }
}

/// `sslrootcert` with a mode that verifies nothing is an error: the caller expects a verified server.
fn check_mode(given: Option<Mode>, roots: &Roots) -> Result<Mode, String> {
    match (given, roots) {
        (None, Roots::System) => Ok(Mode::VerifyFull),
        (Some(Mode::VerifyFull), _) => Ok(Mode::VerifyFull),
        (Some(_), Roots::System) => {
            Err("sslrootcert=system needs sslmode=verify-full, or no sslmode".to_owned())
        }
        (None | Some(Mode::Prefer), Roots::File(_)) => {
            Err("sslrootcert is given, but sslmode verifies nothing: add sslmode=verify-full (or \
                 verify-ca, without the host's name)"
                .to_owned())
        }
        (None, Roots::Unset) => Ok(Mode::Prefer),
        (Some(mode), _) => Ok(mode),
    }
}
