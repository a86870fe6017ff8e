//! The devices of other users, and our own.

use std::collections::HashMap;

use matrix_sdk_common::ruma::{DeviceId, OwnedDeviceId, UserId};
use matrix_sdk_crypto::{DeviceData, olm::StaticAccountData};

use super::{
    deferred::{self, Group as Deferred, RowKey, Saves},
    olm_sessions,
};
use crate::{
    Error,
    account::{
        StoreLane,
        cipher::{Codec, Key},
        write::batch::Batch,
    },
    postgres::{
        cell::Cells,
        statement::{CacheIndex, Delete, Prefetched, Sql, Table, Upsert, bytea},
    },
};

const TABLE: &str = DEVICES.name;

pub(crate) static DEVICES: Table = Table {
    name: "devices",
    key: &[bytea("user_id"), bytea("device_id")],
    values: &[bytea("data")],
    cache: Some(&BY_USER),
};

static BY_USER: CacheIndex = CacheIndex {
    table: &DEVICES,
    group: &GET_BY_USER,
    row: Some(&GET),
    keys: Some(&KEYS),
    prefetch: Some(Prefetched::SmallTable(&FEW)),
    row_key: 1,
    keeps_rows: true,
};

static GET: Sql = Sql::get("devices.get", &DEVICES);
static GET_BY_USER: Sql = Sql::get_group("devices.by_user", &DEVICES);
static FEW: Sql = Sql::get_few("devices.few", &DEVICES);
static KEYS: Sql = Sql::key_set("devices.keys", &DEVICES);
static UPSERT: Upsert = Upsert::new("devices.upsert", &DEVICES);
static DELETE: Delete = Delete::new("devices.delete", &DEVICES);

pub(super) const STATEMENTS: &[&Sql] =
    &[&GET, &GET_BY_USER, &FEW, &KEYS, UPSERT.sql(), DELETE.sql()];

pub(super) async fn get(
    account: &StoreLane,
    saves: &Saves,
    user_id: &UserId,
    device_id: &DeviceId,
) -> Result<Option<DeviceData>, Error> {
    let key @ [user_id, device_id] = &key(&account.codec, user_id, device_id);
    let row = match saves.row(&row_key(key)) {
        Some(Some(row)) => Some(row),
        _ => account.row(&BY_USER, [user_id, device_id]).await?,
    };
    row.map(|row| open_row(&account.codec, [user_id, device_id], &row)).transpose()
}

pub(super) async fn own(
    account: &StoreLane,
    saves: &Saves,
    own: Option<StaticAccountData>,
) -> Result<DeviceData, Error> {
    let own = own.ok_or(Error::AccountUnset)?;
    get(account, saves, &own.user_id, &own.device_id).await?.ok_or_else(own_device_missing)
}

pub(super) fn own_device_missing() -> Error {
    Error::CorruptRow { table: TABLE, reason: "our own device is missing" }
}

pub(super) async fn by_user(
    account: &StoreLane,
    saves: &Saves,
    user_id: &UserId,
) -> Result<HashMap<OwnedDeviceId, DeviceData>, Error> {
    let user_id = account.codec.key(TABLE, user_id);
    let deferred = saves.rows(&Deferred::Devices(user_id.clone()));
    let rows = deferred::merge(account.rows(&BY_USER, [&user_id]).await?, deferred);
    let devices = rows.iter().map(|(device_id, row)| {
        let device_id = Key::of_cell(device_id, 0, TABLE)?;
        let device = open_row(&account.codec, [&user_id, &device_id], row)?;
        Ok((device.device_id().to_owned(), device))
    });
    let devices: HashMap<_, _> = devices.collect::<Result<_, Error>>()?;
    olm_sessions::expect(account, devices.values());
    Ok(devices)
}

/// The key and the row of a device.
pub(super) fn row(codec: &Codec, device: &DeviceData) -> Result<([Key; 2], Cells), Error> {
    let key = key(codec, device.user_id(), device.device_id());
    let data = codec.seal(TABLE, &key.each_ref(), device)?;
    Ok((key, [data].into()))
}

pub(super) fn stage(batch: &mut Batch, key: [&Key; 2], row: Cells) {
    batch.upsert(&UPSERT, key, row);
}

/// Staged after all saves, so that a device both changed and deleted is deleted.
pub(super) fn stage_delete(batch: &mut Batch, codec: &Codec, device: &DeviceData) -> RowKey {
    let key = key(codec, device.user_id(), device.device_id());
    let deleted = row_key(&key);
    batch.delete(&DELETE, key);
    deleted
}

pub(super) fn row_key([user_id, device_id]: &[Key; 2]) -> RowKey {
    (Deferred::Devices(user_id.clone()), device_id.clone())
}

pub(super) fn key(codec: &Codec, user_id: &UserId, device_id: &DeviceId) -> [Key; 2] {
    [codec.key(TABLE, user_id), codec.key(TABLE, device_id)]
}

fn open_row(codec: &Codec, key: [&Key; 2], row: &Cells) -> Result<DeviceData, Error> {
    open(codec, key, row.bytes(0, TABLE)?)
}

pub(super) fn open(codec: &Codec, key: [&Key; 2], data: &[u8]) -> Result<DeviceData, Error> {
    codec.open(TABLE, &key, data)
}
