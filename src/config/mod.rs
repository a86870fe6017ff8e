//! Configuration of a store: server, account, secret and settings.

pub(crate) mod access;
mod builders;
pub(crate) mod conninfo;
pub(crate) mod limits;
pub(crate) mod password_callback;
pub(crate) mod pool;
pub(crate) mod secret;
pub(crate) mod timeouts;
pub(crate) mod tls;

use std::{fmt, path::PathBuf, sync::Arc};

use crate::{
    Access, OpenStoreError, PoolSettings, Timeouts,
    config::{conninfo::ConnInfo, password_callback::PasswordCallback, secret::Secret},
};

/// The settings that a store is opened with.
///
/// Most programs set three: the server's URL, the account's name and a passphrase. The others have
/// defaults:
///
/// | setting | default |
/// |---|---|
/// | [`passphrase`](Self::passphrase) or [`key`](Self::key) | none: nothing is encrypted at rest |
/// | [`schema`](Self::schema) | `matrix_sdk` |
/// | [`access`](Self::access): [`Access`], with [`OwnershipSettings`](crate::OwnershipSettings) | exclusive, taking over; heartbeat every 2 s, cache of 16 MiB |
/// | [`timeouts`](Self::timeouts): [`Timeouts`] | statement 60 s, retry 15 s, `atomically` 30 s, idle transaction 1 s |
/// | [`pool`](Self::pool): [`PoolSettings`] | 8 connections, wait timeout 30 s, connect timeout 10 s, maximum age 30 minutes; prepared statements |
/// | [`password_file`](Self::password_file), [`password_callback`](Self::password_callback) | none: the password is the connection string's, or libpq's |
/// | [`run_migrations`](Self::run_migrations) | `true` |
/// | [`accept_unsafe_durability`](Self::accept_unsafe_durability) | `false` |
///
/// With a setting out of its range, opening fails with [`OpenStoreError::InvalidConfig`], which names
/// the setting. When a setter is called twice, the later call wins; a settings struct is replaced as a
/// whole.
///
/// A configuration can be cloned and varied, for many accounts in one database. Its `Debug` shows
/// no password, passphrase or key.
///
/// ```
/// use std::time::Duration;
///
/// use matrix_sdk_postgres::{PoolSettings, PostgresStoreConfig, Timeouts};
///
/// let config = PostgresStoreConfig::new("postgres://bot@db.example/bots", "my-bot")
///     .passphrase(Some("correct horse battery staple"));
/// assert!(!format!("{config:?}").contains("horse"));
///
/// let other = config
///     .clone()
///     .account("my-other-bot")
///     .timeouts(Timeouts { statement: Duration::from_secs(120), ..Default::default() })
///     .pool(PoolSettings { max_size: 4, ..Default::default() });
/// ```
#[derive(Clone)]
pub struct PostgresStoreConfig {
    /// The connection string, or what is wrong with it; `None` when none was given.
    pub(crate) server: Option<Result<Arc<ConnInfo>, String>>,
    pub(crate) account: String,
    pub(crate) schema: String,
    pub(crate) secret: Option<Secret>,
    pub(crate) password_callback: Option<PasswordCallback>,
    pub(crate) password_file: Option<PathBuf>,
    pub(crate) pool: PoolSettings,
    pub(crate) timeouts: Timeouts,
    pub(crate) access: Access,
    pub(crate) run_migrations: bool,
    pub(crate) accept_unsafe_durability: bool,
    /// What the server shows of the connections, unless the connection string names it.
    pub(crate) application_name: Option<String>,
}

