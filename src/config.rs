//! stub until branch config lands
use crate::secret::Secret;
use std::time::Duration;
/// stub
#[derive(Clone)]
pub struct PostgresStoreConfig {
    pub(crate) url: String,
    pub(crate) account: String,
    pub(crate) schema: String,
    pub(crate) secret: Option<Secret>,
    pub(crate) pool_max_size: usize,
    pub(crate) connect_timeout: Duration,
    pub(crate) pool_timeout: Duration,
    pub(crate) statement_timeout: Duration,
    pub(crate) max_connection_age: Option<Duration>,
    pub(crate) max_connection_idle: Option<Duration>,
    pub(crate) prepared_statements: bool,
    pub(crate) run_migrations: bool,
}
impl PostgresStoreConfig {
    /// stub
    pub fn new(url: impl Into<String>, account: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            account: account.into(),
            schema: "matrix_sdk".into(),
            secret: None,
            pool_max_size: 8,
            connect_timeout: Duration::from_secs(10),
            pool_timeout: Duration::from_secs(30),
            statement_timeout: Duration::from_secs(60),
            max_connection_age: None,
            max_connection_idle: None,
            prepared_statements: true,
            run_migrations: true,
        }
    }
    /// stub
    pub fn passphrase(mut self, p: Option<&str>) -> Self {
        self.secret = p.map(|p| Secret::Passphrase(p.to_owned()));
        self
    }
    /// stub
    pub fn key(mut self, k: Option<&[u8; 32]>) -> Self {
        self.secret = k.map(|k| Secret::Key(Box::new(*k)));
        self
    }
    /// stub
    pub fn from_env(account: impl Into<String>) -> Result<Self, crate::OpenStoreError> {
        Ok(Self::new(std::env::var("DATABASE_URL").unwrap_or_default(), account))
    }
    /// stub
    pub fn pool_max_size(mut self, n: usize) -> Self {
        self.pool_max_size = n;
        self
    }
    /// stub
    pub fn prepared_statements(mut self, n: bool) -> Self {
        self.prepared_statements = n;
        self
    }
    /// stub
    pub fn schema(mut self, n: &str) -> Self {
        self.schema = n.into();
        self
    }
    /// stub
    pub fn run_migrations(mut self, n: bool) -> Self {
        self.run_migrations = n;
        self
    }
}
