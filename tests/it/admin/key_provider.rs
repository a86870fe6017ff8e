//! Keys that the application wraps.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use assert_matches::assert_matches;
use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{
    KeyRequest, OpenStoreError, PostgresCryptoStore, PostgresStoreConfig, admin, testing,
};
use test_support::KEY;

/// Wraps by an exclusive or with one byte, and counts what it is asked for.
#[derive(Clone, Default)]
struct Vault {
    wraps: Arc<AtomicUsize>,
    unwraps: Arc<AtomicUsize>,
    mask: u8,
}

impl Vault {
    fn config(&self, config: PostgresStoreConfig) -> PostgresStoreConfig {
        let vault = self.clone();
        config.key_provider(move |request| {
            let vault = vault.clone();
            async move {
                let (count, bytes) = match request {
                    KeyRequest::Wrap(key) => (&vault.wraps, key.to_vec()),
                    KeyRequest::Unwrap(wrapped) => (&vault.unwraps, wrapped),
                    _ => return Err("an unknown request".into()),
                };
                count.fetch_add(1, Ordering::Relaxed);
                Ok(bytes.iter().map(|byte| byte ^ vault.mask).collect())
            }
        })
    }

    fn counts(&self) -> [usize; 2] {
        [&self.wraps, &self.unwraps].map(|count| count.load(Ordering::Relaxed))
    }
}

#[tokio::test]
async fn an_account_is_sealed_with_a_key_that_a_function_wraps() {
    let database = testing::database().unwrap();
    let config = PostgresStoreConfig::new(database.url(), "bot");
    let vault = Vault { mask: 0x5a, ..Default::default() };
    let wrapped = vault.config(config.clone());
    // Without the database's name, which is random.
    let shown = vault.config(PostgresStoreConfig::new("postgres://localhost/bots", "bot"));
    assert!(!format!("{shown:?}").contains("5a"));
    let store = PostgresCryptoStore::open_with_config(&wrapped).await.unwrap();
    assert_eq!(vault.counts(), [1, 1]);
    store.set_custom_value("key", b"value".to_vec()).await.unwrap();
    store.close().await.unwrap();
    // Without the function.
    store.reopen().await.unwrap();
    store.close().await.unwrap();
    assert_eq!(vault.counts(), [1, 1]);
    let store = PostgresCryptoStore::open_with_config(&wrapped).await.unwrap();
    assert_eq!(store.get_custom_value("key").await.unwrap().unwrap(), b"value");
    assert_eq!(vault.counts(), [1, 2]);

    let open = |config| async move { PostgresCryptoStore::open_with_config(&config).await };
    let other = Vault { mask: 0xa5, ..Default::default() };
    assert_matches!(open(other.config(config.clone())).await, Err(OpenStoreError::WrongKey { .. }));
    let given = open(config.clone().key(Some(&KEY))).await;
    assert_matches!(given, Err(OpenStoreError::OtherKindOfSecret { .. }));
    assert_matches!(open(config.clone()).await, Err(OpenStoreError::EncryptedWithoutSecret { .. }));
    let failing = config.clone().key_provider(|_| async { Err("the vault is sealed".into()) });
    let failed = open(failing).await.unwrap_err();
    assert!(failed.is_transient() && failed.to_string().contains("the vault is sealed"));
    let short = config.clone().key_provider(|_| async { Ok(vec![1, 2, 3]) });
    let short = open(short).await.unwrap_err();
    assert!(short.is_permanent() && short.to_string().contains("not a key of 32 bytes"), "{short}");
    store.get_custom_value("key").await.unwrap();
}

#[tokio::test]
async fn an_account_moves_from_a_passphrase_to_a_provider_and_back() {
    let database = testing::database().unwrap();
    let config = PostgresStoreConfig::new(database.url(), "bot");
    let (passphrase, vault) = (config.clone().passphrase(Some("old")), Vault::default());
    let wrapped = vault.config(config.clone());
    let store = PostgresCryptoStore::open_with_config(&passphrase).await.unwrap();
    store.set_custom_value("key", b"value".to_vec()).await.unwrap();

    admin::rekey(&passphrase, &wrapped).await.unwrap();
    let old = PostgresCryptoStore::open_with_config(&passphrase).await;
    assert_matches!(old, Err(OpenStoreError::OtherKindOfSecret { .. }));
    assert_eq!(store.get_custom_value("key").await.unwrap().unwrap(), b"value");
    let again = admin::rekey(&passphrase, &wrapped).await;
    assert_matches!(again, Err(OpenStoreError::OtherKindOfSecret { .. }));

    admin::rekey(&wrapped, &config.clone().key(Some(&KEY))).await.unwrap();
    let store = PostgresCryptoStore::open_with_config(&config.key(Some(&KEY))).await.unwrap();
    assert_eq!(store.get_custom_value("key").await.unwrap().unwrap(), b"value");
}
