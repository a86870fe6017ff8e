//! What a connection string says, with libpq's meaning.
//!
//! `tokio-postgres` parses connection strings too, but knows neither `sslrootcert` nor the
//! `verify-…` modes, and reads `tcp_user_timeout` in seconds where libpq has milliseconds.

mod addresses;
mod foreign;
mod parse;
mod template;
#[cfg(test)]
mod tests;
mod words;

use std::{path::PathBuf, time::Duration};

use tokio_postgres::Config;
use zeroize::Zeroizing;

use self::{addresses::addresses, template::template, words::Words};
pub(crate) use self::{
    addresses::{Address, Host},
    template::APPLICATION_NAME,
};
use crate::config::{limits::LONGEST_TIMEOUT, tls::TlsSettings};

/// The variables that `from_env` reads besides `DATABASE_URL`, and the words they stand for:
/// PostgreSQL manual, "Environment Variables".
const VARIABLES: &[(&str, &str)] = &[
    ("PGHOST", "host"),
    ("PGHOSTADDR", "hostaddr"),
    ("PGPORT", "port"),
    ("PGUSER", "user"),
    ("PGPASSWORD", "password"),
    ("PGPASSFILE", "passfile"),
    ("PGDATABASE", "dbname"),
    ("PGSSLMODE", "sslmode"),
    ("PGSSLROOTCERT", "sslrootcert"),
    ("PGSSLCERT", "sslcert"),
    ("PGSSLKEY", "sslkey"),
    ("PGSSLCRL", "sslcrl"),
    ("PGSSLCRLDIR", "sslcrldir"),
    ("PGSSLNEGOTIATION", "sslnegotiation"),
    ("PGSSLSNI", "sslsni"),
    ("PGSSLMINPROTOCOLVERSION", "ssl_min_protocol_version"),
    ("PGREQUIREAUTH", "require_auth"),
    ("PGCHANNELBINDING", "channel_binding"),
    ("PGCONNECT_TIMEOUT", "connect_timeout"),
    ("PGAPPNAME", "application_name"),
    ("PGTARGETSESSIONATTRS", "target_session_attrs"),
    ("PGLOADBALANCEHOSTS", "load_balance_hosts"),
];

/// A connection string, understood.
#[derive(Clone)]
pub(crate) struct ConnInfo {
    pub(crate) addresses: Vec<Address>,
    pub(crate) user: Option<String>,
    pub(crate) dbname: Option<String>,
    pub(crate) password: Option<Zeroizing<String>>,
    pub(crate) passfile: Option<PathBuf>,
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) random_order: bool,
    pub(crate) tls: TlsSettings,
    /// Everything else, without host, user, database and password.
    pub(crate) template: Config,
}

impl ConnInfo {
    /// Reads a connection string, and `PGPASSWORD` where it holds no password.
    pub(crate) fn parse(
        text: &str,
        variable: impl FnOnce(&str) -> Result<Option<String>, String>,
    ) -> Result<Self, String> {
        let mut words = parse::parse(text)?;
        if words.get("password").is_none()
            && let Some(password) = variable("PGPASSWORD")?
        {
            words.insert("password", password.into())?;
        }
        Self::from_words(&words)
    }

    /// Reads `DATABASE_URL`, and libpq's variables for the words that it does not hold.
    pub(crate) fn from_variables(
        variable: impl Fn(&str) -> Result<Option<String>, String>,
    ) -> Result<Self, String> {
        const WHERE: [&str; 4] = ["PGHOST", "PGHOSTADDR", "PGUSER", "PGDATABASE"];
        let variable = |name: &str| {
            Ok::<_, String>(variable(name)?.filter(|value| !value.is_empty()).map(Zeroizing::new))
        };
        let url = variable("DATABASE_URL")?;
        let mut words = match &url {
            Some(url) => parse::parse(url).map_err(|error| format!("in DATABASE_URL, {error}"))?,
            None => Words::default(),
        };
        // An address is taken from one place: a foreign `hostaddr` would redirect the URL's host.
        let has_address = words.get("host").or(words.get("hostaddr")).is_some();
        let mut found = url.is_some();
        for (name, word) in VARIABLES {
            let Some(value) = variable(name)? else {
                continue;
            };
            found |= WHERE.contains(name);
            if !(has_address && matches!(*word, "host" | "hostaddr")) {
                words.fill(word, value).map_err(|error| format!("in {name}, {error}"))?;
            }
        }
        if !found {
            return Err(format!(
                "the environment names no database: set DATABASE_URL, or one of {}",
                WHERE.join(", ")
            ));
        }
        Self::from_words(&words)
    }

    fn from_words(words: &Words) -> Result<Self, String> {
        check_harmless(words)?;
        let addresses = addresses(words)?;
        let tls = TlsSettings::from_words(|word| words.get(word))?;
        let random_order =
            words.parse("load_balance_hosts", "disable or random", |value| match value {
                "disable" => Some(false),
                "random" => Some(true),
                _ => None,
            })?;
        Ok(Self {
            template: template(words, addresses.len(), tls.direct)?,
            addresses,
            user: words.get("user").map(ToOwned::to_owned),
            dbname: words.get("dbname").map(ToOwned::to_owned),
            password: words.get("password").map(|text| text.to_owned().into()),
            passfile: words.get("passfile").map(PathBuf::from),
            connect_timeout: connect_timeout(words)?,
            random_order: random_order.unwrap_or(false),
            tls,
        })
    }
}

/// Words that may be ignored unless they demand what cannot be had.
fn check_harmless(words: &Words) -> Result<(), String> {
    words.parse("gssencmode", "disable or prefer: GSSAPI is not supported", |value| {
        matches!(value, "disable" | "prefer").then_some(())
    })?;
    words.parse("client_encoding", "UTF8, the only encoding that is used", |value| {
        let value = value.to_ascii_lowercase().replace(['-', '_'], "");
        matches!(value.as_str(), "utf8" | "unicode" | "auto").then_some(())
    })?;
    Ok(())
}

/// Zero, or less, is libpq's way to say "without limit"; our longest is close enough.
fn connect_timeout(words: &Words) -> Result<Option<Duration>, String> {
    words.parse("connect_timeout", "a whole number of seconds", |value| {
        let seconds = value.parse::<i64>().ok()?;
        Some(match u64::try_from(seconds) {
            Ok(0) | Err(_) => LONGEST_TIMEOUT,
            Ok(seconds) => Duration::from_secs(seconds).min(LONGEST_TIMEOUT),
        })
    })
}
