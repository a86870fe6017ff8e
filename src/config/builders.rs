//! The optional settings.

use std::{error::Error, future::Future, path::PathBuf, time::Duration};

use super::PostgresStoreConfig;
use crate::config::{password_callback::PasswordCallback, secret::Secret};

impl PostgresStoreConfig {
    /// Encrypts the account's data with a passphrase, or, with `None`, not at all (the default).
    ///
    /// The key is derived from it with 200 000 rounds of PBKDF2, which takes some tenths of a
    /// second at each opening; a [`key`](Self::key) spares that. Of `passphrase` and `key`, the
    /// later call counts. It is fixed when the account is created: opening with another one fails
    /// with [`OpenStoreError::WrongPassphrase`], and an empty one is
    /// [`OpenStoreError::InvalidConfig`].
    ///
    /// [`OpenStoreError::WrongPassphrase`]: crate::OpenStoreError::WrongPassphrase
    /// [`OpenStoreError::InvalidConfig`]: crate::OpenStoreError::InvalidConfig
    ///
    /// ```
    /// # use matrix_sdk_postgres::PostgresStoreConfig;
    /// let passphrase = std::env::var("STORE_PASSPHRASE").ok();
    /// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot")
    ///     .passphrase(passphrase.as_deref());
    /// ```
    #[must_use]
    pub fn passphrase(mut self, passphrase: Option<&str>) -> Self {
        self.secret = passphrase.map(|passphrase| Secret::Passphrase(passphrase.to_owned()));
        self
    }

    /// Encrypts the account's data with a random key of 32 bytes, or, with `None`, not at all (the
    /// default).
    ///
    /// Of `passphrase` and `key`, the later call counts. It is fixed when the account is created:
    /// opening with another one fails with
    /// [`OpenStoreError::WrongKey`](crate::OpenStoreError::WrongKey).
    ///
    /// ```
    /// # use matrix_sdk_postgres::PostgresStoreConfig;
    /// # let key_from_your_secret_manager = [42; 32];
    /// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot")
    ///     .key(Some(&key_from_your_secret_manager));
    /// ```
    #[must_use]
    pub fn key(mut self, key: Option<&[u8; 32]>) -> Self {
        self.secret = key.map(|key| Secret::Key(Box::new(*key)));
        self
    }

    /// The PostgreSQL schema that holds the tables, `matrix_sdk` by default.
    ///
    /// Stores in different schemas share nothing. Any name will do that PostgreSQL accepts, quotes and
    /// blanks included. One that is empty, longer than 63 bytes, `public`, or PostgreSQL's own is
    /// [`OpenStoreError::InvalidConfig`](crate::OpenStoreError::InvalidConfig) at opening.
    ///
    /// ```
    /// # use matrix_sdk_postgres::PostgresStoreConfig;
    /// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot")
    ///     .schema("matrix_sdk_staging");
    /// ```
    #[must_use]
    pub fn schema(mut self, schema: &str) -> Self {
        schema.clone_into(&mut self.schema);
        self
    }

    /// How many connections the pool may open, 8 by default; they are opened when needed.
    ///
    /// From 1 to 10 000. Keep the sum over all processes below the server's `max_connections`.
    ///
    /// ```
    /// # use matrix_sdk_postgres::PostgresStoreConfig;
    /// let config =
    ///     PostgresStoreConfig::new("postgres://localhost/bots", "my-bot").pool_max_size(2);
    /// ```
    #[must_use]
    pub fn pool_max_size(mut self, connections: usize) -> Self {
        self.pool_max_size = connections;
        self
    }

    /// How long making a connection may take, 10 seconds by default: name resolution, TCP, TLS,
    /// the password's source and login together, over all hosts of the connection string.
    ///
    /// It overrules the connection string's `connect_timeout`. Each address that is still to be
    /// tried gets an equal part of the time that is left, so that a dead first server leaves time
    /// for the second. When it runs out, opening fails with
    /// [`OpenStoreError::Connect`](crate::OpenStoreError::Connect).
    ///
    /// From 10 ms to 1 day.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use matrix_sdk_postgres::PostgresStoreConfig;
    /// let config = PostgresStoreConfig::new("postgres://db1,db2/bots", "my-bot")
    ///     .connect_timeout(Duration::from_secs(4));
    /// ```
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long an operation waits for a free connection, 30 seconds by default; after that it
    /// fails with [`Error::PoolTimeout`](crate::Error::PoolTimeout).
    ///
    /// From 10 ms to 1 day.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use matrix_sdk_postgres::PostgresStoreConfig;
    /// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot")
    ///     .pool_timeout(Duration::from_secs(5));
    /// ```
    #[must_use]
    pub fn pool_timeout(mut self, timeout: Duration) -> Self {
        self.pool_timeout = timeout;
        self
    }

    /// How long the answer to one statement, or to one transaction, may take, 60 seconds by
    /// default; after that the operation fails with
    /// [`Error::StatementTimeout`](crate::Error::StatementTimeout).
    ///
    /// From 10 ms to 1 day.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use matrix_sdk_postgres::PostgresStoreConfig;
    /// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot")
    ///     .statement_timeout(Duration::from_secs(20));
    /// ```
    #[must_use]
    pub fn statement_timeout(mut self, timeout: Duration) -> Self {
        self.statement_timeout = timeout;
        self
    }

