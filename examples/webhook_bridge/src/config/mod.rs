//! Settings from flags and environment, validated before anything is started.

mod api;
mod args;
mod labels;
mod log_format;
mod values;
mod webhook;

use std::{collections::HashMap, net::SocketAddr, path::PathBuf, time::Duration};

use ruma::{OwnedDeviceId, OwnedUserId, UserId};
use secrecy::SecretString;

use self::values::{
    address, allow_list, cross_signing, http_url, invalid, non_empty, number, on_off, recovery_key,
    required, secret, takeover, token, trusted_bridges,
};
pub use self::{
    api::{ApiConfig, Attachments},
    args::{Args, Command, DeadLetterCommand},
    log_format::LogFormat,
    webhook::WebhookConfig,
};
use crate::{
    allow_list::AllowList, errors::BridgeError, http_client::Target, labels::Labels,
    trusted_bridges::TrustedBridges,
};

/// How the bot authenticates to the homeserver.
#[derive(Clone, Debug)]
pub enum Credentials {
    Password(SecretString),
    AccessToken(SecretString),
}

/// The PostgreSQL server to use.
#[derive(Clone, Debug)]
pub enum Database {
    Url(SecretString),
    /// `DATABASE_URL`, completed by libpq's variables.
    Environment,
    /// An embedded server in this directory, for a trial.
    Embedded(PathBuf),
}

/// What to do when another process owns the account and is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takeover {
    /// Wait as a standby until the account is free.
    Wait,
    /// Take the account over.
    Immediate,
    /// Exit.
    Refuse,
}

/// Whether the bot's identity is created, which signs its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrossSigning {
    /// Create it unless the user has one.
    Create,
    /// Also replace one whose private keys are not in the store.
    Reset,
    Off,
}

/// The database settings.
#[derive(Clone, Debug)]
pub struct DatabaseConfig {
    pub database: Database,
    pub pool_size: usize,
    pub run_migrations: bool,
}

/// The validated settings. `Debug` shows no secret.
#[derive(Clone, Debug)]
pub struct Config {
    pub homeserver: Target,
    pub user_id: OwnedUserId,
    /// May be `None` once a session is stored.
    pub credentials: Option<Credentials>,
    pub device_id: Option<OwnedDeviceId>,
    pub database: DatabaseConfig,
    /// `None`: no encryption at rest (`--plain`).
    pub store_passphrase: Option<SecretString>,
    /// The same with the setting's trailing newline, which earlier versions did not strip.
    pub store_passphrase_raw: Option<SecretString>,
    pub store_account: String,
    pub store_instance: Option<String>,
    pub webhook: WebhookConfig,
    pub listen: Option<SocketAddr>,
    pub takeover: Takeover,
    /// How long a refused join or access token is retried.
    pub retry_timeout: Duration,
    /// Filling a gap is abandoned after this many pages, or this many empty ones.
    pub gap_max_pages: i32,
    pub gap_max_empty_pages: i32,
    pub skip_checkpoint: bool,
    pub labels: Labels,
    /// The webhooks of labels that have their own.
    pub labelled_webhooks: HashMap<String, WebhookConfig>,
    pub reactions: bool,
    pub attachments: Attachments,
    /// Required for `/metrics`.
    pub metrics_token: Option<SecretString>,
    /// `None`: the API is off.
    pub api: Option<ApiConfig>,
    /// The password, also if an access token is given.
    pub password: Option<SecretString>,
    pub cross_signing: CrossSigning,
    /// Whose invitations are accepted; `None`: everybody's.
    pub invite_allow: Option<AllowList>,
    pub trusted_bridges: TrustedBridges,
    /// The refresh token of a given access token.
    pub refresh_token: Option<SecretString>,
    pub key_backup: bool,
    /// The key of the backup, if given: valid base58.
    pub recovery_key: Option<SecretString>,
}

impl TryFrom<&Args> for DatabaseConfig {
    type Error = BridgeError;

