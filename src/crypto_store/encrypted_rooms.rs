//! Settings of encrypted rooms: the algorithm, and whom to encrypt for.

use matrix_sdk_common::ruma::RoomId;
use matrix_sdk_crypto::store::types::RoomSettings;

use crate::{
    Error,
    account::{
        StoreLane,
        cipher::{Codec, column},
        write::batch::Batch,
    },
    postgres::statement::{Sql, Table, Upsert, bytea},
};

const TABLE: &str = ENCRYPTED_ROOMS.name;

pub(super) static ENCRYPTED_ROOMS: Table = Table {
    name: "encrypted_rooms",
    key: &[bytea("room_id")],
    values: &[bytea("data")],
    cache: None,
};

static GET: Sql = Sql::get("encrypted_rooms.get", &ENCRYPTED_ROOMS);
static UPSERT: Upsert = Upsert::new("encrypted_rooms.upsert", &ENCRYPTED_ROOMS);

pub(super) const STATEMENTS: &[&Sql] = &[&GET, UPSERT.sql()];

pub(super) async fn get(
    account: &StoreLane,
    room_id: &RoomId,
) -> Result<Option<RoomSettings>, Error> {
    let room_id = account.codec.key(TABLE, room_id);
    let Some(row) = account.query_opt(&GET, &[&room_id]).await? else { return Ok(None) };
    account.codec.open(TABLE, &[&room_id], column(&row, 0, TABLE)?).map(Some)
}

pub(super) fn stage(
    batch: &mut Batch,
    codec: &Codec,
    room_id: &RoomId,
    settings: &RoomSettings,
) -> Result<(), Error> {
    let room_id = codec.key(TABLE, room_id);
    let data = codec.seal(TABLE, &[&room_id], settings)?;
    batch.upsert(&UPSERT, [room_id], [data]);
    Ok(())
}
