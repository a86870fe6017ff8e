//! Room keys that a sender chose not to share, and why.

use matrix_sdk_common::ruma::RoomId;
use matrix_sdk_crypto::store::types::RoomKeyWithheldEntry;
use tokio_postgres::types::Type;

use crate::{
    Error,
    account::{
        OpenAccount,
        cipher::{Codec, Key, column},
        write::batch::Batch,
    },
    postgres::statement::{Sql, get_by_key, upsert_by_key},
};

const TABLE: &str = "withheld_sessions";

static GET: Sql = get_by_key!("withheld_sessions", "room_id", "session_id");

static BY_ROOM: Sql = Sql {
    name: "withheld_sessions.by_room",
    template: "
SELECT session_id, data FROM {schema}.withheld_sessions WHERE account_id = $1 AND room_id = $2",
    types: &[Type::INT8, Type::BYTEA],
};

static UPSERT: Sql = upsert_by_key!("withheld_sessions", "room_id", "session_id");

pub(super) const STATEMENTS: &[&Sql] = &[&GET, &BY_ROOM, &UPSERT];

pub(super) async fn get(
    account: &OpenAccount,
    room_id: &RoomId,
    session_id: &str,
) -> Result<Option<RoomKeyWithheldEntry>, Error> {
    let codec = &account.codec;
    let (room_id, session_id) = (codec.key(TABLE, room_id), codec.key(TABLE, session_id));
    let Some(row) = account.query_opt(&GET, &[&room_id, &session_id]).await? else {
        return Ok(None);
    };
    codec.open_json(TABLE, &[&room_id, &session_id], column(&row, 0, TABLE)?).map(Some)
}

pub(super) async fn by_room(
    account: &OpenAccount,
    room_id: &RoomId,
) -> Result<Vec<RoomKeyWithheldEntry>, Error> {
    let room_id = account.codec.key(TABLE, room_id);
    let rows = account.query(&BY_ROOM, &[&room_id]).await?;
    let entries = rows.iter().map(|row| {
        let session_id = Key::of(row, 0, TABLE)?;
        account.codec.open_json(TABLE, &[&room_id, &session_id], column(row, 1, TABLE)?)
    });
    entries.collect()
}

pub(super) fn stage(
    batch: &mut Batch,
    codec: &Codec,
    room_id: &RoomId,
    session_id: &str,
    entry: &RoomKeyWithheldEntry,
) -> Result<(), Error> {
    let (room_id, session_id) = (codec.key(TABLE, room_id), codec.key(TABLE, session_id));
    // Holds the raw content of an event, so JSON is the only form that reads back.
    let data = codec.seal_json(TABLE, &[&room_id, &session_id], entry)?;
    batch.put(&UPSERT, [room_id.into(), session_id.into()], [data.into()]);
    Ok(())
}
