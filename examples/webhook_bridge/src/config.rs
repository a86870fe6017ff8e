//! Settings: flags and environment, checked before anything is started.

use std::{fmt::Display, net::SocketAddr, path::PathBuf};

use clap::Parser;
use ruma::{OwnedDeviceId, OwnedUserId, UserId};
use secrecy::SecretString;
use url::Url;

use crate::errors::{BridgeError, exit_code};

/// Receives end-to-end encrypted Matrix messages and forwards them to a webhook.
///
/// Every setting is a flag or an environment variable; give secrets through the environment, since
/// other users of the machine can read flags.
#[derive(Parser)]
#[command(version)]
pub struct Args {
    /// Base URL of the homeserver's client API, such as `https://matrix.example.org`
    #[arg(long, env = "MATRIX_HOMESERVER")]
    homeserver: Option<String>,
    /// Full user id of the bot, such as @bot:example.org
    #[arg(long, env = "MATRIX_USER")]
    user: Option<String>,
    /// The bot's password
    #[arg(long, env = "MATRIX_PASSWORD", hide_env_values = true)]
    password: Option<SecretString>,
    /// An access token, instead of a password
    #[arg(long, env = "MATRIX_ACCESS_TOKEN", hide_env_values = true)]
    access_token: Option<SecretString>,
    /// Device id for the first login [default: one is chosen and kept]
    #[arg(long, env = "MATRIX_DEVICE_ID")]
    device_id: Option<String>,
    /// PostgreSQL URL or key=value string [default: a private PostgreSQL in the data directory]
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: Option<SecretString>,
    /// Seals keys and access token in the database
    #[arg(long, env = "STORE_PASSPHRASE", hide_env_values = true)]
    store_passphrase: Option<SecretString>,
    /// Name under which keys and undelivered messages are kept [default: the user id]
    #[arg(long, env = "STORE_ACCOUNT")]
    store_account: Option<String>,
    /// Where messages are POSTed
    #[arg(long, env = "WEBHOOK_URL", hide_env_values = true)]
    webhook_url: Option<SecretString>,
    /// Bearer token sent to the webhook
    #[arg(long, env = "WEBHOOK_TOKEN", hide_env_values = true)]
    webhook_token: Option<SecretString>,
    /// Directory of the private PostgreSQL, used when there is no DATABASE_URL
    #[arg(long, env = "BRIDGE_DATA_DIR", default_value = "./webhook_bridge_data")]
    data_dir: PathBuf,
    /// Address for /healthz, /readyz and /metrics, such as 127.0.0.1:9090 [default: none]
    #[arg(long, env = "BRIDGE_LISTEN")]
    listen: Option<String>,
    /// When another process has the account: wait, take or refuse [default: wait]
    #[arg(long, env = "BRIDGE_ON_OWNER")]
    on_owner: Option<String>,
    /// Log more; RUST_LOG overrides
    #[arg(long, short)]
    pub verbose: bool,
}

/// How the bot proves who it is.
#[derive(Clone, Debug)]
pub enum Credentials {
    Password(SecretString),
    AccessToken(SecretString),
}

/// Where PostgreSQL is.
#[derive(Clone, Debug)]
pub enum Database {
    Url(SecretString),
    Embedded(PathBuf),
}

/// What to do when another process has the account and is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnOwner {
    /// Be its standby.
    Wait,
    /// Take the account over.
    Take,
    /// End.
    Refuse,
}

/// The checked settings. `Debug` shows no secret.
#[derive(Clone, Debug)]
pub struct Config {
    pub homeserver: Url,
    pub user_id: OwnedUserId,
    /// `None` is enough once a session is stored.
    pub credentials: Option<Credentials>,
    pub device_id: Option<OwnedDeviceId>,
    pub database: Database,
    pub store_passphrase: Option<SecretString>,
    pub store_account: String,
    pub webhook_url: Url,
    pub webhook_token: Option<SecretString>,
    pub listen: Option<SocketAddr>,
    pub on_owner: OnOwner,
}

impl TryFrom<Args> for Config {
    type Error = BridgeError;

