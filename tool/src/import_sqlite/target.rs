//! The account that a file is moved into.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use matrix_sdk_crypto::{
    olm::{Account, StaticAccountData},
    store::CryptoStore,
};
use matrix_sdk_postgres::{
    Access, Error as StoreError, OpenStoreError, OwnershipSettings, PostgresCryptoStore,
    PostgresStoreConfig, PostgresStores, Takeover, admin,
};
use ruma::OwnedUserId;
use serde_json::{Value, json};

use super::{item::Item, table::Table, verify};
use crate::outcome::{Error, Exit};

/// A run that was killed counts as alive for six seconds.
pub const A_DEAD_RUN: Duration = Duration::from_secs(8);

/// The custom value that marks an import that is not finished. While it is there, the account is no device.
pub const MARK: &str = "matrix-postgres.import-sqlite";

/// The table of the database that has a value.
pub fn table_of(item: &Item) -> &'static str {
    match item {
        Item::Device(_) => "devices",
        Item::UserIdentity(_) => "user_identities",
        Item::TrackedUser(_) => "tracked_users",
        Item::OlmSession(_) => "olm_sessions",
        Item::InboundSession(_) => "megolm_inbound_sessions",
        Item::OutboundSession(_) => "megolm_outbound_sessions",
        Item::MessageHash(_) => "message_hashes",
        Item::KeyRequest(_) => "key_requests",
        Item::Secret(_) => "secrets_inbox",
        Item::Withheld(..) => "withheld_sessions",
        Item::RoomSettings(..) => "encrypted_rooms",
        Item::RoomKeyBundle(_) => "room_key_bundles",
        Item::PendingKeyBundle(_) => "pending_key_bundles",
        Item::BackedUpRoom(_) => "backed_up_rooms",
        Item::CustomValue(..) => "custom_values",
        Item::SyncToken(_) => "sync_tokens",
        _ => "account_data",
    }
}

/// Why an import has ended before its end.
pub enum Stopped {
    /// It can go on.
    Failed(Error),
    /// What was saved is not what the file has.
    Differs(Error),
}

impl<E: Into<Error>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// The account, owned by this process until it is closed.
pub struct Target {
    config: PostgresStoreConfig,
    name: String,
    stores: PostgresStores,
    store: PostgresCryptoStore,
}

impl Target {
    /// Opens the account, which is made if it is not there, as the schema is. A live owner is not disturbed.
    pub async fn open(config: PostgresStoreConfig, name: String) -> Result<Self, Error> {
        let owner = OwnershipSettings {
            takeover: Takeover::WaitUntilFree(A_DEAD_RUN),
            label: "matrix-postgres import".to_owned(),
            // What is saved is not read again here.
            cache_bytes: 0,
            ..Default::default()
        };
        let writing = config.clone().access(owner).run_migrations(true);
        let stores = PostgresStores::open(&writing).await?;
        let store = stores.crypto_store();
        Ok(Self { config: config.access(Access::ReadOnly), name, stores, store })
    }

    pub fn store(&self) -> &PostgresCryptoStore {
        &self.store
    }

    /// A store that reads only, and caches nothing.
    pub async fn reader(&self) -> Result<PostgresCryptoStore, Error> {
        let reader = PostgresCryptoStore::open_with_config(&self.config).await?;
        // Learns of the own account, if there is one.
        reader.load_account().await?;
        Ok(reader)
    }

    /// Marks the account, which [`look`] did not refuse and refuses now if it was filled in between.
    pub async fn begin(&self, of: &StaticAccountData) -> Result<(), Error> {
        match found(&self.config, &self.store, &self.name, of).await? {
            Found::OurImport => Ok(()),
            Found::Nothing => {
                Ok(self.store.set_custom_value(MARK, mark(of).to_string().into_bytes()).await?)
            }
        }
    }

    /// Gives the account back.
    pub async fn close(&self) -> Result<(), Error> {
        Ok(self.stores.close().await?)
    }

    /// An error in the middle: what was saved stays, and does no harm.
    pub fn unfinished(&self, error: Error) -> Error {
        let Error { message, exit } = error;
        let message = format!(
            "{message}. The import into {:?} is not finished; run the same command again, and it goes \
             on. Start no bot on this account before",
            self.name
        );
        Error { message, exit }
    }

    /// An error after the last transaction: the account may be in use from then on, so nothing is saved again.
    pub fn not_compared(&self, error: Error) -> Error {
        let Error { message, exit } = error;
        let message = format!(
            "{message}. All of the file is in the account {:?}, but its last part was not read back and \
             compared. To have it compared, delete the account (matrix-postgres delete-account) before \
             a bot has used it, and import again",
            self.name
        );
        Error { message, exit }
    }

    pub fn differs(&self, table: Table) -> Stopped {
        Stopped::Differs(Error {
            message: format!(
                "a value of the file's table {} reads back differently from the database: the account \
                 {:?} must not be used. Delete it (matrix-postgres delete-account), and report this",
                table.name(),
                self.name
            ),
            exit: Exit::Failed,
        })
    }