    fn try_from(args: &Args) -> Result<Self, BridgeError> {
        let embedded = on_off(&args.embedded_postgres, "BRIDGE_EMBEDDED_POSTGRES", false)?;
        let given = secret(&args.database_url, &args.database_url_file, "DATABASE_URL")?;
        let database = match given {
            Some(url) if std::env::var("DATABASE_URL").as_deref() == Ok(&url) => {
                Database::Environment
            }
            Some(url) => Database::Url(url.into()),
            None if libpq_names_a_database() => Database::Environment,
            None if embedded => Database::Embedded(args.data_dir.clone()),
            None => {
                return Err(invalid(
                    "DATABASE_URL is not set, nor PGHOST, PGHOSTADDR, PGUSER or PGDATABASE: set it, \
                     as in DATABASE_URL=postgres://bot@localhost/bots, or use --embedded-postgres to \
                     try the bridge with a PostgreSQL that it starts itself",
                ));
            }
        };
        Ok(Self {
            database,
            pool_size: number(&args.pool_size, "BRIDGE_POOL_SIZE", 8)?,
            run_migrations: on_off(&args.run_migrations, "BRIDGE_RUN_MIGRATIONS", true)?,
        })
    }
}

/// Whether a libpq variable names a server, user or database, as `PostgresStoreConfig::from_env`
/// requires.
fn libpq_names_a_database() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    ["PGHOST", "PGHOSTADDR", "PGUSER", "PGDATABASE"].into_iter().any(is_set)
}

/// The name of keys and inbox in the database; `None` if no setting names it.
pub fn store_account(args: &Args) -> Option<String> {
    non_empty(args.store_account.clone()).or_else(|| non_empty(args.user.clone()))
}

impl TryFrom<Args> for Config {
    type Error = BridgeError;

    fn try_from(args: Args) -> Result<Self, BridgeError> {
        let user = required(non_empty(args.user.clone()), "MATRIX_USER", "@bot:example.org")?;
        let user_id = UserId::parse(&user).map_err(|error| {
            invalid(format!(
                "MATRIX_USER {user:?} is not a user id ({error}): set it, as in \
                 MATRIX_USER=@bot:example.org"
            ))
        })?;
        let homeserver = non_empty(args.homeserver.clone());
        let homeserver = required(homeserver, "MATRIX_HOMESERVER", "https://matrix.example.org")?;
        let listen = non_empty(args.listen.clone());
        let listen = listen.map(|listen| address(&listen, "BRIDGE_LISTEN")).transpose()?;
        let metrics_token =
            token(&args.metrics_token, &args.metrics_token_file, "BRIDGE_METRICS_TOKEN")?;
        if metrics_token.is_some() && listen.is_none() {
            return Err(invalid(
                "BRIDGE_METRICS_TOKEN is set without BRIDGE_LISTEN, where /metrics is served: set it, \
                 as in BRIDGE_LISTEN=127.0.0.1:9090, or remove BRIDGE_METRICS_TOKEN",
            ));
        }
        let password = secret(&args.password, &args.password_file, "MATRIX_PASSWORD")?;
        let password = password.map(SecretString::from);
        let credentials = credentials(&args, password.as_ref())?;
        let (store_passphrase, store_passphrase_raw) = passphrase(&args)?;
        let recovery_key = recovery_key(&args.recovery_key, &args.recovery_key_file)?;
        let webhook = webhook::default(&args)?;
        let api = api::read(&args)?;
        let (labels, labelled_webhooks) =
            labels::read(args.labels_file.as_deref(), user_id.server_name(), &webhook)?;
        Ok(Self {
            homeserver: http_url(&homeserver, "MATRIX_HOMESERVER")?,
            refresh_token: refresh_token(&args, credentials.as_ref())?,
            credentials,
            device_id: non_empty(args.device_id.clone()).map(OwnedDeviceId::from),
            database: DatabaseConfig::try_from(&args)?,
            store_passphrase,
            store_passphrase_raw,
            store_account: store_account(&args).unwrap_or_else(|| user_id.to_string()),
            store_instance: non_empty(args.store_instance.clone()),
            webhook,
            listen,
            takeover: takeover(non_empty(args.takeover.clone()).as_deref())?,
            retry_timeout: Duration::from_secs(number(
                &args.retry_timeout,
                "BRIDGE_RETRY_TIMEOUT",
                10 * 60,
            )?),
            gap_max_pages: number(&args.gap_max_pages, "BRIDGE_GAP_MAX_PAGES", 200)?,
            gap_max_empty_pages: number(
                &args.gap_max_empty_pages,
                "BRIDGE_GAP_MAX_EMPTY_PAGES",
                20,
            )?,
            skip_checkpoint: on_off(&args.skip_checkpoint, "BRIDGE_SKIP_CHECKPOINT", false)?,
            labels,
            labelled_webhooks,
            reactions: on_off(&args.reactions, "BRIDGE_REACTIONS", false)?,
            attachments: api::attachments(&args, api.is_some())?,
            api,
            metrics_token: metrics_token.map(Into::into),
            key_backup: on_off(&args.key_backup, "BRIDGE_KEY_BACKUP", recovery_key.is_some())?,
            recovery_key,
            password,
            cross_signing: cross_signing(non_empty(args.cross_signing).as_deref())?,
            invite_allow: non_empty(args.invite_allow).map(|list| allow_list(&list)).transpose()?,
            trusted_bridges: trusted_bridges(args.trusted_bridges.as_deref().unwrap_or_default())?,
            user_id,
        })
    }
}

