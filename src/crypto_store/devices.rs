//! The devices of other users, and our own.

use std::collections::HashMap;

use matrix_sdk_common::ruma::{DeviceId, OwnedDeviceId, UserId};
use matrix_sdk_crypto::{DeviceData, olm::StaticAccountData};
use tokio_postgres::types::Type;

use crate::{
    Error,
    account::OpenAccount,
    batch::{Batch, Cell},
    codec::{Codec, Key, column},
    statement::{Sql, get_by_key, upsert_by_key},
};

const TABLE: &str = "devices";

static GET: Sql = get_by_key!("devices", "user_id", "device_id");

static BY_USER: Sql = Sql {
    name: "devices.by_user",
    template: "
SELECT device_id, data FROM {schema}.devices WHERE account_id = $1 AND user_id = $2",
    types: &[Type::INT8, Type::BYTEA],
};

static UPSERT: Sql = upsert_by_key!("devices", "user_id", "device_id");

static DELETE: Sql = Sql {
    name: "devices.delete",
    template: "
DELETE FROM {schema}.devices d USING unnest($2, $3) AS u (user_id, device_id)
WHERE d.account_id = $1 AND {guarded} AND d.user_id = u.user_id AND d.device_id = u.device_id",
    types: &[Type::INT8, Type::BYTEA_ARRAY, Type::BYTEA_ARRAY],
};

pub(super) const STATEMENTS: &[&Sql] = &[&GET, &BY_USER, &UPSERT, &DELETE];

pub(super) async fn get(
    account: &OpenAccount,
    user_id: &UserId,
    device_id: &DeviceId,
) -> Result<Option<DeviceData>, Error> {
    let [user_id, device_id] = key(&account.codec, user_id, device_id);
    let Some(row) = account.query_opt(&GET, &[&user_id, &device_id]).await? else {
        return Ok(None);
    };
    open(&account.codec, [&user_id, &device_id], column(&row, 0, TABLE)?).map(Some)
}

pub(super) async fn own(
    account: &OpenAccount,
    own: Option<StaticAccountData>,
) -> Result<DeviceData, Error> {
    let own = own.ok_or(Error::AccountUnset)?;
    get(account, &own.user_id, &own.device_id).await?.ok_or_else(own_device_missing)
}

pub(super) fn own_device_missing() -> Error {
    Error::BadRow { table: TABLE, reason: "our own device is missing" }
}

pub(super) async fn by_user(
    account: &OpenAccount,
    user_id: &UserId,
) -> Result<HashMap<OwnedDeviceId, DeviceData>, Error> {
    let user_id = account.codec.key(TABLE, user_id);
    let rows = account.query(&BY_USER, &[&user_id]).await?;
    let devices = rows.iter().map(|row| {
        let device_id = Key::of(row, 0, TABLE)?;
        let device = open(&account.codec, [&user_id, &device_id], column(row, 1, TABLE)?)?;
        Ok((device.device_id().to_owned(), device))
    });
    devices.collect()
}

pub(super) fn stage(batch: &mut Batch, codec: &Codec, device: &DeviceData) -> Result<(), Error> {
    let [user_id, device_id] = key(codec, device.user_id(), device.device_id());
    let data = codec.seal(TABLE, &[&user_id, &device_id], device)?;
    batch.put(&UPSERT, [user_id.into(), device_id.into()], [data.into()]);
    Ok(())
}

/// Staged after all saves, so that a device both changed and deleted is gone.
pub(super) fn stage_delete(batch: &mut Batch, codec: &Codec, device: &DeviceData) {
    batch.put(&DELETE, key(codec, device.user_id(), device.device_id()).map(Cell::from), []);
}

pub(super) fn key(codec: &Codec, user_id: &UserId, device_id: &DeviceId) -> [Key; 2] {
    [codec.key(TABLE, user_id), codec.key(TABLE, device_id)]
}

pub(super) fn open(codec: &Codec, key: [&Key; 2], data: &[u8]) -> Result<DeviceData, Error> {
    codec.open(TABLE, &key, data)
}
