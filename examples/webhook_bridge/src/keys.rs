//! The key store, and the bridge's own encrypted values in it.

use std::time::Duration;

use matrix_sdk_crypto::{CryptoStoreError, OlmMachine, store::CryptoStore};
use matrix_sdk_postgres::{
    self as store, OpenStoreError, OwnershipSettings, PoolSettings, PostgresCryptoStore,
    PostgresStoreConfig, Timeouts, Transaction, admin::OwnDevice, deadpool_postgres::Pool,
};
use ruma::{DeviceId, OwnedUserId, RoomId, UserId};
use secrecy::ExposeSecret;

use crate::{
    config::{Config, Takeover},
    errors::BridgeError,
};

/// How often a standby logs that it still waits.
const STANDBY_LOG_INTERVAL: Duration = Duration::from_secs(10 * 60);
/// Time limit of a sync's transaction: after an outage one sync may bring thousands of keys.
const SYNC_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// One account's keys in PostgreSQL.
#[derive(Clone)]
pub struct Keys {
    store: PostgresCryptoStore,
}

impl Keys {
    /// Open the account in the database of `settings`. Also returns the pool, for the inbox. Calls
    /// `owner_alive` with the name of an owner before it waits for that, or takes the account over from
    /// it, and returns its error.
    pub async fn open(
        config: &Config,
        settings: PostgresStoreConfig,
        owner_alive: impl AsyncFn(&str, &Pool) -> Result<(), BridgeError>,
    ) -> Result<(Self, Pool), BridgeError> {
        let mut passphrase = config.store_passphrase.as_ref();
        let mut ownership = OwnershipSettings {
            label: "webhook_bridge".to_owned(),
            instance: config.store_instance.clone(),
            // Whatever follows, it is known then whether there is one.
            takeover: store::Takeover::RefuseIfAlive,
            ..Default::default()
        };
        let settings = settings
            .run_migrations(config.database.run_migrations)
            .pool(PoolSettings { max_size: config.database.pool_size, ..Default::default() })
            .timeouts(Timeouts { atomically: SYNC_TIMEOUT, ..Default::default() });
        let pool = settings.build_pool()?;
        loop {
            let settings = settings
                .clone()
                .access(ownership.clone())
                .passphrase(passphrase.map(ExposeSecret::expose_secret));
            match PostgresCryptoStore::open_with_pool(pool.clone(), &settings).await {
                Err(OpenStoreError::OwnerAlive { owner, .. })
                    if config.takeover != Takeover::Refuse =>
                {
                    owner_alive(&owner, &pool).await?;
                    ownership.takeover = match config.takeover {
                        Takeover::Immediate => store::Takeover::Immediate,
                        _ => store::Takeover::WaitUntilFree(STANDBY_LOG_INTERVAL),
                    };
                }
                // Earlier versions did not strip a trailing newline.
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

    /// A machine on this store; the previous one must have been dropped.
    pub async fn machine(
        &self,
        user: &UserId,
        device: &DeviceId,
    ) -> Result<OlmMachine, BridgeError> {
        // Only this call changes with the SDK's next version.
        let machine = OlmMachine::with_store(user, device, self.store.clone(), None).await?;
        // It asks the user's other devices for missing keys, but hands none out: they have the key backup.
        machine.set_room_key_forwarding_enabled(false);
        Ok(machine)
    }

    /// Run all saves of `future` and its statements on [`Self::transaction`] in one transaction.
    pub async fn atomically<T>(
        &self,
        future: impl Future<Output = Result<T, BridgeError>>,
    ) -> Result<T, BridgeError> {
        self.store.atomically(future).await
    }

    /// The current transaction, for the bridge's own tables in the same database.
    pub async fn transaction(&self) -> Result<Transaction, BridgeError> {
        Ok(self.store.transaction().await?)
    }

    /// The tracked users, and whether their devices are outdated.
    pub async fn tracked_users(&self) -> Result<Vec<(OwnedUserId, bool)>, BridgeError> {
        let tracked = self.store.load_tracked_users().await.map_err(CryptoStoreError::from)?;
        Ok(tracked.into_iter().map(|user| (user.user_id, user.dirty)).collect())
    }

    /// Whether an Olm account exists, so that this device may have been published.
    pub async fn has_account(&self) -> Result<bool, BridgeError> {
        let account = self.store.load_account().await.map_err(CryptoStoreError::from)?;
        Ok(account.is_some())
    }

    /// Whether the key of a Megolm session is stored.
    pub async fn has_session(
        &self,
        room: &RoomId,
        session_id: &str,
    ) -> Result<bool, CryptoStoreError> {
        Ok(self.store.get_inbound_group_session(room, session_id).await?.is_some())
    }

    /// This device as it is stored; `None` before the first start.
    pub async fn own_device(&self) -> Result<Option<OwnDevice>, BridgeError> {
        Ok(self.store.own_device().await?)
    }

    /// The account's number of commits. Fails if another process has taken the account over.
    pub async fn commit_count(&self) -> Result<u64, BridgeError> {
        Ok(self.store.commit_count().await?)
    }

    /// Reopen the store, which refuses writes after an error.
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

    pub async fn remove_value(&self, name: &str) -> Result<(), BridgeError> {
        let removed = self.store.remove_custom_value(&key(name)).await;
        Ok(removed.map_err(CryptoStoreError::from)?)
    }
}

/// The prefix avoids collisions with the SDK's own custom values.
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
        let arguments = [
            "webhook_bridge",
            "--homeserver=http://localhost:8008",
            "--user=@bot:example.org",
            "--webhook-url=http://localhost/hook",
            "--embedded-postgres",
            "--plain",
            "--takeover",
            takeover,
        ];
        Args::try_parse_from(arguments).unwrap().try_into().unwrap()
    }

    fn settings(url: &str) -> PostgresStoreConfig {
        PostgresStoreConfig::new(url, "@bot:example.org")
    }

    fn code<T>(ended: Result<T, BridgeError>) -> u8 {
        match ended {
            Err(BridgeError::Fatal { code, .. }) => code,
            Err(error) => panic!("not final: {error}"),
            Ok(_) => panic!("no error"),
        }
    }

    async fn no_waiting(owner: &str, _: &Pool) -> Result<(), BridgeError> {
        panic!("unexpectedly waits for {owner}");
    }

    #[tokio::test]
    async fn refuse_fails_and_immediate_supersedes_the_owner() {
        let database = testing::database().unwrap();
        let url = &database.url();
        let (first, _) = Keys::open(&config("wait"), settings(url), no_waiting).await.unwrap();
        let refused = Keys::open(&config("refuse"), settings(url), no_waiting).await;
        assert_eq!(code(refused), exit_code::IN_USE);
        first.set_value("a", "1").await.unwrap();

        let superseded = Mutex::new(Vec::new());
        let name = async |owner: &str, _: &Pool| {
            superseded.lock().unwrap().push(owner.to_owned());
            Ok(())
        };
        let (second, _) = Keys::open(&config("immediate"), settings(url), name).await.unwrap();
        let superseded = superseded.into_inner().unwrap();
        assert!(superseded.len() == 1 && superseded[0].starts_with("webhook_bridge on "));
        assert_eq!(code(first.set_value("a", "2").await), exit_code::SUPERSEDED);
        assert_eq!(code(first.reopen().await), exit_code::SUPERSEDED);
        assert_eq!(code(first.commit_count().await), exit_code::SUPERSEDED);
        assert_eq!(second.value("a").await.unwrap().as_deref(), Some("1"));
    }

    #[tokio::test]
    async fn a_standby_reports_the_owner_and_takes_over() {
        let database = testing::database().unwrap();
        let (first, _) =
            Keys::open(&config("wait"), settings(&database.url()), no_waiting).await.unwrap();
        let url = database.url();
        let (reported, owner) = tokio::sync::oneshot::channel();
        let reported = Mutex::new(Some(reported));
        let config = config("wait");
        let waiting = async |owner: &str, _: &Pool| {
            let reported = reported.lock().unwrap().take().unwrap();
            reported.send(owner.to_owned()).unwrap();
            Ok(())
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
