//! Room keys that a sender chose not to share, and why.

use matrix_sdk_common::ruma::RoomId;
use matrix_sdk_crypto::store::types::RoomKeyWithheldEntry;
use tokio_postgres::types::Type;

use crate::{
    Error,
    account::{
        StoreLane,
        cipher::{Codec, Key, column},
        write::batch::Batch,
    },
    postgres::statement::{Sql, Table, Upsert, bytea},
};

const TABLE: &str = WITHHELD_SESSIONS.name;

pub(crate) static WITHHELD_SESSIONS: Table = Table {
    name: "withheld_sessions",
    key: &[bytea("room_id"), bytea("session_id")],
    values: &[bytea("data")],
    cache: None,
};

static GET: Sql = Sql::get("withheld_sessions.get", &WITHHELD_SESSIONS);

static BY_ROOM: Sql = Sql::new(
    "withheld_sessions.by_room",
    "
SELECT session_id, data FROM {schema}.withheld_sessions WHERE account_id = $1 AND room_id = $2",
    &[Type::INT8, Type::BYTEA],
);

static UPSERT: Upsert = Upsert::new("withheld_sessions.upsert", &WITHHELD_SESSIONS);

pub(super) const STATEMENTS: &[&Sql] = &[&GET, &BY_ROOM, UPSERT.sql()];

pub(super) async fn get(
    account: &StoreLane,
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
    account: &StoreLane,
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
    // The entry holds the raw JSON of an event, which only JSON can decode again.
    let data = codec.seal_json(TABLE, &[&room_id, &session_id], entry)?;
    batch.upsert(&UPSERT, [room_id, session_id], [data]);
    Ok(())
}
