//! The key store, and what the bridge itself keeps sealed in it.

use std::time::Duration;

use matrix_sdk_crypto::{CryptoStoreError, OlmMachine, store::CryptoStore};
use matrix_sdk_postgres::{
    self as store, OpenStoreError, OwnershipSettings, PoolSettings, PostgresCryptoStore,
    PostgresStoreConfig, Timeouts, Transaction, deadpool_postgres::Pool,
};
use ruma::{DeviceId, OwnedUserId, UserId};
use secrecy::ExposeSecret;

use crate::{
    config::{Config, Takeover},
    errors::BridgeError,
};

/// How often a standby says that it still waits.
const SAY_AGAIN: Duration = Duration::from_secs(10 * 60);
/// After an outage one sync may bring thousands of keys, and is taken in as a whole or not at all.
const LONGEST_SYNC: Duration = Duration::from_secs(5 * 60);

/// One account's keys in PostgreSQL.
#[derive(Clone)]
pub struct Keys {
    store: PostgresCryptoStore,
}

impl Keys {
    /// Open the account in the database of `settings`, and give back the pool too, for the inbox. A
    /// standby tells `waiting` whom it waits for.
    pub async fn open(
        config: &Config,
        settings: PostgresStoreConfig,
        waiting: impl Fn(&str),
    ) -> Result<(Self, Pool), BridgeError> {
        let mut passphrase = config.store_passphrase.as_ref();
        let mut ownership = OwnershipSettings {
            label: "webhook_bridge".to_owned(),
            takeover: match config.takeover {
                Takeover::Immediate => store::Takeover::Immediate,
                Takeover::Wait | Takeover::Refuse => store::Takeover::RefuseIfAlive,
            },
            ..Default::default()
        };
        let settings = settings
            .run_migrations(config.database.run_migrations)
            .pool(PoolSettings { max_size: config.database.pool_size, ..Default::default() })
            .timeouts(Timeouts { atomically: LONGEST_SYNC, ..Default::default() });
        let pool = settings.build_pool()?;
        loop {
            let settings = settings
                .clone()
                .access(ownership.clone())
                .passphrase(passphrase.map(ExposeSecret::expose_secret));
            match PostgresCryptoStore::open_with_pool(pool.clone(), &settings).await {
                Err(OpenStoreError::OwnerAlive { owner, .. })
                    if config.takeover == Takeover::Wait =>
                {
                    waiting(&owner);
                    ownership.takeover = store::Takeover::WaitUntilFree(SAY_AGAIN);
                }
                // Earlier versions took a newline at its end as a part of it.
                Err(OpenStoreError::WrongPassphrase { .. })
                    if config.store_passphrase_raw.is_some()
                        && passphrase.map(ExposeSecret::expose_secret)
                            == config
                                .store_passphrase
                                .as_ref()
                                .map(ExposeSecret::expose_secret) =>
                {
                    passphrase = config.store_passphrase_raw.as_ref();
                }
                opened => return Ok((Self { store: opened? }, pool)),
            }
        }
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

    /// One transaction of all that `future` saves, and of what it runs on [`Self::transaction`].
    pub async fn atomically<T>(
        &self,
        future: impl Future<Output = Result<T, BridgeError>>,
    ) -> Result<T, BridgeError> {
        self.store.atomically(future).await
    }

    /// The transaction that we are in, for the bridge's own rows: they are in the same database.
    pub async fn transaction(&self) -> Result<Transaction, BridgeError> {
        Ok(self.store.transaction().await?)
    }

    /// Whose devices are followed, and whether they have to be asked about.
    pub async fn tracked_users(&self) -> Result<Vec<(OwnedUserId, bool)>, BridgeError> {
        let tracked = self.store.load_tracked_users().await.map_err(CryptoStoreError::from)?;
        Ok(tracked.into_iter().map(|user| (user.user_id, user.dirty)).collect())
    }

    /// Whether an Olm account has been made, so that our device may have been published.
    pub async fn has_account(&self) -> Result<bool, BridgeError> {
        let account = self.store.load_account().await.map_err(CryptoStoreError::from)?;
        Ok(account.is_some())
    }

    /// How many transactions the account has seen; fails when somebody else has taken it over.
    pub async fn commit_count(&self) -> Result<u64, BridgeError> {
        Ok(self.store.commit_count().await?)
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

    pub async fn forget_value(&self, name: &str) -> Result<(), BridgeError> {
        let removed = self.store.remove_custom_value(&key(name)).await;
        Ok(removed.map_err(CryptoStoreError::from)?)
    }
}

/// Custom values are shared with the SDK, so ours have a prefix.
fn key(name: &str) -> String {
    format!("webhook_bridge.{name}")
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use clap::Parser;
    use matrix_sdk_postgres::testing;

    use super::*;
    use crate::{config::Args, errors::exit_code};

    fn config(takeover: &str) -> Config {
        let words = [
            "webhook_bridge",
            "--homeserver=http://localhost:8008",
            "--user=@bot:example.org",
            "--webhook-url=http://localhost/hook",
            "--try",
            "--plain",
            "--takeover",
            takeover,
        ];
        Args::try_parse_from(words).unwrap().try_into().unwrap()
    }

    fn settings(url: &str) -> PostgresStoreConfig {
        PostgresStoreConfig::new(url, "@bot:example.org")
    }

    fn code<T>(ended: Result<T, BridgeError>) -> u8 {
        match ended {
            Err(BridgeError::Final { code, .. }) => code,
            Err(error) => panic!("not final: {error}"),
            Ok(_) => panic!("no error"),
        }
    }

    fn nobody(owner: &str) {
        panic!("waits for {owner}");
    }

    #[tokio::test]
    async fn one_refuses_one_takes_and_the_loser_is_told() {
        let database = testing::database().unwrap();
        let url = &database.url();
        let (first, _) = Keys::open(&config("wait"), settings(url), nobody).await.unwrap();
        let refused = Keys::open(&config("refuse"), settings(url), nobody).await;
        assert_eq!(code(refused), exit_code::IN_USE);
        first.set_value("a", "1").await.unwrap();

        let (second, _) = Keys::open(&config("immediate"), settings(url), nobody).await.unwrap();
        assert_eq!(code(first.set_value("a", "2").await), exit_code::SUPERSEDED);
        assert_eq!(code(first.reopen().await), exit_code::SUPERSEDED);
        assert_eq!(code(first.commit_count().await), exit_code::SUPERSEDED);
        assert_eq!(second.value("a").await.unwrap().as_deref(), Some("1"));
    }

    #[tokio::test]
    async fn a_standby_says_whom_it_waits_for_and_gets_the_account() {
        let database = testing::database().unwrap();
        let (first, _) =
            Keys::open(&config("wait"), settings(&database.url()), nobody).await.unwrap();
        let url = database.url();
        let (told, owner) = tokio::sync::oneshot::channel();
        let told = Mutex::new(Some(told));
        let config = config("wait");
        let waiting = |owner: &str| {
            let told = told.lock().unwrap().take().unwrap();
            told.send(owner.to_owned()).unwrap();
        };
        let second = Keys::open(&config, settings(&url), waiting);
        let leave = async {
            let owner = owner.await.unwrap();
            assert!(owner.starts_with("webhook_bridge on "), "{owner}");
            first.set_value("a", "1").await.unwrap();
            first.close().await.unwrap();
        };
        let (second, ()) = tokio::join!(second, leave);
        let (second, _) = second.unwrap();
        assert_eq!(second.value("a").await.unwrap().as_deref(), Some("1"));
    }
}