    /// Compares how many rows there are with how many there should be.
    pub async fn compare_counts(
        &self,
        wanted: &BTreeMap<&'static str, u64>,
    ) -> Result<(), Stopped> {
        let found = counts(&self.config).await?;
        for table in found.keys().chain(wanted.keys()) {
            let of = |counts: &BTreeMap<_, _>| counts.get(table).copied().unwrap_or(0);
            let (found, wanted) = (of(&found), of(wanted));
            if found != wanted {
                return Err(Stopped::Differs(Error::failed(format!(
                    "the table {table} has {found} rows instead of {wanted}, perhaps from an interrupted \
                     import of an older state of the file: the account {:?} must not be used. Delete it \
                     (matrix-postgres delete-account), and import again",
                    self.name
                ))));
            }
        }
        Ok(())
    }
}

/// Rows by table; those without any are left out.
async fn counts(config: &PostgresStoreConfig) -> Result<BTreeMap<&'static str, u64>, Error> {
    let counted = admin::count_account(config).await?;
    // A file has no numbers of backup versions: the account counts its own.
    let counts = counted.tables.into_iter().filter(|count| count.table != "backup_versions");
    Ok(counts.map(|count| (count.table, count.rows)).collect())
}

/// What an account has in which an import may begin, or go on.
enum Found {
    Nothing,
    OurImport,
}

/// Marks an import of this device.
fn mark(of: &StaticAccountData) -> Value {
    json!({
        "user_id": of.user_id,
        "device_id": of.device_id,
        "curve25519": of.identity_keys.curve25519.to_base64(),
    })
}

/// Refuses an account that is not empty, unless it holds an import of the same device that was interrupted.
async fn found(
    config: &PostgresStoreConfig,
    store: &PostgresCryptoStore,
    name: &str,
    of: &StaticAccountData,
) -> Result<Found, Error> {
    let found = store.get_custom_value(MARK).await?;
    let found: Option<Value> = found.and_then(|found| serde_json::from_slice(&found).ok());
    if found.as_ref() == Some(&mark(of)) {
        return Ok(Found::OurImport);
    }
    let rows: u64 = counts(config).await?.values().sum();
    if found.is_none() && rows == 0 {
        return Ok(Found::Nothing);
    }
    let what = match (found, store.load_account().await?) {
        (Some(_), _) => "an import of another device that was not finished".to_owned(),
        (None, Some(account)) if is_of(&account, of) => return Err(already_there(name, of)),
        (None, Some(account)) => {
            format!("the device {} of {}", account.device_id(), account.user_id())
        }
        (None, None) => format!("{rows} rows"),
    };
    Err(Error::refused(format!(
        "the account {name:?} is not empty, it holds {what}: nothing was changed. Give the name of a new \
         account, or delete this one first (matrix-postgres delete-account)"
    )))
}

fn is_of(account: &Account, of: &StaticAccountData) -> bool {
    let found = account.static_data();
    (&found.user_id, &found.device_id) == (&of.user_id, &of.device_id)
        && found.identity_keys.curve25519 == of.identity_keys.curve25519
}

/// After an import, or one that was interrupted between its last transaction and its last comparison.
fn already_there(name: &str, device: &StaticAccountData) -> Error {
    let (user, device) = (&device.user_id, &device.device_id);
    Error::refused(format!(
        "the account {name:?} already is the device {device} of {user}: an import of it has ended, or was \
         interrupted after its last transaction. Nothing was changed, and nothing compared. The old bot must not \
         start again. If that import said that the account must not be used, or was interrupted and no bot has \
         used the account, delete it (matrix-postgres delete-account), and import again"
    ))
}

/// Refuses the same, and changes nothing. `config` reads only.
pub async fn look(
    config: &PostgresStoreConfig,
    name: &str,
    of: &StaticAccountData,
) -> Result<(), Error> {
    let status = admin::migration_status(config).await?;
    if status.parts.iter().all(|part| part.installed == 0) {
        return Ok(());
    }
    let store = match PostgresCryptoStore::open_with_config(config).await {
        Err(OpenStoreError::AccountNotFound { .. }) => return Ok(()),
        opened => opened?,
    };
    let found = found(config, &store, name, of).await;
    CryptoStore::close(&store).await?;
    found.map(drop)
}

/// All tracked users at once: the store gives them out together.
pub async fn tracked_users(
    reader: &PostgresCryptoStore,
    table: Table,
) -> Result<Option<HashMap<OwnedUserId, bool>>, Error> {
    if table != Table::TrackedUsers {
        return Ok(None);
    }
    let users = reader.load_tracked_users().await?;
    Ok(Some(users.into_iter().map(|user| (user.user_id, user.dirty)).collect()))
}

/// Whether the database has the value, and a room key in the sample exports as the file's does.
pub async fn is_same(
    reader: &PostgresCryptoStore,
    item: &Item,
    tracked: Option<&HashMap<OwnedUserId, bool>>,
    is_sampled: bool,
) -> Result<bool, StoreError> {
    if let (Item::TrackedUser(user), Some(tracked)) = (item, tracked) {
        return Ok(tracked.get(&user.user_id) == Some(&user.dirty));
    }
    verify::is_there(reader, item, is_sampled).await
}
