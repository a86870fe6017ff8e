//! Setters of the settings that belong to no settings struct.

use std::{error::Error, future::Future, path::PathBuf, sync::Arc};

use super::{PostgresStoreConfig, variable};
use zeroize::Zeroizing;

use crate::config::{
    conninfo::ConnInfo,
    password_callback::PasswordCallback,
    secret::{KeyProvider, KeyRequest, Passphrase, Secret},
};

impl PostgresStoreConfig {
    /// Sets the server, replacing the one given before: a connection string, as for
    /// [`new`](Self::new).
    ///
    /// ```
    /// # use matrix_sdk_postgres::PostgresStoreConfig;
    /// let config = PostgresStoreConfig::for_account("my-bot").url("postgres://localhost/bots");
    /// ```
    #[must_use]
    pub fn url(mut self, url: impl Into<String>) -> Self {
        let url = Zeroizing::new(url.into());
        self.server = Some(ConnInfo::parse(&url, variable).map(Arc::new));
        self
    }

    /// Sets the account, replacing the one given before, so that one configuration serves many
    /// accounts. The same rules apply as for [`new`](Self::new).
    ///
    /// ```
    /// # use matrix_sdk_postgres::PostgresStoreConfig;
    /// let config = PostgresStoreConfig::new("postgres://localhost/bots", "alice-bot");
    /// let other = config.clone().account("bob-bot");
    /// ```
    #[must_use]
    pub fn account(mut self, account: impl Into<String>) -> Self {
        self.account = account.into();
        self
    }

    /// Encrypts the account's data with a passphrase, or, with `None`, not at all (the default).
    ///
    /// The key is derived from it with 200 000 rounds of PBKDF2, which takes some 25 ms when a
    /// store is opened, and seconds in a debug build; a [`key`](Self::key) avoids that. The store keeps neither, and
    /// can be reopened without them. Of `passphrase`, `key` and `key_provider`, the last call counts.
    /// An account keeps its passphrase until [`admin::rekey`](crate::admin::rekey) changes it: opening
    /// with another one fails with [`OpenStoreError::WrongPassphrase`], with an empty one it fails
    /// with [`OpenStoreError::InvalidConfig`].
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
        self.secret =
            passphrase.map(|passphrase| Secret::Passphrase(Passphrase(passphrase.to_owned())));
        self
    }

    /// Encrypts the account's data with a random key of 32 bytes, or, with `None`, not at all (the
    /// default).
    ///
    /// Of `passphrase`, `key` and `key_provider`, the last call counts. An account keeps its
    /// key until [`admin::rekey`](crate::admin::rekey) changes it: opening with another one fails with
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
        self.secret = key.map(|key| Secret::Key(Box::new(Zeroizing::new(*key))));
        self
    }

    /// Encrypts the account's data with a key that a function of the application wraps and unwraps: a key
    /// management service, a vault, a hardware module.
    ///
    /// When the account is created, the function is asked to encrypt a random key of 32 bytes
    /// ([`KeyRequest::Wrap`]); its answer is stored with the account, and at each opening it is asked to
    /// decrypt that ([`KeyRequest::Unwrap`]). Of `passphrase`, `key` and `key_provider`, the last call
    /// counts; [`admin::rekey`](crate::admin::rekey) moves an account from one to another. When the function
    /// fails, opening fails with [`OpenStoreError::KeyProvider`](crate::OpenStoreError::KeyProvider) and the
    /// function's text, which must not hold secrets; opening does not retry it, but may be called again.
    ///
    /// ```
    /// use matrix_sdk_postgres::{KeyRequest, PostgresStoreConfig};
    ///
    /// # #[derive(Clone)] struct Kms;
    /// # impl Kms {
    /// #     async fn encrypt(&self, _: &str, key: &[u8]) -> Result<Vec<u8>, std::io::Error> { Ok(key.to_vec()) }
    /// #     async fn decrypt(&self, _: &str, key: &[u8]) -> Result<Vec<u8>, std::io::Error> { Ok(key.to_vec()) }
    /// # }
    /// # let kms = Kms;
    /// let config = PostgresStoreConfig::new("postgres://localhost/bots", "my-bot").key_provider(
    ///     move |request| {
    ///         let kms = kms.clone();
    ///         async move {
    ///             Ok(match request {
    ///                 KeyRequest::Wrap(key) => kms.encrypt("bots", &*key).await?,
    ///                 KeyRequest::Unwrap(wrapped) => kms.decrypt("bots", &wrapped).await?,
    ///                 _ => return Err("an unknown request".into()),
    ///             })
    ///         }
    ///     },
    /// );
    /// ```
    #[must_use]
    pub fn key_provider<F, Fut>(mut self, provider: F) -> Self
    where
        F: Fn(KeyRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Vec<u8>, Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        self.secret = Some(Secret::Provider(KeyProvider::new(provider)));
        self
    }

    /// The PostgreSQL schema that holds the tables, `matrix_sdk` by default.
    ///
    /// Stores in different schemas share nothing. Any name that PostgreSQL accepts is allowed, quotes
    /// and blanks included. With one that is empty, longer than 63 bytes, `public`, or PostgreSQL's own,
    /// opening fails with [`OpenStoreError::InvalidConfig`](crate::OpenStoreError::InvalidConfig).
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

    /// A file that holds the database password, read again for each connection; one newline at its
    /// end is not part of the password.
    ///
    /// For secrets that are mounted as files and replaced in place. It takes precedence over a password
    /// in the connection string and `.pgpass`, but not over
    /// [`password_callback`](Self::password_callback). If the file is missing or empty, opening fails
    /// with [`OpenStoreError::InvalidConfig`](crate::OpenStoreError::InvalidConfig).
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

    /// A function that returns the database password, called for each new connection.
    ///
    /// For credentials that are short-lived, such as a cloud's IAM tokens. It takes precedence over every
    /// other source of a password, and its time counts towards
    /// [`connect_timeout`](crate::PoolSettings::connect_timeout). When it fails, the connection fails: at
    /// opening with [`OpenStoreError::Connect`](crate::OpenStoreError::Connect), which quotes the
    /// callback's error, so that must not hold secrets.
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

    /// Suppresses the warning about a server that runs with `fsync` or `synchronous_commit` off.
    ///
    /// Such a server can lose acknowledged commits in a crash. For a crypto store that means rolled-back
    /// ratchets: messages encrypted twice with one key, and messages that can no longer be read.
    ///
    /// ```
    /// # use matrix_sdk_postgres::PostgresStoreConfig;
    /// let config = PostgresStoreConfig::new("postgres://localhost/throwaway", "my-bot")
    ///     .accept_unsafe_durability(true);
    /// ```
    #[must_use]
    pub fn accept_unsafe_durability(mut self, accept: bool) -> Self {
        self.accept_unsafe_durability = accept;
        self
    }
}