impl PostgresStoreConfig {
    /// Names the server and the account.
    ///
    /// `url` is a URL, `postgres://user:password@host:port/database?sslmode=verify-full`, or
    /// `key=value` pairs, `host=db.example dbname=bots user=bot`, as in the PostgreSQL manual,
    /// [Connection Strings][strings]. `account` identifies the account in the database: a name
    /// of your choice, one for each device. Two bots that use the same name take the account over from
    /// each other. It has 1 to 255 bytes, no control character and no blank at its ends, otherwise
    /// opening fails with [`OpenStoreError::InvalidConfig`].
    ///
    /// A malformed string is reported when the store is opened, as [`OpenStoreError::InvalidConfig`].
    /// The error does not quote the string, as it may hold a password.
    ///
    /// # Meaning of the connection string
    ///
    /// libpq's, with these additions and restrictions:
    ///
    /// - No host: the local socket in `/var/run/postgresql` or `/tmp`, else `localhost`. No user:
    ///   the operating system's. No database: the user's name. Several hosts are tried in order,
    ///   and one that accepts no writes is skipped, unless `target_session_attrs=any`.
    /// - `sslmode`: `disable`; `prefer`, the default (and `allow`, its synonym here): TLS if the
    ///   server offers it, not verified, which protects against passive eavesdropping only; `require`:
    ///   **stricter than libpq**, the certificate is always verified, against `sslrootcert` if that is
    ///   given or `~/.postgresql/root.crt` exists, else against the system's authorities, and in that
    ///   case with the host's name; `verify-ca`: against `sslrootcert`; `verify-full`: the host's name
    ///   too. The host's name is matched with `subjectAltName` only, not with the common name. Keys may
    ///   be RSA, P-256, P-384 or Ed25519, certificates must be of version 3; for others, the error names
    ///   the command that creates a suitable one.
    /// - `sslrootcert`: a PEM file, or `system`, which means `verify-full` (a weaker mode is an
    ///   error, as in libpq). Without it `verify-full` uses `~/.postgresql/root.crt`, else the
    ///   system's authorities. With a mode that does not verify it is an error.
    ///   The system's authorities are those of the operating system, or, where they are set, the PEM files
    ///   that `SSL_CERT_FILE` and `SSL_CERT_DIR` name, as for OpenSSL.
    /// - `sslcert`, `sslkey`: PEM files with a client certificate and its unencrypted key, by
    ///   default `~/.postgresql/postgresql.crt` and `.key`. The key must not be readable by others:
    ///   0600, or 0640 if it belongs to root.
    /// - Sockets never use TLS.
    /// - The password is `password`, else `PGPASSWORD`, else from `passfile`, `PGPASSFILE` or
    ///   `~/.pgpass`. A password file that others may read is not used, and an error about the missing
    ///   password says so. Of libpq's variables only these two are read here;
    ///   [`from_env`](Self::from_env) reads the others. [`password_callback`](Self::password_callback) and
    ///   [`password_file`](Self::password_file) take precedence over all of these.
    /// - `connect_timeout` covers TCP, TLS and login together, over all hosts.
    ///   `tcp_user_timeout` is in milliseconds, 30000 by default. Keep-alive probes begin after
    ///   30 s. `application_name` is `matrix-sdk-postgres` by
    ///   default, followed by the account's name where the store makes its own pool.
    /// - `options` is refused: poolers drop it. So are `service`, `sslcrl`, `sslpassword`,
    ///   `require_auth` and others that would be harmful to ignore. Parameters of other drivers
    ///   (`pgbouncer`, `schema`, `connection_limit`, …) are refused; the error says what to set instead.
    ///
    /// ```
    /// use matrix_sdk_postgres::PostgresStoreConfig;
    ///
    /// let by_url = PostgresStoreConfig::new(
    ///     "postgres://bot@db.example/bots?sslmode=verify-full&sslrootcert=/etc/db-ca.pem",
    ///     "my-bot",
    /// );
    /// let by_pairs = PostgresStoreConfig::new("host=/var/run/postgresql dbname=bots", "my-bot");
    /// let failover = PostgresStoreConfig::new("postgres://bot@db1,db2:5433/bots", "my-bot");
    /// # for config in [by_url, by_pairs, failover] {
    /// #     assert!(format!("{config:?}").contains("my-bot"));
    /// # }
    /// ```
    ///
    /// [strings]: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING
    pub fn new(url: impl Into<String>, account: impl Into<String>) -> Self {
        Self::for_account(account).url(url)
    }

