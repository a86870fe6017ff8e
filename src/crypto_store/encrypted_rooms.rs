//! Settings of encrypted rooms: the algorithm, and whom to encrypt for.

use matrix_sdk_common::ruma::RoomId;
use matrix_sdk_crypto::store::types::RoomSettings;
use tokio_postgres::types::Type;

use crate::{
    Error,
    account::{
        OpenAccount,
        cipher::{Codec, column},
        write::batch::Batch,
    },
    postgres::statement::{Sql, get_by_key, upsert_by_key},
};

const TABLE: &str = "encrypted_rooms";

static GET: Sql = get_by_key!("encrypted_rooms", "room_id");
static UPSERT: Sql = upsert_by_key!("encrypted_rooms", "room_id");

pub(super) const STATEMENTS: &[&Sql] = &[&GET, &UPSERT];

pub(super) async fn get(
    account: &OpenAccount,
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
    batch.put(&UPSERT, [room_id.into()], [data.into()]);
    Ok(())
}
