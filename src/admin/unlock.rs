//! An account's cipher, without taking the account.

use std::sync::Arc;

use super::connection::AdminConnection;
use crate::{
    Access, OpenStoreError, PostgresCryptoStore, PostgresStoreConfig, account::cipher::Codec,
};

/// An account whose rows can be opened, and a way to its database.
pub(super) struct Unlocked {
    pub(super) admin: AdminConnection,
    pub(super) account_id: i64,
    pub(super) codec: Arc<Codec>,
}

impl Unlocked {
    /// Opens the account's cipher with the configuration's passphrase or key.
    pub(super) async fn open(config: &PostgresStoreConfig) -> Result<Self, OpenStoreError> {
        let admin = AdminConnection::new(config)?;
        let config = config.clone().access(Access::ReadOnly).run_migrations(false);
        let store = PostgresCryptoStore::open_with_config(&config).await?;
        let codec = store.handle().operation()?.codec.clone();
        store.handle().close().await?;
        let account_id = admin.read().await?.account_id(&config.account).await?;
        Ok(Self { admin, account_id, codec })
    }
}