fn credentials(
    args: &Args,
    password: Option<&SecretString>,
) -> Result<Option<Credentials>, BridgeError> {
    let token = token(&args.access_token, &args.access_token_file, "MATRIX_ACCESS_TOKEN")?;
    Ok(match token {
        Some(token) => Some(Credentials::AccessToken(token.into())),
        None => password.cloned().map(Credentials::Password),
    })
}

/// It belongs to the access token in the `credentials`.
fn refresh_token(
    args: &Args,
    credentials: Option<&Credentials>,
) -> Result<Option<SecretString>, BridgeError> {
    let token = secret(&args.refresh_token, &args.refresh_token_file, "MATRIX_REFRESH_TOKEN")?;
    match token {
        Some(_) if !matches!(credentials, Some(Credentials::AccessToken(_))) => Err(invalid(
            "MATRIX_REFRESH_TOKEN is set without MATRIX_ACCESS_TOKEN, to which it belongs: set both, or \
             remove MATRIX_REFRESH_TOKEN; the bridge keeps the tokens of its own logins by itself",
        )),
        token => Ok(token.map(Into::into)),
    }
}

type Passphrase = (Option<SecretString>, Option<SecretString>);

fn passphrase(args: &Args) -> Result<Passphrase, BridgeError> {
    use secrecy::ExposeSecret;
    let found = secret(&args.store_passphrase, &args.store_passphrase_file, "STORE_PASSPHRASE")?;
    match (found, on_off(&args.plain, "BRIDGE_PLAIN", false)?) {
        (Some(_), true) => Err(invalid(
            "STORE_PASSPHRASE and --plain (no encryption at rest) are both set: remove one",
        )),
        (None, true) => Ok((None, None)),
        (None, false) => Err(invalid(
            "STORE_PASSPHRASE is not set, so keys and access token would be stored in plaintext: \
             set it, and keep it, or use --plain if that is intended",
        )),
        (Some(trimmed), false) => {
            let raw = args.store_passphrase.clone();
            let raw = raw.filter(|raw| raw.expose_secret() != trimmed);
            Ok((Some(trimmed.into()), raw))
        }
    }
}

#[cfg(test)]
mod tests;
