//! The parameters a connection string may hold, and how each is handled.
//!
//! The list is libpq's: PostgreSQL manual, "Parameter Key Words".

use std::collections::BTreeMap;

use tracing::debug;
use zeroize::Zeroizing;

use super::foreign::{advice, advice_on_options, is_spelling_of};

/// How a parameter is handled.
enum Support {
    Used,
    /// Has no effect on the store, whatever its value.
    Ignored,
    /// Ignoring it would silently change what the caller requires. With the reason.
    Refused(&'static str),
    /// The reason depends on the value.
    RefusedFor(fn(&str) -> &'static str),
}
use Support::{Ignored, Refused, RefusedFor, Used};

const PARAMETERS: &[(&str, Support)] = &[
    ("application_name", Used),
    ("channel_binding", Used),
    ("client_encoding", Used),
    ("connect_timeout", Used),
    ("dbname", Used),
    ("fallback_application_name", Used),
    ("gssdelegation", Ignored),
    ("gssencmode", Used),
    ("gsslib", Ignored),
    ("host", Used),
    ("hostaddr", Used),
    ("keepalives", Used),
    ("keepalives_count", Used),
    ("keepalives_idle", Used),
    ("keepalives_interval", Used),
    ("keepalives_retries", Used),
    ("krbsrvname", Ignored),
    ("load_balance_hosts", Used),
    ("max_protocol_version", Ignored),
    ("min_protocol_version", Ignored),
    ("options", RefusedFor(advice_on_options)),
    ("passfile", Used),
    ("password", Used),
    ("port", Used),
    ("replication", Refused("a store needs an ordinary connection")),
    ("require_auth", Refused("the authentication method cannot be restricted")),
    ("service", Refused("service files are not read; set host, port, dbname and user instead")),
    ("servicefile", Refused("service files are not read; set host, port, dbname and user instead")),
    ("sslcert", Used),
    ("sslcertmode", Refused("a client certificate is sent when sslcert is given")),
    ("sslcompression", Ignored),
    ("sslcrl", Refused("revocation lists are not checked")),
    ("sslcrldir", Refused("revocation lists are not checked")),
    ("sslkey", Used),
    ("sslkeylogfile", Refused("TLS session keys are never written to a file")),
    ("ssl_max_protocol_version", Refused("there is no upper limit for the TLS version")),
    ("ssl_min_protocol_version", Used),
    ("sslmode", Used),
    ("sslnegotiation", Used),
    ("sslpassword", Refused("encrypted keys cannot be read; decrypt the key with `openssl pkey`")),
    ("sslrootcert", Used),
    ("sslsni", Used),
    ("target_session_attrs", Used),
    ("tcp_user_timeout", Used),
    ("user", Used),
];

/// The parameters of one connection string; never printed, as one of them is the password.
#[derive(Default)]
pub(super) struct Parameters {
    values: BTreeMap<&'static str, Zeroizing<String>>,
    /// Whether errors quote unknown names: none of them can be a piece of a password.
    quotes_names: bool,
}

impl Parameters {
    /// Whether an unknown name in this part of a string may be quoted in an error. Where a password is
    /// given, or an '@' may end one, the name may be a piece of it.
    pub(super) fn quote_names_of(&mut self, text: &str) {
        self.quotes_names = !text.contains('@') && !text.to_ascii_lowercase().contains("pass");
    }

    /// Sets a parameter; a later value replaces an earlier one, as in libpq.
    pub(super) fn insert(&mut self, name: &str, value: Zeroizing<String>) -> Result<(), String> {
        let Some((name, support)) = PARAMETERS.iter().find(|(known, _)| *known == name) else {
            return Err(unknown(name, self.quotes_names));
        };
        match support {
            // After a missing quote or a stray backslash, `Debug` would show the password as part of it.
            Used if *name != "password" && value.contains("password") && value.contains('=') => {
                return Err(format!(
                    "another parameter inside the value of {name}: check its quotes and backslashes"
                ));
            }
            Used => {
                self.values.insert(name, value);
            }
            Ignored => debug!(parameter = name, "ignored in the connection string"),
            Refused(_) | RefusedFor(_) if value.is_empty() => {}
            RefusedFor(reason) => {
                return Err(format!("{name} is not supported: {}", reason(&value)));
            }
            Refused(reason) => return Err(format!("{name} is not supported: {reason}")),
        }
        Ok(())
    }

    /// Sets a parameter unless it is already set.
    pub(super) fn fill(&mut self, name: &str, value: Zeroizing<String>) -> Result<(), String> {
        if self.get(name).is_some() { Ok(()) } else { self.insert(name, value) }
    }

    /// The value of a parameter; an empty one counts as unset, as in libpq.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(|value| value.as_str()).filter(|value| !value.is_empty())
    }

    /// The value of a parameter, parsed; `expected` completes the error "{name} must be …".
    pub(super) fn parse<T>(
        &self,
        name: &str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, String> {
        match self.get(name).map(parse) {
            None => Ok(None),
            Some(Some(value)) => Ok(Some(value)),
            Some(None) => Err(format!("{name} must be {expected}")),
        }
    }
}

/// The error for a name that is not libpq's.
fn unknown(name: &str, is_quoted: bool) -> String {
    let mut known = PARAMETERS.iter().map(|(known, _)| *known);
    let spelling = known.find(|known| is_spelling_of(name, known));
    if spelling.is_none()
        && let Some(advice) = advice(name)
    {
        return format!("{name}, a parameter of another driver: {advice}");
    }
    let quoted = if is_quoted { format!(" {name:?}") } else { String::new() };
    match spelling.or_else(|| similar(name)) {
        Some(known) => format!("an unknown parameter{quoted} (did you mean {known}?)"),
        None => format!("an unknown parameter{quoted}"),
    }
}

/// The known parameter that shares the longest prefix with a mistyped one.
fn similar(name: &str) -> Option<&'static str> {
    let common = |known: &str| known.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
    let (known, _) = PARAMETERS.iter().max_by_key(|(known, _)| common(known))?;
    (common(known) >= 3).then_some(known)
}
