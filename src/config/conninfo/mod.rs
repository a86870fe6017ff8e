//! Parses connection strings, with libpq's meaning.
//!
//! `tokio-postgres` parses connection strings too, but supports neither `sslrootcert` nor the
//! `verify-…` modes, and reads `tcp_user_timeout` in seconds where libpq has milliseconds.

mod addresses;
mod foreign;
mod parameters;
mod parse;
mod template;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, time::Duration};

use tokio_postgres::Config;
use zeroize::Zeroizing;

use self::{addresses::addresses, parameters::Parameters, template::template};
pub(crate) use self::{
    addresses::{Address, Host},
    template::APPLICATION_NAME,
};
use crate::config::{limits::MAX_TIMEOUT, tls::TlsSettings};

/// The variables that `from_env` reads besides `DATABASE_URL`, and the parameters they stand for:
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

/// A parsed connection string.
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
    /// The driver's settings, without host, user, database and password.
    pub(crate) template: Config,
}

impl ConnInfo {
    /// Reads a connection string, and `PGPASSWORD` where it holds no password.
    pub(crate) fn parse(
        text: &str,
        variable: impl FnOnce(&str) -> Result<Option<String>, String>,
    ) -> Result<Self, String> {
        let mut parameters = parse::parse(text)?;
        if parameters.get("password").is_none()
            && let Some(password) = variable("PGPASSWORD")?
        {
            parameters.insert("password", password.into())?;
        }
        Self::from_parameters(&parameters)
    }

    /// Reads `DATABASE_URL`, and libpq's variables for the parameters that it does not hold.
    pub(crate) fn from_variables(
        variable: impl Fn(&str) -> Result<Option<String>, String>,
    ) -> Result<Self, String> {
        const ADDRESS_VARIABLES: [&str; 4] = ["PGHOST", "PGHOSTADDR", "PGUSER", "PGDATABASE"];
        let variable = |name: &str| {
            Ok::<_, String>(variable(name)?.filter(|value| !value.is_empty()).map(Zeroizing::new))
        };
        let url = variable("DATABASE_URL")?;
        let mut parameters = match &url {
            Some(url) => parse::parse(url).map_err(|error| format!("in DATABASE_URL, {error}"))?,
            None => Parameters::default(),
        };
        // Host and hostaddr must come from one source: PGHOSTADDR would redirect the URL's host.
        let has_address = parameters.get("host").or(parameters.get("hostaddr")).is_some();
        let mut found = url.is_some();
        for (name, parameter) in VARIABLES {
            let Some(value) = variable(name)? else {
                continue;
            };
            found |= ADDRESS_VARIABLES.contains(name);
            if !(has_address && matches!(*parameter, "host" | "hostaddr")) {
                parameters.fill(parameter, value).map_err(|error| format!("in {name}, {error}"))?;
            }
        }
        if !found {
            return Err(format!(
                "the environment names no database: set DATABASE_URL, or one of {}",
                ADDRESS_VARIABLES.join(", ")
            ));
        }
        Self::from_parameters(&parameters)
    }

    fn from_parameters(parameters: &Parameters) -> Result<Self, String> {
        check_harmless(parameters)?;
        let addresses = addresses(parameters)?;
        let tls = TlsSettings::from_parameters(|parameter| parameters.get(parameter))?;
        let random_order =
            parameters.parse("load_balance_hosts", "disable or random", |value| match value {
                "disable" => Some(false),
                "random" => Some(true),
                _ => None,
            })?;
        Ok(Self {
            template: template(parameters, addresses.len(), tls.direct)?,
            addresses,
            user: parameters.get("user").map(ToOwned::to_owned),
            dbname: parameters.get("dbname").map(ToOwned::to_owned),
            password: parameters.get("password").map(|text| text.to_owned().into()),
            passfile: parameters.get("passfile").map(PathBuf::from),
            connect_timeout: connect_timeout(parameters)?,
            random_order: random_order.unwrap_or(false),
            tls,
        })
    }
}

/// Checks the parameters that are ignored: a value that requires something unsupported is an error.
fn check_harmless(parameters: &Parameters) -> Result<(), String> {
    parameters.parse("gssencmode", "disable or prefer: GSSAPI is not supported", |value| {
        matches!(value, "disable" | "prefer").then_some(())
    })?;
    parameters.parse("client_encoding", "UTF8, the only encoding that is used", |value| {
        let value = value.to_ascii_lowercase().replace(['-', '_'], "");
        matches!(value.as_str(), "utf8" | "unicode" | "auto").then_some(())
    })?;
    Ok(())
}

/// Zero or less means "no limit" in libpq; the maximum timeout is close enough.
fn connect_timeout(parameters: &Parameters) -> Result<Option<Duration>, String> {
    parameters.parse("connect_timeout", "a whole number of seconds", |value| {
        let seconds = value.parse::<i64>().ok()?;
        Some(match u64::try_from(seconds) {
            Ok(0) | Err(_) => MAX_TIMEOUT,
            Ok(seconds) => Duration::from_secs(seconds).min(MAX_TIMEOUT),
        })
    })
}
