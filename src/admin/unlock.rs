//! An account's cipher, without taking the account.

use super::connection::AdminConnection;
use crate::{Access, OpenStoreError, PostgresStoreConfig, account::cipher::Codec};

/// An account whose rows can be opened, and a way to its database.
pub(super) struct Unlocked {
    pub(super) admin: AdminConnection,
    pub(super) account_id: i64,
    pub(super) codec: Codec,
}

impl Unlocked {
    /// Opens the account's cipher with the configuration's passphrase or key.
    pub(super) async fn open(
        config: &PostgresStoreConfig,
        access: Access,
    ) -> Result<Self, OpenStoreError> {
        config.validate()?;
        let admin = AdminConnection::new(config)?;
        let (account_id, sealed) = admin.account(config, access).await?;
        let codec = sealed.open(&config.account, config.secret.clone()).await?;
        Ok(Self { admin, account_id, codec })
    }
}