    /// How long a future may hold the account within
    /// [`atomically`](crate::PostgresCryptoStore::atomically), from its first save on, 30 seconds by
    /// default; after that it is rolled back with
    /// [`Error::AtomicallyTimeout`](crate::Error::AtomicallyTimeout), also when it is not polled any
    /// more. It bounds how long a connection and locks are held, and how long `close()` waits.
    ///
    /// From 10 ms to 1 day.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use matrix_sdk_postgres::PostgresStoreConfig;
    /// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot")
    ///     .atomically_timeout(Duration::from_secs(10));
    /// ```
    #[must_use]
    pub fn atomically_timeout(mut self, timeout: Duration) -> Self {
        self.atomically_timeout = timeout;
        self
    }

    /// How old a connection may grow before it is replaced, 30 minutes by default; `None` for no
    /// limit.
    ///
    /// New connections follow a changed DNS entry, a moved primary and a rotated password. A
    /// connection in use is never cut.
    ///
    /// From 1 ms to 365 days.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use matrix_sdk_postgres::PostgresStoreConfig;
    /// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot")
    ///     .max_connection_age(Some(Duration::from_secs(300)));
    /// ```
    #[must_use]
    pub fn max_connection_age(mut self, age: Option<Duration>) -> Self {
        self.max_connection_age = age;
        self
    }

    /// How long a connection may lie unused before it is replaced instead of used again, 10
    /// minutes by default; `None` for no limit.
    ///
    /// Keep it below the idle timeout of firewalls and poolers on the way.
    ///
    /// From 1 ms to 365 days.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use matrix_sdk_postgres::PostgresStoreConfig;
    /// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot")
    ///     .max_connection_idle(Some(Duration::from_secs(60)));
    /// ```
    #[must_use]
    pub fn max_connection_idle(mut self, idle: Option<Duration>) -> Self {
        self.max_connection_idle = idle;
        self
    }

    /// A file that holds the database password, read anew for each connection; one newline at its
    /// end is not part of the password.
    ///
    /// For secrets that are mounted as files and replaced in place. It comes before a password in
    /// the connection string and `.pgpass`, and after
    /// [`password_callback`](Self::password_callback). A file that is missing or empty is
    /// [`OpenStoreError::InvalidConfig`](crate::OpenStoreError::InvalidConfig) at opening.
    ///
    /// ```
    /// # use matrix_sdk_postgres::PostgresStoreConfig;
    /// let config = PostgresStoreConfig::new("postgres://bot@db.example/bots", "my-bot")
    ///     .password_file("/run/secrets/db-password");
    /// ```
    #[must_use]
    pub fn password_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.password_file = Some(path.into());
        self
    }

    /// A function that is asked for the database password at each new connection.
    ///
    /// For credentials that are short-lived, such as a cloud's IAM tokens. It comes before every
    /// other source of a password, and its time counts towards
    /// [`connect_timeout`](Self::connect_timeout). When it fails, so does the connection:
    /// [`OpenStoreError::Connect`](crate::OpenStoreError::Connect) at opening, with the callback's
    /// text, which must not hold secrets.
    ///
    /// ```
    /// # use matrix_sdk_postgres::PostgresStoreConfig;
    /// # async fn fetch_iam_token() -> Result<String, std::io::Error> { Ok("token".into()) }
    /// let config = PostgresStoreConfig::new("postgres://bot@db.example/bots", "my-bot")
    ///     .password_callback(|| async { Ok(fetch_iam_token().await?) });
    /// ```
    #[must_use]
    pub fn password_callback<F, Fut>(mut self, callback: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<String, Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        self.password_callback = Some(PasswordCallback::new(callback));
        self
    }

    /// Whether statements are prepared by name, `true` by default.
    ///
    /// `false` sends typed, unnamed statements: some tenths slower, and right behind every pooler
    /// in transaction mode. pgbouncer before 1.21 needs it.
    ///
    /// ```
    /// # use matrix_sdk_postgres::PostgresStoreConfig;
    /// let config = PostgresStoreConfig::new("postgres://pgbouncer:6432/bots", "my-bot")
    ///     .prepared_statements(false);
    /// ```
    #[must_use]
    pub fn prepared_statements(mut self, prepared: bool) -> Self {
        self.prepared_statements = prepared;
        self
    }

    /// Whether opening creates the schema and brings it up to date, `true` by default.
    ///
    /// With `false`, a schema that is missing or old is
    /// [`OpenStoreError::MigrationsPending`](crate::OpenStoreError::MigrationsPending): for roles
    /// that may not create tables.
    ///
    /// ```
    /// # use matrix_sdk_postgres::PostgresStoreConfig;
    /// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot")
    ///     .run_migrations(false);
    /// ```
    #[must_use]
    pub fn run_migrations(mut self, run: bool) -> Self {
        self.run_migrations = run;
        self
    }
}
