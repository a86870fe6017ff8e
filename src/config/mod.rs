//! How a store is opened: where its database is, whose keys it holds, what unlocks them.

pub(crate) mod access;
mod builders;
pub(crate) mod conninfo;
pub(crate) mod limits;
mod ownership;
pub(crate) mod password_callback;
pub(crate) mod secret;
pub(crate) mod tls;

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use crate::{
    Access, OpenStoreError, Takeover,
    config::{conninfo::ConnInfo, password_callback::PasswordCallback, secret::Secret},
};

/// Everything a store needs to know before it is opened.
///
/// Only the server and the account's name are required; the rest has defaults:
///
/// | setting | default |
/// |---|---|
/// | [`passphrase`](Self::passphrase), [`key`](Self::key) | none: nothing is encrypted at rest |
/// | [`schema`](Self::schema) | `matrix_sdk` |
/// | [`pool_max_size`](Self::pool_max_size) | 8 connections |
/// | [`pool_timeout`](Self::pool_timeout) | 30 s |
/// | [`connect_timeout`](Self::connect_timeout) | 10 s, or the connection string's |
/// | [`statement_timeout`](Self::statement_timeout) | 60 s |
/// | [`atomically_timeout`](Self::atomically_timeout) | 30 s |
/// | [`max_connection_age`](Self::max_connection_age) | 30 minutes |
/// | [`max_connection_idle`](Self::max_connection_idle) | 10 minutes |
/// | [`prepared_statements`](Self::prepared_statements) | `true` |
/// | [`access`](Self::access), [`takeover`](Self::takeover) | exclusive, taking over |
/// | [`owner_label`](Self::owner_label) | `matrix-sdk-postgres` |
/// | [`heartbeat_interval`](Self::heartbeat_interval) | 2 s |
/// | [`transaction_idle_timeout`](Self::transaction_idle_timeout) | 1 s |
/// | [`retry_timeout`](Self::retry_timeout) | 15 s |
/// | [`cache_bytes`](Self::cache_bytes) | 16 MiB |
/// | [`cache_max_keys`](Self::cache_max_keys) | 100 000 of each table |
/// | [`accept_unsafe_durability`](Self::accept_unsafe_durability) | `false` |
/// | [`run_migrations`](Self::run_migrations) | `true` |
///
/// Timeouts may be from 10 ms to 1 day, the age and the idleness of a connection from 1 ms to 365 days;
/// what else is limited says so. A setting out of its range is
/// [`OpenStoreError::InvalidConfig`] at opening, which names it.
///
/// A configuration can be cloned and varied, for many accounts in one database. Its `Debug` shows
/// no password, passphrase or key.
///
/// ```
/// use std::time::Duration;
///
/// use matrix_sdk_postgres::PostgresStoreConfig;
///
/// let config = PostgresStoreConfig::new("postgres://bot@db.example/bots", "my-bot")
///     .passphrase(Some("correct horse battery staple"))
///     .pool_max_size(4)
///     .statement_timeout(Duration::from_secs(20));
/// assert!(!format!("{config:?}").contains("horse"));
/// ```
#[derive(Clone)]
pub struct PostgresStoreConfig {
    /// The connection string, or what is wrong with it.
    pub(crate) server: Result<Arc<ConnInfo>, String>,
    pub(crate) account: String,
    pub(crate) schema: String,
    pub(crate) secret: Option<Secret>,
    pub(crate) password_callback: Option<PasswordCallback>,
    pub(crate) password_file: Option<PathBuf>,
    pub(crate) pool_max_size: usize,
    pub(crate) connect_timeout: Duration,
    pub(crate) pool_timeout: Duration,
    pub(crate) statement_timeout: Duration,
    pub(crate) atomically_timeout: Duration,
    pub(crate) max_connection_age: Option<Duration>,
    pub(crate) max_connection_idle: Option<Duration>,
    pub(crate) prepared_statements: bool,
    pub(crate) run_migrations: bool,
    pub(crate) access: Access,
    pub(crate) takeover: Takeover,
    pub(crate) owner_label: String,
    pub(crate) heartbeat_interval: Duration,
    pub(crate) transaction_idle_timeout: Duration,
    pub(crate) retry_timeout: Duration,
    pub(crate) accept_unsafe_durability: bool,
    pub(crate) cache_bytes: usize,
    pub(crate) cache_max_keys: usize,
}

