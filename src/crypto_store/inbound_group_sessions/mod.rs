//! Inbound Megolm sessions ("room keys"): the keys that decrypt rooms.

mod statements;

use std::sync::Arc;

use matrix_sdk_common::ruma::RoomId;
use matrix_sdk_crypto::{
    olm::{InboundGroupSession, PickledInboundGroupSession, SenderDataType},
    store::types::RoomKeyCounts,
    vodozemac::Curve25519PublicKey,
};
use tokio_postgres::Row;

pub(super) use self::statements::STATEMENTS;
use self::statements::{
    ALL, BY_ROOM, COUNTS, FOR_BACKUP, GROUP, MARK_BACKED_UP, SENDER_GROUP, UPSERT,
};
use super::backups;
use crate::{
    Error,
    account::{
        OpenAccount,
        cache::{Effect, Place, Stored},
        cipher::{Codec, Key, column},
        write::batch::{Batch, Cell},
    },
    postgres::database::Param,
};

pub(super) const TABLE: &str = "megolm_inbound_sessions";

/// The values of `otherwise`: a session that is not backed up must be uploaded (again), one that is
/// in a version nobody names keeps what the table knows of it.
const NOT_BACKED_UP: i32 = 0;
const KEEP: i32 = -1;

pub(super) async fn get(
    account: &OpenAccount,
    room_id: &RoomId,
    session_id: &str,
) -> Result<Option<InboundGroupSession>, Error> {
    let [room_id, session_id] = key(&account.codec, room_id, session_id);
    let place = Place::new(TABLE, [&room_id, &session_id]);
    let rows = account.rows(&GROUP, &place, &[&room_id, &session_id]).await?;
    let Some(row) = rows.values().next() else { return Ok(None) };
    open(&account.codec, [&room_id, &session_id], &row.data, row.flag).map(Some)
}

pub(super) async fn all(account: &OpenAccount) -> Result<Vec<InboundGroupSession>, Error> {
    account.read_all(&ALL, &[], |row| open_row(&account.codec, row)).await
}

pub(super) async fn by_room(
    account: &OpenAccount,
    room_id: &RoomId,
) -> Result<Vec<InboundGroupSession>, Error> {
    let room_id = account.codec.key(TABLE, room_id);
    account.read_all(&BY_ROOM, &[&room_id], |row| open_row(&account.codec, row)).await
}

