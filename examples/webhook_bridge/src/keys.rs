//! The key store, and what the bridge itself keeps sealed in it.

use matrix_sdk_crypto::{CryptoStoreError, OlmMachine, store::CryptoStore};
use matrix_sdk_postgres::{PostgresCryptoStore, PostgresStoreConfig, deadpool_postgres::Pool};
use ruma::{DeviceId, UserId};
use secrecy::ExposeSecret;

use crate::{config::Config, errors::BridgeError};

/// One account's keys in PostgreSQL.
#[derive(Clone)]
pub struct Keys {
    store: PostgresCryptoStore,
}

impl Keys {
    /// Open the account in the database at `url`, and give back the pool too, for the inbox.
    pub async fn open(config: &Config, url: &str) -> Result<(Self, Pool), BridgeError> {
        let passphrase = config.store_passphrase.as_ref().map(ExposeSecret::expose_secret);
        let store = PostgresStoreConfig::new(url, &config.store_account).passphrase(passphrase);
        let pool = store.build_pool()?;
        let store = PostgresCryptoStore::open_with_pool(pool.clone(), &store).await?;
        Ok((Self { store }, pool))
    }

    /// A machine on this store; the one before must be gone.
    pub async fn machine(
        &self,
        user: &UserId,
        device: &DeviceId,
    ) -> Result<OlmMachine, BridgeError> {
        // The one place that changes with the SDK's next version.
        Ok(OlmMachine::with_store(user, device, self.store.clone(), None).await?)
    }

    /// Whether an Olm account has been made, so that our device may have been published.
    pub async fn has_account(&self) -> Result<bool, BridgeError> {
        let account = self.store.load_account().await.map_err(CryptoStoreError::from)?;
        Ok(account.is_some())
    }

    /// After an error the store takes no more writes until it is opened again.
    pub async fn reopen(&self) -> Result<(), BridgeError> {
        Ok(self.store.reopen().await.map_err(CryptoStoreError::from)?)
    }

    pub async fn close(&self) -> Result<(), BridgeError> {
        Ok(self.store.close().await.map_err(CryptoStoreError::from)?)
    }

    pub async fn value(&self, name: &str) -> Result<Option<String>, BridgeError> {
        let value = self.store.get_custom_value(&key(name)).await;
        let value = value.map_err(CryptoStoreError::from)?;
        Ok(value.and_then(|bytes| String::from_utf8(bytes).ok()))
    }

    pub async fn set_value(&self, name: &str, value: &str) -> Result<(), BridgeError> {
        let saved = self.store.set_custom_value(&key(name), value.as_bytes().to_vec()).await;
        Ok(saved.map_err(CryptoStoreError::from)?)
    }
}

/// Custom values are shared with the SDK, so ours have a prefix.
fn key(name: &str) -> String {
    format!("webhook_bridge.{name}")
}