    /// Names the account only, for a store that is opened with
    /// [`open_with_pool`](crate::PostgresCryptoStore::open_with_pool), or when [`url`](Self::url) sets
    /// the server later. Without either, opening fails with [`OpenStoreError::InvalidConfig`].
    ///
    /// ```
    /// use matrix_sdk_postgres::PostgresStoreConfig;
    ///
    /// let config = PostgresStoreConfig::for_account("my-bot").passphrase(Some("a passphrase"));
    /// # assert!(config.build_pool().is_err());
    /// ```
    pub fn for_account(account: impl Into<String>) -> Self {
        Self {
            server: None,
            account: account.into(),
            schema: "matrix_sdk".to_owned(),
            secret: None,
            password_callback: None,
            password_file: None,
            pool: PoolSettings::default(),
            timeouts: Timeouts::default(),
            access: Access::default(),
            run_migrations: true,
            accept_unsafe_durability: false,
            application_name: None,
        }
    }

    /// Reads the server from the environment: `DATABASE_URL`, and libpq's variables for the parameters
    /// that `DATABASE_URL` does not hold (all of them, if it is not set).
    ///
    /// Of libpq's variables (PostgreSQL manual, [Environment Variables][variables]) these are read:
    /// `PGHOST`, `PGHOSTADDR`, `PGPORT`, `PGUSER`, `PGPASSWORD`, `PGPASSFILE`, `PGDATABASE`,
    /// `PGSSLMODE`, `PGSSLROOTCERT`, `PGSSLCERT`, `PGSSLKEY`, `PGSSLNEGOTIATION`, `PGSSLSNI`,
    /// `PGSSLMINPROTOCOLVERSION`, `PGCHANNELBINDING`, `PGCONNECT_TIMEOUT`, `PGAPPNAME`,
    /// `PGTARGETSESSIONATTRS`, `PGLOADBALANCEHOSTS`; and `PGSSLCRL`, `PGSSLCRLDIR` and
    /// `PGREQUIREAUTH` are refused. `PGHOST` and `PGHOSTADDR` are not read when the URL names a
    /// host.
    ///
    /// # Errors
    ///
    /// [`OpenStoreError::InvalidConfig`] when neither `DATABASE_URL` nor one of `PGHOST`,
    /// `PGHOSTADDR`, `PGUSER`, `PGDATABASE` is set, or one of them is malformed.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), matrix_sdk_postgres::OpenStoreError> {
    /// use matrix_sdk_postgres::PostgresStoreConfig;
    ///
    /// let config = PostgresStoreConfig::from_env("my-bot")?;
    /// # Ok(()) }
    /// ```
    ///
    /// [variables]: https://www.postgresql.org/docs/current/libpq-envars.html
    pub fn from_env(account: impl Into<String>) -> Result<Self, OpenStoreError> {
        let server = ConnInfo::from_variables(variable).map_err(OpenStoreError::InvalidConfig)?;
        Ok(Self { server: Some(Ok(Arc::new(server))), ..Self::for_account(account) })
    }
}

fn variable(name: &str) -> Result<Option<String>, String> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => Err(format!("{name} is not UTF-8")),
    }
}

impl fmt::Debug for PostgresStoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("PostgresStoreConfig");
        match &self.server {
            Some(Ok(server)) => shown
                .field("addresses", &server.addresses)
                .field("dbname", &server.dbname)
                .field("user", &server.user)
                .field("tls", &server.tls),
            Some(Err(error)) => shown.field("invalid", error),
            None => &mut shown,
        };
        shown
            .field("account", &self.account)
            .field("schema", &self.schema)
            .field("secret", &self.secret)
            .field("pool", &self.pool)
            .field("timeouts", &self.timeouts)
            .field("access", &self.access)
            .field("run_migrations", &self.run_migrations)
            .finish_non_exhaustive()
    }
}
