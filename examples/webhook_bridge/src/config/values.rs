//! Parses the values of settings.

use std::{
    fmt::Display,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::{CrossSigning, Takeover};
use crate::{
    allow_list::AllowList,
    backup,
    errors::{BridgeError, exit_code},
    http_client::Target,
    trusted_bridges::TrustedBridges,
};

/// Bytes of a recovery key, spaces included.
const MAX_RECOVERY_KEY: usize = 256;

pub fn invalid(message: impl Into<String>) -> BridgeError {
    BridgeError::fatal(exit_code::CONFIGURATION, message)
}

/// An empty value counts as unset: compose files often set variables to nothing.
pub fn non_empty(value: Option<String>) -> Option<String> {
    value.map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// A secret, from its setting or from a file. A trailing newline is stripped, because files often end
/// in one.
pub fn secret(
    value: &Option<SecretString>,
    file: &Option<PathBuf>,
    name: &str,
) -> Result<Option<String>, BridgeError> {
    let trimmed = |text: &str| text.trim_end_matches(['\r', '\n']).to_owned();
    let value = value.as_ref().map(|value| trimmed(value.expose_secret()));
    let value = value.filter(|value| !value.is_empty());
    let Some(file) = file.as_ref().filter(|file| !file.as_os_str().is_empty()) else {
        return Ok(value);
    };
    if value.is_some() {
        return Err(invalid(format!("{name} and {name}_FILE are both set: remove one")));
    }
    let shown = file.display();
    let text = std::fs::read_to_string(file)
        .map_err(|error| invalid(format!("{name}_FILE {shown} cannot be read: {error}")))?;
    match trimmed(&text) {
        text if text.is_empty() => Err(invalid(format!("{name}_FILE {shown} is empty"))),
        text => Ok(Some(text)),
    }
}

/// A secret that is sent in a header.
pub fn token(
    value: &Option<SecretString>,
    file: &Option<PathBuf>,
    name: &str,
) -> Result<Option<String>, BridgeError> {
    let token = secret(value, file, name)?;
    let fits = |token: &String| token.bytes().all(|one| (b' '..=b'~').contains(&one));
    match token.as_ref().is_none_or(fits) {
        true => Ok(token),
        false => Err(invalid(format!(
            "{name} has a line break or another character that no header can have"
        ))),
    }
}

pub fn required(value: Option<String>, name: &str, example: &str) -> Result<String, BridgeError> {
    value.ok_or_else(|| invalid(format!("{name} is not set: set it, as in {name}={example}")))
}

/// An address to listen on; a port alone is one of the loopback interface.
pub fn address(value: &str, name: &str) -> Result<SocketAddr, BridgeError> {
    if let Ok(port) = value.parse() {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    value.parse().map_err(|_| {
        invalid(format!("{name} {value:?} is not an address: set it, as in {name}=127.0.0.1:9090"))
    })
}

/// A number above zero.
pub fn number<T: FromStr + Default + PartialOrd>(
    value: &Option<String>,
    name: &str,
    default: T,
) -> Result<T, BridgeError> {
    let Some(value) = non_empty(value.clone()) else { return Ok(default) };
    match value.parse() {
        Ok(number) if number > T::default() => Ok(number),
        _ => Err(invalid(format!("{name} is {value:?}: set it to a whole number above 0"))),
    }
}

pub fn on_off(value: &Option<String>, name: &str, default: bool) -> Result<bool, BridgeError> {
    match non_empty(value.clone()).map(|value| value.to_lowercase()).as_deref() {
        None => Ok(default),
        Some("true" | "1" | "yes" | "on") => Ok(true),
        Some("false" | "0" | "no" | "off") => Ok(false),
        Some(other) => Err(invalid(format!("{name} is {other:?}: set it to true or false"))),
    }
}

pub fn takeover(value: Option<&str>) -> Result<Takeover, BridgeError> {
    match value {
        None | Some("wait") => Ok(Takeover::Wait),
        Some("immediate") => Ok(Takeover::Immediate),
        Some("refuse") => Ok(Takeover::Refuse),
        Some(other) => Err(invalid(format!(
            "BRIDGE_TAKEOVER is {other:?}: set it to wait, immediate or refuse"
        ))),
    }
}

pub fn cross_signing(value: Option<&str>) -> Result<CrossSigning, BridgeError> {
    match value {
        None | Some("create") => Ok(CrossSigning::Create),
        Some("reset") => Ok(CrossSigning::Reset),
        Some("off") => Ok(CrossSigning::Off),
        Some(other) => Err(invalid(format!(
            "BRIDGE_CROSS_SIGNING is {other:?}: set it to create, reset or off"
        ))),
    }
}

pub fn recovery_key(
    value: &Option<SecretString>,
    file: &Option<PathBuf>,
) -> Result<Option<SecretString>, BridgeError> {
    let key = secret(value, file, "BRIDGE_RECOVERY_KEY")?;
    // Parsing takes a time that is quadratic in the length.
    let is_key = |key: &str| key.len() <= MAX_RECOVERY_KEY && backup::parse(key).is_some();
    if key.as_deref().is_some_and(|key| !is_key(key)) {
        return Err(invalid(
            "BRIDGE_RECOVERY_KEY is not a recovery key: set it to the one that was printed when the \
             key backup was created, or that another client of the bot's user shows",
        ));
    }
    Ok(key.map(Into::into))
}

pub fn allow_list(list: &str) -> Result<AllowList, BridgeError> {
    AllowList::parse(list).map_err(|entry| {
        invalid(format!(
            "BRIDGE_INVITE_ALLOW has the entry {entry:?}: set it to user ids and server names, which \
             may contain * and ?, as in @alice:example.org,*.example.org"
        ))
    })
}

pub fn trusted_bridges(list: &str) -> Result<TrustedBridges, BridgeError> {
    TrustedBridges::parse(list).map_err(|reason| {
        invalid(format!(
            "BRIDGE_TRUSTED_BRIDGES {reason}: set it to bots of bridges and their ghosts, as in \
             @metabot:example.org=@meta_*:example.org"
        ))
    })
}

/// The error does not quote the value, because webhook URLs often hold a secret.
pub fn http_url(value: &str, name: &str) -> Result<Target, BridgeError> {
    let explain = |reason: &dyn Display| {
        invalid(format!(
            "{name} is not a usable URL ({reason}): it must begin with https:// or http://"
        ))
    };
    let url = Url::parse(value.trim()).map_err(|error| explain(&error))?;
    match (url.scheme(), url.host_str()) {
        ("http" | "https", Some(_)) => Ok(Target::new(url)),
        (scheme, _) => Err(explain(&format!("scheme {scheme:?}"))),
    }
}
