//! A throwaway account, to see whether a store works here.

use matrix_sdk_common::ruma::{device_id, user_id};
use matrix_sdk_crypto::{
    olm::Account,
    store::{CryptoStore, types::PendingChanges},
};
use serde::Serialize;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::{connection::AdminConnection, delete::delete_account};
use crate::{
    Access, OpenStoreError, OwnershipSettings, PostgresCryptoStore, PostgresStoreConfig,
    account::cipher::random_key,
};

/// What [`self_test`] found.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct SelfTest {
    /// The name of the throwaway account.
    pub account: String,
    /// What was done, in order; the first step that failed is the last but the deletion.
    pub steps: Vec<SelfTestStep>,
}

/// A step of a self-test.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct SelfTestStep {
    /// What was tried.
    pub name: &'static str,
    /// `None` if it succeeded.
    pub error: Option<String>,
    /// What is to be known of its success.
    pub note: Option<String>,
}

impl SelfTest {
    /// Whether every step succeeded.
    pub fn is_passed(&self) -> bool {
        self.steps.iter().all(|step| step.error.is_none())
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

const KEY: &str = "self-test";
const VALUE: &[u8] = b"written by the self-test";

/// Makes a throwaway account with a random name in the configured database, writes, opens it again, cuts
/// its connections, reads, and deletes it: with this server, role, schema, pool and pooler.
///
/// The account of the configuration is neither read nor written. The account that is made is encrypted
/// as the configuration says, with a random key if that gives none. It is deleted at the end, whatever
/// failed; should the program be killed, it stays, and its name begins with `self-test-`.
pub async fn self_test(config: &PostgresStoreConfig) -> SelfTest {
    let id = Uuid::new_v4().simple().to_string();
    let account = format!("self-test-{id}");
    let mut own = config.clone().account(&account).access(Access::from(OwnershipSettings {
        label: "matrix-postgres self-test".to_owned(),
        ..Default::default()
    }));
    own.application_name = Some(format!("matrix-postgres {}", &account[..20]));
    if own.secret.is_none() {
        own = own.key(Some(&random_key()));
    }
    let mut test = Test { config: own, steps: Vec::new(), was_opened: false };
    test.run().await;
    if test.was_opened {
        let deleted = delete_account(&test.config).await.map(drop).map_err(Failure::from);
        test.note("delete", deleted.map(|()| None));
    } else {
        // It may have been created all the same.
        let deleted = match delete_account(&test.config).await {
            Ok(_) => Some(Ok(None)),
            Err(error @ OpenStoreError::OwnerAlive { .. }) => Some(Err(Failure::from(error))),
            // There is none, or nothing can be reached, as the first step says.
            Err(_) => None,
        };
        deleted.map(|deleted| test.note("delete", deleted));
    }
    SelfTest { account, steps: test.steps }
}

struct Test {
    config: PostgresStoreConfig,
    steps: Vec<SelfTestStep>,
    was_opened: bool,
}

impl Test {
    fn note(&mut self, name: &'static str, done: Result<Option<String>, Failure>) -> bool {
        let (error, note) = match done {
            Ok(note) => (None, note),
            Err(error) => (Some(error.to_string()), None),
        };
        let succeeded = error.is_none();
        self.steps.push(SelfTestStep { name, error, note });
        succeeded
    }

    async fn run(&mut self) {
        let opened = PostgresCryptoStore::open_with_config(&self.config).await;
        let store = match opened {
            Ok(store) => store,
            Err(error) => {
                self.note("open", Err(error.into()));
                return;
            }
        };
        self.was_opened = true;
        self.note("open", Ok(None));
        let written = write(&store).await;
        let mut goes_on = self.note("write", written.map(|()| None));
        if goes_on {
            let reopened = reopen(&store).await;
            goes_on = self.note("reopen", reopened.map(|()| None));
        }
        if goes_on {
            let cut = cut(&self.config).await;
            goes_on = self.note("cut the connections", cut);
        }
        if goes_on {
            let read = read(&store).await;
            self.note("read", read.map(|()| None));
        }
        if let Err(error) = store.close().await {
            self.note("close", Err(error.into()));
        }
    }
}

/// Writes an Olm account, as a new machine does, and a value.
async fn write(store: &PostgresCryptoStore) -> Result<(), Failure> {
    let (user, device) = (user_id!("@self-test:localhost"), device_id!("SELFTEST"));
    let account = Some(Account::with_device_id(user, device));
    store.save_pending_changes(PendingChanges { account }).await?;
    Ok(store.set_custom_value(KEY, VALUE.to_vec()).await?)
}

async fn reopen(store: &PostgresCryptoStore) -> Result<(), Failure> {
    store.close().await?;
    store.reopen().await?;
    read(store).await
}

async fn read(store: &PostgresCryptoStore) -> Result<(), Failure> {
    let value = store.get_custom_value(KEY).await?;
    if value.as_deref() != Some(VALUE) {
        return Err("a value is not what was written".into());
    }
    match store.load_account().await? {
        Some(_) => Ok(()),
        None => Err("the Olm account that was written is not there".into()),
    }
}

/// Ends the server's side of the store's connections, which it must replace by itself.
async fn cut(config: &PostgresStoreConfig) -> Result<Option<String>, Failure> {
    let other = PostgresStoreConfig { application_name: None, ..config.clone() };
    let admin = AdminConnection::new(&other)?;
    let transaction = admin.read().await?;
    let name = config.application_name.clone().unwrap_or_default();
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
               WHERE application_name = $1 AND usename = current_user AND pid <> pg_backend_pid()";
    let ended = transaction.query(sql, &[(&name, Type::TEXT)]).await?;
    transaction.commit().await?;
    Ok(match ended.len() {
        0 => Some("none found: a pooler hides them, or its name was set in the URL".to_owned()),
        count => Some(format!("{count} ended")),
    })
}
