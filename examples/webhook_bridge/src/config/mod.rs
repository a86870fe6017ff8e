//! Settings: flags and environment, checked before anything is started.

mod args;
mod values;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use ruma::{OwnedDeviceId, OwnedUserId, UserId};
use secrecy::SecretString;

pub use self::args::Args;
use self::values::{filled, http_url, invalid, number, on_off, required, secret, takeover};
use crate::{errors::BridgeError, http_client::Target};

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
    /// `DATABASE_URL`, and libpq's variables for what it leaves open.
    Environment,
    /// A server of our own, for a trial.
    Embedded(PathBuf),
}

/// What to do when another process has the account and is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takeover {
    /// Be its standby.
    Wait,
    /// Take the account over.
    Immediate,
    /// End.
    Refuse,
}

/// Where and how to reach the database.
#[derive(Clone, Debug)]
pub struct DatabaseConfig {
    pub database: Database,
    pub pool_size: usize,
    pub run_migrations: bool,
}

/// The checked settings. `Debug` shows no secret.
#[derive(Clone, Debug)]
pub struct Config {
    pub homeserver: Target,
    pub user_id: OwnedUserId,
    /// `None` is enough once a session is stored.
    pub credentials: Option<Credentials>,
    pub device_id: Option<OwnedDeviceId>,
    pub database: DatabaseConfig,
    /// `None`: keys and token lie in clear, as `--plain` allows.
    pub store_passphrase: Option<SecretString>,
    /// The same with the newline that the setting ended in; earlier versions took it so.
    pub store_passphrase_raw: Option<SecretString>,
    pub store_account: String,
    pub webhook_url: Target,
    pub webhook_token: Option<SecretString>,
    pub listen: Option<SocketAddr>,
    pub takeover: Takeover,
    /// How long a no is asked again that may pass: a join, a token.
    pub refusal_wait: Duration,
    /// A gap is given up after so many pages, or so many empty ones.
    pub gap_pages: i32,
    pub gap_empty_pages: i32,
    pub skip_checkpoint: bool,
}

impl TryFrom<&Args> for DatabaseConfig {
    type Error = BridgeError;

    fn try_from(args: &Args) -> Result<Self, BridgeError> {
        let trial = on_off(&args.trial, "BRIDGE_TRY", false)?;
        let given = secret(&args.database_url, &args.database_url_file, "DATABASE_URL")?;
        let database = match given {
            Some(url) if std::env::var("DATABASE_URL").as_deref() == Ok(&url) => {
                Database::Environment
            }
            Some(url) => Database::Url(url.into()),
            None if libpq_names_a_database() => Database::Environment,
            None if trial => Database::Embedded(args.data_dir.clone()),
            None => {
                return Err(invalid(
                    "DATABASE_URL is not set, nor PGHOST, PGHOSTADDR, PGUSER or PGDATABASE: set it, \
                     as in DATABASE_URL=postgres://bot@localhost/bots, or say --try to try the \
                     bridge with a PostgreSQL of its own",
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

/// Those that say where, and not only how: as `PostgresStoreConfig::from_env` has it.
fn libpq_names_a_database() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    ["PGHOST", "PGHOSTADDR", "PGUSER", "PGDATABASE"].into_iter().any(is_set)
}

impl TryFrom<Args> for Config {
    type Error = BridgeError;

    fn try_from(args: Args) -> Result<Self, BridgeError> {
        let user = required(filled(args.user.clone()), "MATRIX_USER", "@bot:example.org")?;
        let user_id = UserId::parse(&user).map_err(|error| {
            invalid(format!("MATRIX_USER {user:?} is no user id ({error}): write @bot:example.org"))
        })?;
        let homeserver = filled(args.homeserver.clone());
        let homeserver = required(homeserver, "MATRIX_HOMESERVER", "https://matrix.example.org")?;
        let webhook = secret(&args.webhook_url, &args.webhook_url_file, "WEBHOOK_URL")?;
        let webhook = required(webhook, "WEBHOOK_URL", "https://example.org/hook")?;
        let listen = filled(args.listen.clone()).map(|address| {
            address.parse().map_err(|_| {
                invalid(format!("BRIDGE_LISTEN {address:?} is no address: write 127.0.0.1:9090"))
            })
        });
        let (store_passphrase, store_passphrase_raw) = passphrase(&args)?;
        let token = secret(&args.webhook_token, &args.webhook_token_file, "WEBHOOK_TOKEN")?;
        Ok(Self {
            homeserver: http_url(&homeserver, "MATRIX_HOMESERVER")?,
            credentials: credentials(&args)?,
            device_id: filled(args.device_id.clone()).map(OwnedDeviceId::from),
            database: DatabaseConfig::try_from(&args)?,
            store_passphrase,
            store_passphrase_raw,
            store_account: filled(args.store_account).unwrap_or_else(|| user_id.to_string()),
            webhook_url: http_url(&webhook, "WEBHOOK_URL")?,
            webhook_token: token.map(Into::into),
            listen: listen.transpose()?,
            takeover: takeover(filled(args.takeover).as_deref())?,
            refusal_wait: Duration::from_secs(number(
                &args.refusal_wait,
                "BRIDGE_REFUSAL_WAIT",
                10 * 60,
            )?),
            gap_pages: number(&args.gap_pages, "BRIDGE_GAP_PAGES", 200)?,
            gap_empty_pages: number(&args.gap_empty_pages, "BRIDGE_GAP_EMPTY_PAGES", 20)?,
            skip_checkpoint: on_off(&args.skip_checkpoint, "BRIDGE_SKIP_CHECKPOINT", false)?,
            user_id,
        })
    }
}

fn credentials(args: &Args) -> Result<Option<Credentials>, BridgeError> {
    let token = secret(&args.access_token, &args.access_token_file, "MATRIX_ACCESS_TOKEN")?;
    let password = secret(&args.password, &args.password_file, "MATRIX_PASSWORD")?;
    Ok(match (token, password) {
        (Some(token), _) => Some(Credentials::AccessToken(token.into())),
        (None, Some(password)) => Some(Credentials::Password(password.into())),
        (None, None) => None,
    })
}

type Passphrase = (Option<SecretString>, Option<SecretString>);

fn passphrase(args: &Args) -> Result<Passphrase, BridgeError> {
    use secrecy::ExposeSecret;
    let found = secret(&args.store_passphrase, &args.store_passphrase_file, "STORE_PASSPHRASE")?;
    match (found, on_off(&args.plain, "BRIDGE_PLAIN", false)?) {
        (Some(_), true) => Err(invalid(
            "STORE_PASSPHRASE is set, and --plain says that nothing is sealed: leave one out",
        )),
        (None, true) => Ok((None, None)),
        (None, false) => Err(invalid(
            "STORE_PASSPHRASE is not set, so keys and access token would lie in the database in \
             clear: set it, and keep it, or say --plain if you want that",
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
