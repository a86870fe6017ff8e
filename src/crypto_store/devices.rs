//! The devices of other users, and our own.

use std::{collections::HashMap, sync::Arc};

use matrix_sdk_common::ruma::{DeviceId, OwnedDeviceId, UserId};
use matrix_sdk_crypto::{DeviceData, olm::StaticAccountData};
use tokio_postgres::types::Type;

use super::deferred::{self, Group as Deferred, RowKey, Saves};
use crate::{
    Error,
    account::{
        Group, OpenAccount,
        cache::{Effect, Place, Rows, Stored},
        cipher::{Codec, Key},
        write::batch::{Batch, Cell},
    },
    postgres::{
        database::Param,
        statement::{Sql, keys_of, upsert_by_key},
    },
};

const TABLE: &str = "devices";

static GET: Sql = Sql {
    name: "devices.get",
    template: "
SELECT device_id, data, false FROM {schema}.devices
WHERE account_id = $1 AND user_id = $2 AND device_id = $3",
    types: &[Type::INT8, Type::BYTEA, Type::BYTEA],
};

static BY_USER: Sql = Sql {
    name: "devices.by_user",
    template: "
SELECT device_id, data, false FROM {schema}.devices WHERE account_id = $1 AND user_id = $2",
    types: &[Type::INT8, Type::BYTEA],
};

static KEYS: Sql = keys_of!("devices", "user_id");

static GROUP: Group = Group { table: TABLE, rows: &BY_USER, keys: Some(&KEYS) };

static UPSERT: Sql = upsert_by_key!("devices", "user_id", "device_id");

static DELETE: Sql = Sql {
    name: "devices.delete",
    template: "
DELETE FROM {schema}.devices d USING unnest($2, $3) AS u (user_id, device_id)
WHERE d.account_id = $1 AND {guarded} AND d.user_id = u.user_id AND d.device_id = u.device_id",
    types: &[Type::INT8, Type::BYTEA_ARRAY, Type::BYTEA_ARRAY],
};

pub(super) const STATEMENTS: &[&Sql] = &[&GET, &BY_USER, &KEYS, &UPSERT, &DELETE];

pub(super) async fn get(
    account: &OpenAccount,
    saves: &Saves,
    user_id: &UserId,
    device_id: &DeviceId,
) -> Result<Option<DeviceData>, Error> {
    let key @ [user_id, device_id] = &key(&account.codec, user_id, device_id);
    if let Some(Some(row)) = saves.row(&row_key(key)) {
        return open(&account.codec, [user_id, device_id], &row.data).map(Some);
    }
    let place = Place::new(TABLE, [user_id]);
    let alone: [Param<'_>; 2] = [user_id, device_id];
    let row = account.row(&GROUP, &place, &[user_id], device_id, (&GET, &alone)).await?;
    row.map(|row| open(&account.codec, [user_id, device_id], &row.data)).transpose()
}

pub(super) async fn own(
    account: &OpenAccount,
    saves: &Saves,
    own: Option<StaticAccountData>,
) -> Result<DeviceData, Error> {
    let own = own.ok_or(Error::AccountUnset)?;
    get(account, saves, &own.user_id, &own.device_id).await?.ok_or_else(own_device_missing)
}

pub(super) fn own_device_missing() -> Error {
    Error::BadRow { table: TABLE, reason: "our own device is missing" }
}

pub(super) async fn by_user(
    account: &OpenAccount,
    saves: &Saves,
    user_id: &UserId,
) -> Result<HashMap<OwnedDeviceId, DeviceData>, Error> {
    let user_id = account.codec.key(TABLE, user_id);
    let deferred = saves.rows(&Deferred::Devices(user_id.clone()));
    let rows = deferred::over(of_user(account, &user_id).await?, deferred);
    let devices = rows.iter().map(|(device_id, row)| {
        let device_id = Key::stored(device_id);
        let device = open(&account.codec, [&user_id, &device_id], &row.data)?;
        Ok((device.device_id().to_owned(), device))
    });
    devices.collect()
}

async fn of_user(account: &OpenAccount, user_id: &Key) -> Result<Arc<Rows>, Error> {
    account.rows(&GROUP, &Place::new(TABLE, [user_id]), &[user_id]).await
}

/// A device as it is stored.
pub(super) fn row(codec: &Codec, device: &DeviceData) -> Result<([Key; 2], Arc<Stored>), Error> {
    let key = key(codec, device.user_id(), device.device_id());
    let data = codec.seal(TABLE, &key.each_ref(), device)?;
    Ok((key, Stored::new(data)))
}

pub(super) fn stage(batch: &mut Batch, [user_id, device_id]: [&Key; 2], row: Arc<Stored>) {
    let place = Place::new(TABLE, [user_id]);
    batch.note(Effect::Put(place, device_id.as_bytes().to_vec(), Some(row.clone())));
    batch.put(&UPSERT, [user_id.clone().into(), device_id.clone().into()], [row.into()]);
}

/// Staged after all saves, so that a device both changed and deleted is gone.
pub(super) fn stage_delete(batch: &mut Batch, codec: &Codec, device: &DeviceData) -> RowKey {
    let key = key(codec, device.user_id(), device.device_id());
    let [user_id, device_id] = &key;
    let place = Place::new(TABLE, [user_id]);
    batch.note(Effect::Put(place, device_id.as_bytes().to_vec(), None));
    let deleted = row_key(&key);
    batch.put(&DELETE, key.map(Cell::from), []);
    deleted
}

pub(super) fn row_key([user_id, device_id]: &[Key; 2]) -> RowKey {
    (Deferred::Devices(user_id.clone()), device_id.clone())
}

pub(super) fn key(codec: &Codec, user_id: &UserId, device_id: &DeviceId) -> [Key; 2] {
    [codec.key(TABLE, user_id), codec.key(TABLE, device_id)]
}

pub(super) fn open(codec: &Codec, key: [&Key; 2], data: &[u8]) -> Result<DeviceData, Error> {
    codec.open(TABLE, &key, data)
}
