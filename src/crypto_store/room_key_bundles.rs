//! Shared room history (MSC4268): bundles received, bundles pending, and rooms whose keys have all
//! been fetched from the backup.

use matrix_sdk_common::ruma::{RoomId, UserId};
use matrix_sdk_crypto::store::types::{RoomPendingKeyBundleDetails, StoredRoomKeyBundleData};
use tokio_postgres::types::Type;

use crate::{
    Error,
    account::{
        StoreLane,
        cipher::{Codec, Key, column},
        write::batch::Batch,
    },
    postgres::{
        cell::Cells,
        statement::{Delete, Sql, Table, Upsert, bytea},
    },
};

const RECEIVED: &str = ROOM_KEY_BUNDLES.name;
const PENDING: &str = PENDING_KEY_BUNDLES.name;
const BACKED_UP: &str = BACKED_UP_ROOMS.name;

pub(super) static ROOM_KEY_BUNDLES: Table = Table {
    name: "room_key_bundles",
    key: &[bytea("room_id"), bytea("sender_user")],
    values: &[bytea("data")],
    cache: None,
};

static GET_RECEIVED: Sql = Sql::get("room_key_bundles.get", &ROOM_KEY_BUNDLES);
static UPSERT_RECEIVED: Upsert = Upsert::new("room_key_bundles.upsert", &ROOM_KEY_BUNDLES);

pub(super) static PENDING_KEY_BUNDLES: Table = Table {
    name: "pending_key_bundles",
    key: &[bytea("room_id")],
    values: &[bytea("data")],
    cache: None,
};

static GET_PENDING: Sql = Sql::get("pending_key_bundles.get", &PENDING_KEY_BUNDLES);
static UPSERT_PENDING: Upsert = Upsert::new("pending_key_bundles.upsert", &PENDING_KEY_BUNDLES);
static DELETE_PENDING: Delete = Delete::new("pending_key_bundles.delete", &PENDING_KEY_BUNDLES);

static ALL_PENDING: Sql = Sql::new(
    "pending_key_bundles.all",
    "SELECT room_id, data FROM {schema}.pending_key_bundles WHERE account_id = $1",
    &[Type::INT8],
);

pub(super) static BACKED_UP_ROOMS: Table =
    Table { name: "backed_up_rooms", key: &[bytea("room_id")], values: &[], cache: None };

static GET_BACKED_UP: Sql = Sql::get("backed_up_rooms.get", &BACKED_UP_ROOMS);
static INSERT_BACKED_UP: Upsert = Upsert::new("backed_up_rooms.insert", &BACKED_UP_ROOMS);

pub(super) const STATEMENTS: &[&Sql] = &[
    &GET_RECEIVED,
    UPSERT_RECEIVED.sql(),
    &GET_PENDING,
    UPSERT_PENDING.sql(),
    DELETE_PENDING.sql(),
    &ALL_PENDING,
    &GET_BACKED_UP,
    INSERT_BACKED_UP.sql(),
];

pub(super) async fn received(
    account: &StoreLane,
    room_id: &RoomId,
    sender: &UserId,
) -> Result<Option<StoredRoomKeyBundleData>, Error> {
    let codec = &account.codec;
    let (room_id, sender) = (codec.key(RECEIVED, room_id), codec.key(RECEIVED, sender));
    let Some(row) = account.query_opt(&GET_RECEIVED, &[&room_id, &sender]).await? else {
        return Ok(None);
    };
    codec.open(RECEIVED, &[&room_id, &sender], column(&row, 0, RECEIVED)?).map(Some)
}

pub(super) fn stage_received(
    batch: &mut Batch,
    codec: &Codec,
    bundle: &StoredRoomKeyBundleData,
) -> Result<(), Error> {
    let room_id = codec.key(RECEIVED, &bundle.bundle_data.room_id);
    let sender = codec.key(RECEIVED, &bundle.sender_user);
    let data = codec.seal(RECEIVED, &[&room_id, &sender], bundle)?;
    batch.upsert(&UPSERT_RECEIVED, [room_id, sender], [data]);
    Ok(())
}

pub(super) async fn pending(
    account: &StoreLane,
    room_id: &RoomId,
) -> Result<Option<RoomPendingKeyBundleDetails>, Error> {
    let room_id = account.codec.key(PENDING, room_id);
    let Some(row) = account.query_opt(&GET_PENDING, &[&room_id]).await? else { return Ok(None) };
    account.codec.open(PENDING, &[&room_id], column(&row, 0, PENDING)?).map(Some)
}

pub(super) async fn all_pending(
    account: &StoreLane,
) -> Result<Vec<RoomPendingKeyBundleDetails>, Error> {
    let rows = account.query(&ALL_PENDING, &[]).await?;
    let details = rows.iter().map(|row| {
        let room_id = Key::of(row, 0, PENDING)?;
        account.codec.open(PENDING, &[&room_id], column(row, 1, PENDING)?)
    });
    details.collect()
}

/// Stages a pending bundle, or with `None` its deletion.
pub(super) fn stage_pending(
    batch: &mut Batch,
    codec: &Codec,
    room_id: &RoomId,
    details: Option<&RoomPendingKeyBundleDetails>,
) -> Result<(), Error> {
    let room_id = codec.key(PENDING, room_id);
    match details {
        Some(details) => {
            let data = codec.seal(PENDING, &[&room_id], details)?;
            batch.upsert(&UPSERT_PENDING, [room_id], [data]);
        }
        None => batch.delete(&DELETE_PENDING, [room_id]),
    }
    Ok(())
}

pub(super) async fn is_backed_up(account: &StoreLane, room_id: &RoomId) -> Result<bool, Error> {
    let room_id = account.codec.key(BACKED_UP, room_id);
    Ok(account.query_opt(&GET_BACKED_UP, &[&room_id]).await?.is_some())
}

pub(super) fn stage_backed_up(batch: &mut Batch, codec: &Codec, room_id: &RoomId) {
    batch.upsert(&INSERT_BACKED_UP, [codec.key(BACKED_UP, room_id)], Cells::default());
}