impl PostgresStoreConfig {
    /// Names the server and the account.
    ///
    /// `url` is a URL, `postgres://user:password@host:port/database?sslmode=verify-full`, or
    /// `key=value` pairs, `host=db.example dbname=bots user=bot`, as in the PostgreSQL manual,
    /// [Connection Strings][strings]. `account` says whose keys these are: a name of your choice,
    /// one for each device. Two bots that share it would take each other's account. It has 1 to 255
    /// bytes, no control character and no blank at its ends, else opening fails with
    /// [`OpenStoreError::InvalidConfig`].
    ///
    /// What is wrong with the string is reported when the store is opened, as
    /// [`OpenStoreError::InvalidConfig`], and never quoted, as it may hold a password.
    ///
    /// # Meaning of the connection string
    ///
    /// libpq's, with these additions and restrictions:
    ///
    /// - No host: the local socket in `/var/run/postgresql` or `/tmp`, else `localhost`. No user:
    ///   the operating system's. No database: the user's name. Several hosts are tried in order,
    ///   and one that accepts no writes is passed over, unless `target_session_attrs=any`.
    /// - `sslmode`: `disable`; `prefer`, the default (and `allow`, its synonym here): TLS if the
    ///   server offers it, not verified, so only listeners are kept out; `require`: **stricter
    ///   than libpq**, the certificate is always verified, against `sslrootcert` if that is given
    ///   or `~/.postgresql/root.crt` exists, else against the system's authorities, and then the
    ///   host's name with it; `verify-ca`: against `sslrootcert`; `verify-full`: the host's name
    ///   too. Names are looked for in `subjectAltName` only, not in the common name. Keys may be RSA,
    ///   P-256, P-384 or Ed25519, certificates must be of version 3; errors name the command that makes
    ///   another.
    /// - `sslrootcert`: a PEM file, or `system`, which means `verify-full` (a weaker mode is an
    ///   error, as in libpq). Without it `verify-full` uses `~/.postgresql/root.crt`, else the
    ///   system's authorities. With a mode that does not verify it is an error.
    /// - `sslcert`, `sslkey`: PEM files with a client certificate and its unencrypted key, by
    ///   default `~/.postgresql/postgresql.crt` and `.key`. The key must not be readable by others:
    ///   0600, or 0640 if it belongs to root.
    /// - Sockets never use TLS.
    /// - `password`, else `PGPASSWORD`, else `passfile`, `PGPASSFILE` or `~/.pgpass`, which must not be
    ///   readable by others. These two are the only variables that are read; libpq's others are what
    ///   [`from_env`](Self::from_env) reads. [`password_callback`](Self::password_callback) and
    ///   [`password_file`](Self::password_file) come before them all.
    /// - `connect_timeout` covers TCP, TLS and login together, over all hosts.
    ///   `tcp_user_timeout` is in milliseconds, 30000 by default. Keep-alive probes begin after
    ///   30 s. `application_name` is `matrix-sdk-postgres` by default.
    /// - `options` is refused: poolers drop it. So are `service`, `sslcrl`, `sslpassword`,
    ///   `require_auth` and others whose silent neglect would do harm. Parameters of other drivers
    ///   (`pgbouncer`, `schema`, `connection_limit`, …) are refused with what to set instead.
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
        let url = zeroize::Zeroizing::new(url.into());
        Self::with_server(ConnInfo::parse(&url, variable), account.into())
    }

    /// Takes the server from the environment: `DATABASE_URL`, and libpq's variables for what it
    /// leaves open (or for everything, where it is not set).
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
        let server = ConnInfo::from_variables(variable);
        let server = server.map_err(OpenStoreError::InvalidConfig)?;
        Ok(Self::with_server(Ok(server), account.into()))
    }

    fn with_server(server: Result<ConnInfo, String>, account: String) -> Self {
        let connect_timeout = server.as_ref().ok().and_then(|server| server.connect_timeout);
        Self {
            server: server.map(Arc::new),
            account,
            schema: "matrix_sdk".to_owned(),
            secret: None,
            password_callback: None,
            password_file: None,
            pool_max_size: 8,
            connect_timeout: connect_timeout.unwrap_or(Duration::from_secs(10)),
            pool_timeout: Duration::from_secs(30),
            statement_timeout: Duration::from_secs(60),
            atomically_timeout: Duration::from_secs(30),
            max_connection_age: Some(Duration::from_secs(30 * 60)),
            max_connection_idle: Some(Duration::from_secs(10 * 60)),
            prepared_statements: true,
            run_migrations: true,
            access: Access::default(),
            takeover: Takeover::default(),
            owner_label: "matrix-sdk-postgres".to_owned(),
            heartbeat_interval: Duration::from_secs(2),
            transaction_idle_timeout: Duration::from_secs(1),
            retry_timeout: Duration::from_secs(15),
            accept_unsafe_durability: false,
            cache_bytes: 16 << 20,
            cache_max_keys: 100_000,
        }
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
            Ok(server) => shown
                .field("addresses", &server.addresses)
                .field("dbname", &server.dbname)
                .field("user", &server.user)
                .field("tls", &server.tls),
            Err(error) => shown.field("invalid", error),
        };
        shown
            .field("account", &self.account)
            .field("schema", &self.schema)
            .field("secret", &self.secret)
            .field("pool_max_size", &self.pool_max_size)
            .field("connect_timeout", &self.connect_timeout)
            .field("pool_timeout", &self.pool_timeout)
            .field("statement_timeout", &self.statement_timeout)
            .field("atomically_timeout", &self.atomically_timeout)
            .field("max_connection_age", &self.max_connection_age)
            .field("max_connection_idle", &self.max_connection_idle)
            .field("prepared_statements", &self.prepared_statements)
            .field("run_migrations", &self.run_migrations)
            .field("access", &self.access)
            .field("takeover", &self.takeover)
            .field("owner_label", &self.owner_label)
            .field("heartbeat_interval", &self.heartbeat_interval)
            .field("transaction_idle_timeout", &self.transaction_idle_timeout)
            .field("retry_timeout", &self.retry_timeout)
            .field("cache_bytes", &self.cache_bytes)
            .field("cache_max_keys", &self.cache_max_keys)
            .finish_non_exhaustive()
    }
}
