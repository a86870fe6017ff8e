//! Outbound Megolm sessions, which encrypt: one for each room.

mod reserved;
mod shared;

use matrix_sdk_common::ruma::RoomId;
use matrix_sdk_crypto::olm::{
    OutboundGroupSession, PickledOutboundGroupSession, StaticAccountData,
};

pub(super) use self::{reserved::Marks, shared::SharedSessions};
use super::deferred::Saves;
use crate::{
    Error,
    account::{
        StoreLane,
        cipher::{Codec, column},
        write::batch::Batch,
    },
    postgres::statement::{Sql, Table, Upsert, bytea},
};

const TABLE: &str = OUTBOUND_SESSIONS.name;

pub(crate) static OUTBOUND_SESSIONS: Table = Table {
    name: "megolm_outbound_sessions",
    key: &[bytea("room_id")],
    values: &[bytea("data")],
    cache: None,
};

static GET: Sql = Sql::get("megolm_outbound_sessions.get", &OUTBOUND_SESSIONS);
static UPSERT: Upsert = Upsert::new("megolm_outbound_sessions.upsert", &OUTBOUND_SESSIONS);

pub(super) const STATEMENTS: &[&Sql] = &[&GET, UPSERT.sql()];

pub(super) async fn get(
    account: &StoreLane,
    saves: &Saves,
    own: Option<StaticAccountData>,
    room_id: &RoomId,
) -> Result<Option<OutboundGroupSession>, Error> {
    let room_id = account.codec.key(TABLE, room_id);
    let Some(row) = account.query_opt(&GET, &[&room_id]).await? else { return Ok(None) };
    let own = own.ok_or(Error::AccountUnset)?;
    // The pickle holds raw JSON of to-device requests, which only JSON can decode again.
    let pickle: PickledOutboundGroupSession =
        account.codec.open_json(TABLE, &[&room_id], column(&row, 0, TABLE)?)?;
    let read = OutboundGroupSession::from_pickle(own.device_id, own.identity_keys, pickle)
        .map_err(|_| Error::CorruptRow { table: TABLE, reason: "the pickle is invalid" })?;
    // A reader encrypts nothing, and the owner changes the row.
    if account.is_read_only() {
        return Ok(Some(read));
    }
    // In an opening that has ended or failed, no message can be saved, and nothing is shared.
    let shared = saves.shared_sessions(|sessions| sessions.share(read.clone()));
    Ok(Some(shared.unwrap_or(read)))
}

pub(super) async fn stage(
    batch: &mut Batch,
    codec: &Codec,
    saves: &Saves,
    session: &OutboundGroupSession,
) -> Result<(), Error> {
    saves.shared_sessions(|sessions| sessions.put(session));
    let Some(pickle) = reserved::stage(saves, batch, session).await? else { return Ok(()) };
    let room_id = codec.key(TABLE, session.room_id());
    let data = codec.seal_json(TABLE, &[&room_id], &pickle)?;
    batch.upsert(&UPSERT, [room_id], [data]);
    Ok(())
}
