//! The account's single items: the Olm account, the private identity, and three keys.

use futures_util::future::try_join;
use matrix_sdk_crypto::{
    Account,
    olm::{PickledAccount, PickledCrossSigningIdentity, PrivateCrossSigningIdentity},
    store::types::{BackupDecryptionKey, BackupKeys, DehydratedDeviceKey, PendingChanges},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio_postgres::types::Type;

use super::{deferred::Saves, static_account::StaticAccount};
use crate::{
    Error,
    account::{
        StoreLane,
        cipher::{Codec, Key},
        write::batch::Batch,
    },
    postgres::{
        cell::{Cell, Cells},
        statement::{
            CacheIndex, Column, ColumnType, Delete, Prefetched, Sql, Table, Upsert, bytea,
        },
    },
};

const TABLE: &str = ACCOUNT_DATA.name;

pub(crate) static ACCOUNT_DATA: Table = Table {
    name: "account_data",
    key: &[Column("item", ColumnType::Int2)],
    values: &[bytea("data")],
    // Most syncs leave the Olm account unchanged; the cached row shows that, and it is not written.
    cache: Some(&BY_ITEM),
};

static BY_ITEM: CacheIndex = CacheIndex {
    table: &ACCOUNT_DATA,
    group: &GET_ONE,
    row: None,
    keys: None,
    prefetch: Some(Prefetched::Expected(&PREFETCH)),
    row_key: 0,
    keeps_rows: true,
};

static GET_ONE: Sql = Sql::get("account_data.get_one", &ACCOUNT_DATA);
static UPSERT: Upsert = Upsert::new("account_data.upsert", &ACCOUNT_DATA);
static DELETE: Delete = Delete::new("account_data.delete", &ACCOUNT_DATA);

static PREFETCH: Sql = Sql::new(
    "account_data.prefetch",
    "SELECT item, data FROM {schema}.account_data WHERE account_id = $1 AND item = ANY ($2)",
    &[Type::INT8, Type::INT2_ARRAY],
);

pub(super) const STATEMENTS: &[&Sql] = &[&GET_ONE, &PREFETCH, UPSERT.sql(), DELETE.sql()];

/// The values of the column `item`; never renumbered.
#[derive(Clone, Copy)]
pub(crate) enum Item {
    OlmAccount = 1,
    PrivateIdentity = 2,
    BackupDecryptionKey = 3,
    BackupVersion = 4,
    DehydratedDeviceKey = 5,
}

impl Item {
    pub(super) fn of(item: i16) -> Option<Self> {
        let all = [
            Self::OlmAccount,
            Self::PrivateIdentity,
            Self::BackupDecryptionKey,
            Self::BackupVersion,
            Self::DehydratedDeviceKey,
        ];
        all.into_iter().find(|known| *known as i16 == item)
    }

    /// The key that the sealed value is bound to.
    pub(super) fn key(self, codec: &Codec) -> Key {
        codec.key(TABLE, (self as i16).to_be_bytes())
    }

    /// The key of the item's row.
    fn cells(self) -> Cells {
        [Cell::Int(self as i64)].into()
    }
}

pub(super) async fn load_account(
    account: &StoreLane,
    saves: &Saves,
    static_account: &StaticAccount,
) -> Result<Option<Account>, Error> {
    saves.refuse_unfinished_sync();
    // A new machine reads these next.
    let next = [Item::PrivateIdentity, Item::BackupDecryptionKey, Item::BackupVersion];
    account.expect(&BY_ITEM, next.map(Item::cells));
    let Some(pickle) = get::<PickledAccount>(account, Item::OlmAccount).await? else {
        return Ok(None);
    };
    saves.record_account_load();
    let olm_account = Account::from_pickle(pickle).map_err(|_| invalid_pickle())?;
    // Data of an open transaction is published when it commits.
    if static_account.uncommitted(account)?.is_none() {
        static_account.set(olm_account.static_data().clone());
    }
    Ok(Some(olm_account))
}

pub(super) async fn save_pending_changes(
    account: &StoreLane,
    saves: Saves,
    changes: PendingChanges,
    static_account: StaticAccount,
) -> Result<(), Error> {
    let save_guard = saves.guard_account_save();
    let PendingChanges { account: olm_account } = changes;
    let data = olm_account.as_ref().map(|olm_account| olm_account.static_data().clone());
    // Set before other tasks can read the account from the overlay.
    if let (Some(data), Some(scope)) = (data, account.scope()?) {
        static_account.set_uncommitted(&scope, data);
    }
    let saved = account
        .write(|staging| async move {
            let mut batch = Batch::default();
            if let Some(olm_account) = olm_account {
                let codec = &staging.codec;
                let (pickle, key) = (olm_account.pickle(), Item::OlmAccount.key(codec));
                // Nothing but the pickle shows that a one-time key was used.
                let is_same = |row: &Cells| {
                    let data = row.bytes(0, TABLE);
                    data.is_ok_and(|data| codec.matches_sealed(TABLE, &[&key], data, &pickle))
                };
                if staging.is_unchanged(&ACCOUNT_DATA, &Item::OlmAccount.cells(), is_same) {
                    batch.skip_unchanged();
                } else {
                    stage(&mut batch, codec, Item::OlmAccount, &pickle)?;
                }
                let data = olm_account.static_data().clone();
                batch.on_commit(move || static_account.set(data));
                saves.complete(&mut batch, Vec::new(), true)?;
            }
            Ok(batch)
        })
        .await;
    save_guard.finish();
    saved
}

pub(super) async fn load_identity(
    account: &StoreLane,
    saves: &Saves,
) -> Result<Option<PrivateCrossSigningIdentity>, Error> {
    let pickle = get(account, Item::PrivateIdentity).await?;
    let identity = pickle.map(PrivateCrossSigningIdentity::from_pickle).transpose();
    let identity = identity.map_err(|_| invalid_pickle())?;
    saves.record_identity_load();
    Ok(identity)
}

pub(super) async fn stage_identity(
    batch: &mut Batch,
    codec: &Codec,
    identity: &PrivateCrossSigningIdentity,
) -> Result<(), Error> {
    stage(batch, codec, Item::PrivateIdentity, &identity.pickle().await)
}

pub(super) async fn load_backup_keys(account: &StoreLane) -> Result<BackupKeys, Error> {
    let (decryption_key, backup_version) =
        try_join(get(account, Item::BackupDecryptionKey), get(account, Item::BackupVersion))
            .await?;
    Ok(BackupKeys { decryption_key, backup_version })
}

pub(super) fn stage_backup_keys(
    batch: &mut Batch,
    codec: &Codec,
    version: Option<String>,
    key: Option<BackupDecryptionKey>,
) -> Result<(), Error> {
    if let Some(version) = version {
        stage(batch, codec, Item::BackupVersion, &version)?;
    }
    if let Some(key) = key {
        stage(batch, codec, Item::BackupDecryptionKey, &key)?;
    }
    Ok(())
}

pub(super) async fn load_dehydrated_device_key(
    account: &StoreLane,
) -> Result<Option<DehydratedDeviceKey>, Error> {
    get(account, Item::DehydratedDeviceKey).await
}

pub(super) fn stage_dehydrated_device_key(
    batch: &mut Batch,
    codec: &Codec,
    key: &DehydratedDeviceKey,
) -> Result<(), Error> {
    stage(batch, codec, Item::DehydratedDeviceKey, key)
}

pub(super) async fn delete_dehydrated_device_key(account: &StoreLane) -> Result<(), Error> {
    account.delete(&DELETE, Item::DehydratedDeviceKey.cells()).await
}

/// The Olm account as it is stored, for those who only look.
pub(super) async fn pickled_account(account: &StoreLane) -> Result<Option<PickledAccount>, Error> {
    get(account, Item::OlmAccount).await
}

pub(super) async fn pickled_identity(
    account: &StoreLane,
) -> Result<Option<PickledCrossSigningIdentity>, Error> {
    get(account, Item::PrivateIdentity).await
}

async fn get<T: DeserializeOwned>(account: &StoreLane, item: Item) -> Result<Option<T>, Error> {
    let row = account.row(&BY_ITEM, item.cells()).await?;
    row.map(|row| open(&account.codec, item, row.bytes(0, TABLE)?)).transpose()
}

fn open<T: DeserializeOwned>(codec: &Codec, item: Item, data: &[u8]) -> Result<T, Error> {
    codec.open(TABLE, &[&item.key(codec)], data)
}

fn stage(
    batch: &mut Batch,
    codec: &Codec,
    item: Item,
    value: &impl Serialize,
) -> Result<(), Error> {
    batch.upsert(&UPSERT, item.cells(), [codec.seal(TABLE, &[&item.key(codec)], value)?]);
    Ok(())
}

pub(super) fn invalid_pickle() -> Error {
    Error::CorruptRow { table: TABLE, reason: "the pickle is invalid" }
}
