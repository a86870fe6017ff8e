//! The account's single items: the Olm account, the private identity, and three keys.

use matrix_sdk_crypto::{
    Account,
    olm::{PickledAccount, PrivateCrossSigningIdentity},
    store::types::{BackupDecryptionKey, BackupKeys, DehydratedDeviceKey, PendingChanges},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio_postgres::types::Type;

use super::{deferred::Saves, static_account::StaticAccount};
use crate::{
    Error,
    account::{
        Group, OpenAccount,
        cache::{Effect, Place, Stored},
        cipher::{Codec, Key, column},
        write::batch::{Batch, Cell},
    },
    postgres::statement::Sql,
};

const TABLE: &str = "account_data";

static GET_ONE: Sql = Sql {
    name: "account_data.get_one",
    template: "
SELECT ''::bytea, data, false FROM {schema}.account_data WHERE account_id = $1 AND item = $2",
    types: &[Type::INT8, Type::INT2],
};

static GET: Sql = Sql {
    name: "account_data.get",
    template: "SELECT item, data FROM {schema}.account_data WHERE account_id = $1 AND item = ANY ($2)",
    types: &[Type::INT8, Type::INT2_ARRAY],
};

// The Olm account is the same after most syncs: then it is not written.
static GROUP: Group = Group { table: TABLE, rows: &GET_ONE, keys: None, neighbours: None };

static UPSERT: Sql = Sql {
    name: "account_data.upsert",
    template: "
INSERT INTO {schema}.account_data (account_id, item, data)
SELECT $1, u.item, u.data FROM unnest($2, $3) AS u (item, data) WHERE {guarded}
ON CONFLICT (account_id, item) DO UPDATE SET data = excluded.data",
    types: &[Type::INT8, Type::INT4_ARRAY, Type::BYTEA_ARRAY],
};

static DELETE: Sql = Sql {
    name: "account_data.delete",
    template: "
DELETE FROM {schema}.account_data WHERE account_id = $1 AND {guarded} AND item = ANY ($2)",
    types: &[Type::INT8, Type::INT4_ARRAY],
};

pub(super) const STATEMENTS: &[&Sql] = &[&GET_ONE, &GET, &UPSERT, &DELETE];

/// The values of the column `item`; never renumbered.
#[derive(Clone, Copy)]
pub(super) enum Item {
    OlmAccount = 1,
    PrivateIdentity = 2,
    BackupDecryptionKey = 3,
    BackupVersion = 4,
    DehydratedDeviceKey = 5,
}

impl Item {
    fn key(self, codec: &Codec) -> Key {
        codec.key(TABLE, (self as i16).to_be_bytes())
    }

    fn place(self, codec: &Codec) -> Place {
        Place::new(TABLE, [&self.key(codec)])
    }
}

pub(super) async fn load_account(
    account: &OpenAccount,
    saves: &Saves,
    static_account: &StaticAccount,
) -> Result<Option<Account>, Error> {
    saves.end_sync_in_its_middle();
    let Some(pickle) = get::<PickledAccount>(account, Item::OlmAccount).await? else {
        return Ok(None);
    };
    saves.see_account_loaded();
    let olm_account = Account::from_pickle(pickle).map_err(|_| unpickle())?;
    // What is not committed yet, others learn with the commit.
    if static_account.within(account)?.is_none() {
        static_account.set(olm_account.static_data().clone());
    }
    Ok(Some(olm_account))
}

pub(super) async fn save_pending_changes(
    account: &OpenAccount,
    saves: Saves,
    changes: PendingChanges,
    static_account: StaticAccount,
) -> Result<(), Error> {
    let saving = saves.saving_account();
    let PendingChanges { account: olm_account } = changes;
    let data = olm_account.as_ref().map(|olm_account| olm_account.static_data().clone());
    // Before others can see the account.
    if let (Some(data), Some(scope)) = (data, account.scope()?) {
        static_account.set_within(&scope, data);
    }
    let saved = account
        .write(|staging| async move {
            let mut batch = Batch::default();
            if let Some(olm_account) = olm_account {
                let codec = &staging.codec;
                let (pickle, key) = (olm_account.pickle(), Item::OlmAccount.key(codec));
                let is_the_same = |data: &[u8]| codec.holds(TABLE, &[&key], data, &pickle);
                if staging.finds(&Item::OlmAccount.place(codec), &[], is_the_same) {
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
    saving.end();
    saved
}

pub(super) async fn load_identity(
    account: &OpenAccount,
    saves: &Saves,
) -> Result<Option<PrivateCrossSigningIdentity>, Error> {
    let pickle = get(account, Item::PrivateIdentity).await?;
    let identity = pickle.map(PrivateCrossSigningIdentity::from_pickle).transpose();
    let identity = identity.map_err(|_| unpickle())?;
    saves.see_identity_loaded();
    Ok(identity)
}

pub(super) async fn stage_identity(
    batch: &mut Batch,
    codec: &Codec,
    identity: &PrivateCrossSigningIdentity,
) -> Result<(), Error> {
    stage(batch, codec, Item::PrivateIdentity, &identity.pickle().await)
}

pub(super) async fn load_backup_keys(account: &OpenAccount) -> Result<BackupKeys, Error> {
    let items = [Item::BackupDecryptionKey as i16, Item::BackupVersion as i16];
    let mut keys = BackupKeys::default();
    for row in account.query(&GET, &[&items.as_slice()]).await? {
        let item: i16 = column(&row, 0, TABLE)?;
        let data: &[u8] = column(&row, 1, TABLE)?;
        if item == Item::BackupVersion as i16 {
            keys.backup_version = Some(open(&account.codec, Item::BackupVersion, data)?);
        } else {
            keys.decryption_key = Some(open(&account.codec, Item::BackupDecryptionKey, data)?);
        }
    }
    Ok(keys)
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
    account: &OpenAccount,
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

pub(super) async fn delete_dehydrated_device_key(account: &OpenAccount) -> Result<(), Error> {
    let item = Item::DehydratedDeviceKey;
    let effect = Effect::Put(item.place(&account.codec), Vec::new(), None);
    account.apply(&DELETE, [Cell::Int(item as i32)], Some(effect)).await
}

async fn get<T: DeserializeOwned>(account: &OpenAccount, item: Item) -> Result<Option<T>, Error> {
    let rows = account.rows(&GROUP, &item.place(&account.codec), &[&(item as i16)]).await?;
    rows.values().next().map(|row| open(&account.codec, item, &row.data)).transpose()
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
    let row = Stored::new(codec.seal(TABLE, &[&item.key(codec)], value)?);
    batch.note(Effect::Set(item.place(codec), Vec::new(), row.clone()));
    batch.put(&UPSERT, [Cell::Int(item as i32)], [row.into()]);
    Ok(())
}

fn unpickle() -> Error {
    Error::BadRow { table: TABLE, reason: "the pickle is invalid" }
}