    fn try_from(args: Args) -> Result<Self, BridgeError> {
        let user = required(filled(args.user), "MATRIX_USER", "@bot:example.org")?;
        let user_id = UserId::parse(&user).map_err(|error| {
            invalid(format!("MATRIX_USER {user:?} is no user id ({error}): write @bot:example.org"))
        })?;
        let homeserver =
            required(filled(args.homeserver), "MATRIX_HOMESERVER", "https://matrix.example.org")?;
        let webhook = secret(args.webhook_url);
        let webhook = required(webhook, "WEBHOOK_URL", "https://example.org/hook")?;
        let listen = filled(args.listen).map(|address| {
            address.parse().map_err(|_| {
                invalid(format!("BRIDGE_LISTEN {address:?} is no address: write 127.0.0.1:9090"))
            })
        });
        let credentials = match (secret(args.access_token), secret(args.password)) {
            (Some(token), _) => Some(Credentials::AccessToken(token.into())),
            (None, Some(password)) => Some(Credentials::Password(password.into())),
            (None, None) => None,
        };
        Ok(Self {
            homeserver: http_url(&homeserver, "MATRIX_HOMESERVER")?,
            credentials,
            device_id: filled(args.device_id).map(OwnedDeviceId::from),
            database: match secret(args.database_url) {
                Some(url) => Database::Url(url.into()),
                None => Database::Embedded(args.data_dir),
            },
            store_passphrase: secret(args.store_passphrase).map(Into::into),
            store_account: filled(args.store_account).unwrap_or_else(|| user_id.to_string()),
            webhook_url: http_url(&webhook, "WEBHOOK_URL")?,
            webhook_token: secret(args.webhook_token).map(Into::into),
            listen: listen.transpose()?,
            on_owner: on_owner(filled(args.on_owner).as_deref())?,
            user_id,
        })
    }
}

fn invalid(message: impl Into<String>) -> BridgeError {
    BridgeError::last(exit_code::CONFIGURATION, message)
}

fn on_owner(value: Option<&str>) -> Result<OnOwner, BridgeError> {
    match value {
        None | Some("wait") => Ok(OnOwner::Wait),
        Some("take") => Ok(OnOwner::Take),
        Some("refuse") => Ok(OnOwner::Refuse),
        Some(other) => {
            Err(invalid(format!("BRIDGE_ON_OWNER is {other:?}: write wait, take or refuse")))
        }
    }
}

/// Compose files often set a variable to nothing when they mean unset.
fn filled(value: Option<String>) -> Option<String> {
    value.map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

fn secret(value: Option<SecretString>) -> Option<String> {
    use secrecy::ExposeSecret;
    value.map(|value| value.expose_secret().to_owned()).filter(|value| !value.is_empty())
}

fn required(value: Option<String>, name: &str, example: &str) -> Result<String, BridgeError> {
    value.ok_or_else(|| invalid(format!("{name} is not set: set it, as in {name}={example}")))
}

/// The value itself is left out of the error: URLs of webhooks often hold a secret.
fn http_url(value: &str, name: &str) -> Result<Url, BridgeError> {
    let explain = |reason: &dyn Display| {
        invalid(format!(
            "{name} is no usable URL ({reason}): it must begin with https:// or http://"
        ))
    };
    let url = Url::parse(value).map_err(|error| explain(&error))?;
    match (url.scheme(), url.host_str()) {
        ("http" | "https", Some(_)) => Ok(url),
        (scheme, _) => Err(explain(&format!("scheme {scheme:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(changes: &[(&str, &str)]) -> Result<Config, BridgeError> {
        let mut settings = std::collections::BTreeMap::from([
            ("--homeserver", "http://localhost:8008"),
            ("--user", "@bot:example.org"),
            ("--password", "tops3cret"),
            ("--webhook-url", "http://localhost/hook?key=tops3cret"),
        ]);
        settings.extend(changes.iter().copied());
        let words = settings.into_iter().flat_map(|(name, value)| [name, value]);
        Args::try_parse_from(std::iter::once("webhook_bridge").chain(words)).unwrap().try_into()
    }

    #[test]
    fn names_the_setting_and_never_the_secret() {
        for (name, value, expected) in [
            ("--homeserver", "matrix.example.org", "MATRIX_HOMESERVER"),
            ("--homeserver", "ftp://example.org", "MATRIX_HOMESERVER"),
            ("--homeserver", "", "MATRIX_HOMESERVER"),
            ("--user", "bot", "MATRIX_USER"),
            ("--webhook-url", "htp:tops3cret", "WEBHOOK_URL"),
            ("--listen", "9090", "BRIDGE_LISTEN"),
            ("--on-owner", "steal", "BRIDGE_ON_OWNER"),
        ] {
            let error = parse(&[(name, value)]).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(expected), "{text}");
            assert!(!text.contains("tops3cret"), "{text}");
            assert!(matches!(error, BridgeError::Final { code: exit_code::CONFIGURATION, .. }));
        }
    }

    #[test]
    fn an_empty_value_is_unset_and_debug_is_silent() {
        let config = parse(&[("--webhook-token", ""), ("--database-url", "")]).unwrap();
        assert!(config.webhook_token.is_none());
        assert!(matches!(config.database, Database::Embedded(_)));
        let config = parse(&[("--database-url", "postgres://u:tops3cret@h/d")]).unwrap();
        let shown = format!("{:?} {:?}", config.credentials, config.database);
        assert!(!shown.contains("tops3cret"), "{shown}");
        assert_eq!(config.store_account, "@bot:example.org");
        assert_eq!(config.on_owner, OnOwner::Wait);
    }
}