pub(super) async fn by_sender(
    account: &OpenAccount,
    sender_key: Curve25519PublicKey,
    sender_data_type: SenderDataType,
    after_session_id: Option<String>,
    limit: usize,
) -> Result<Vec<InboundGroupSession>, Error> {
    let codec = &account.codec;
    let sender_key = codec.key(TABLE, sender_key.to_base64());
    let place = sender(&sender_key, sender_data_type);
    let sender_data_type = sender_data_type as i16;
    // Sorts before every id.
    let start = || Codec::Plain.key(TABLE, []);
    let after = after_session_id.map_or_else(start, |id| codec.key(TABLE, id));
    let limit = as_limit(limit);
    let params: [Param<'_>; 4] = [&sender_key, &sender_data_type, &after, &limit];
    let rows = account.query_unless_absent(&SENDER_GROUP, &place, &params).await?;
    open_all(account, rows)
}

pub(super) async fn for_backup(
    account: &OpenAccount,
    version: &str,
    limit: usize,
) -> Result<Vec<InboundGroupSession>, Error> {
    let version = backups::key(&account.codec, version);
    open_all(account, account.query(&FOR_BACKUP, &[&version, &as_limit(limit)]).await?)
}

pub(super) async fn counts(
    account: &OpenAccount,
    version: Option<&str>,
) -> Result<RoomKeyCounts, Error> {
    let version = version.map(|version| backups::key(&account.codec, version));
    let Some(row) = account.query_opt(&COUNTS, &[&version]).await? else {
        return Ok(RoomKeyCounts { total: 0, backed_up: 0 });
    };
    let (total, backed_up): (i64, i64) = (column(&row, 0, TABLE)?, column(&row, 1, TABLE)?);
    Ok(RoomKeyCounts { total: total as usize, backed_up: backed_up as usize })
}

/// Stages a session, which the version given has in its backup.
pub(super) async fn stage(
    batch: &mut Batch,
    codec: &Codec,
    session: &InboundGroupSession,
    version: Option<&str>,
) -> Result<(), Error> {
    let [room_id, session_id] = key(codec, session.room_id(), session.session_id());
    let pickle = session.pickle().await;
    let data = codec.seal_compact(TABLE, &[&room_id, &session_id], &pickle)?;
    let row = Arc::new(Stored { data, flag: version.is_some() });
    let place = Place::new(TABLE, [&room_id, &session_id]);
    let sender_key = codec.key(TABLE, session.sender_key().to_base64());
    let sender_data_type = pickle.sender_data.to_type();
    batch.note(Effect::Touch(sender(&sender_key, sender_data_type)));
    // What "keeps" comes to, only the table knows.
    batch.note(if version.is_none() && session.backed_up() {
        Effect::Touch(place)
    } else {
        Effect::Set(place, session_id.as_bytes().to_vec(), row.clone())
    });
    let version = version.map(|version| backups::stage_version(batch, codec, version));
    let otherwise = if session.backed_up() { KEEP } else { NOT_BACKED_UP };
    batch.put(
        &UPSERT,
        [room_id.into(), session_id.into()],
        [
            sender_key.into(),
            Cell::Int(sender_data_type as i32),
            version.map_or(Cell::Null, Cell::from),
            Cell::Int(otherwise),
            row.into(),
        ],
    );
    Ok(())
}

/// Marks sessions as held by the backup of this version; those that are unknown are passed over.
pub(super) async fn mark_backed_up(
    account: &OpenAccount,
    version: &str,
    ids: &[(&RoomId, &str)],
) -> Result<(), Error> {
    let codec = &account.codec;
    let keys: Vec<[Key; 2]> =
        ids.iter().map(|(room_id, session_id)| key(codec, room_id, session_id)).collect();
    let version = version.to_owned();
    account
        .write(|staging| async move {
            let mut batch = Batch::default();
            for key in keys {
                let version = backups::stage_version(&mut batch, &staging.codec, &version);
                batch.note(Effect::Touch(Place::new(TABLE, [&key[0], &key[1]])));
                batch.put(&MARK_BACKED_UP, key.map(Cell::from), [version.into()]);
            }
            Ok(batch)
        })
        .await
}

fn key(codec: &Codec, room_id: &RoomId, session_id: &str) -> [Key; 2] {
    [codec.key(TABLE, room_id), codec.key(TABLE, session_id)]
}

fn open_all(account: &OpenAccount, rows: Vec<Row>) -> Result<Vec<InboundGroupSession>, Error> {
    rows.iter().map(|row| open_row(&account.codec, row)).collect()
}

fn open_row(codec: &Codec, row: &Row) -> Result<InboundGroupSession, Error> {
    let key = [&Key::of(row, 0, TABLE)?, &Key::of(row, 1, TABLE)?];
    open(codec, key, column(row, 2, TABLE)?, column(row, 3, TABLE)?)
}

fn open(
    codec: &Codec,
    key: [&Key; 2],
    data: &[u8],
    backed_up: bool,
) -> Result<InboundGroupSession, Error> {
    let mut pickle: PickledInboundGroupSession = codec.open_compact(TABLE, &key, data)?;
    // The columns know better: a mark and a reset do not touch the data.
    pickle.backed_up = backed_up;
    InboundGroupSession::from_pickle(pickle)
        .map_err(|_| Error::BadRow { table: TABLE, reason: "the pickle is invalid" })
}

fn sender(sender_key: &Key, sender_data_type: SenderDataType) -> Place {
    let sender_data_type = Key::stored(&(sender_data_type as i16).to_be_bytes());
    Place::new(SENDER_GROUP.table, [sender_key, &sender_data_type])
}

fn as_limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
