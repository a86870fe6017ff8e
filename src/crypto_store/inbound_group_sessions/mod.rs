//! Inbound Megolm sessions ("room keys"), which decrypt the messages of rooms.

mod compact;
mod statements;

use matrix_sdk_common::ruma::RoomId;
use matrix_sdk_crypto::{
    olm::{InboundGroupSession, PickledInboundGroupSession, SenderDataType},
    store::types::RoomKeyCounts,
    vodozemac::Curve25519PublicKey,
};
use tokio_postgres::Row;

pub(crate) use self::statements::INBOUND_SESSIONS;
use self::statements::{
    AFTER, ALL, BY_ROOM, BY_SENDER, COUNTS, FOR_BACKUP, MARK_BACKED_UP, TABLE, UPSERT,
};
pub(super) use self::statements::{BY_KEY, STATEMENTS};
use super::{backups, inspect::same};
use crate::{
    Error,
    account::{
        StoreLane,
        cache::{CacheKey, CacheUpdate},
        cipher::{Codec, Key, column},
        write::batch::Batch,
    },
    postgres::cell::{Cell, Cells},
};

/// Backup generation when no version is given: the session needs a backup.
const NOT_BACKED_UP: i64 = 0;
/// Backup generation when no version is given: the stored generation stays.
const KEEP_STORED: i64 = -1;

pub(super) async fn get(
    account: &StoreLane,
    room_id: &RoomId,
    session_id: &str,
) -> Result<Option<InboundGroupSession>, Error> {
    let [room_id, session_id] = key(&account.codec, room_id, session_id);
    let row = account.row(&BY_KEY, [&room_id, &session_id]).await?;
    let Some(row) = row else { return Ok(None) };
    let (data, backed_up) = (row.bytes(0, TABLE)?, row.bool(1, TABLE)?);
    open(&account.codec, [&room_id, &session_id], data, backed_up).map(Some)
}

pub(super) async fn all(account: &StoreLane) -> Result<Vec<InboundGroupSession>, Error> {
    account.read_all(&ALL, &[], |row| open_row(&account.codec, row)).await
}

/// The next sessions behind the one given, in an order that stays.
pub(super) async fn after(
    account: &StoreLane,
    session: Option<(&RoomId, &str)>,
    limit: usize,
) -> Result<Vec<InboundGroupSession>, Error> {
    // Sorts before every id.
    let start = || [Codec::Plain.key(TABLE, []), Codec::Plain.key(TABLE, [])];
    let [room_id, session_id] = session
        .map_or_else(start, |(room_id, session_id)| key(&account.codec, room_id, session_id));
    let rows = account.query(&AFTER, &[&room_id, &session_id, &as_limit(limit)]).await?;
    open_all(account, rows)
}

pub(super) async fn by_room(
    account: &StoreLane,
    room_id: &RoomId,
) -> Result<Vec<InboundGroupSession>, Error> {
    let room_id = account.codec.key(TABLE, room_id);
    account.read_all(&BY_ROOM, &[&room_id], |row| open_row(&account.codec, row)).await
}

pub(super) async fn by_sender(
    account: &StoreLane,
    sender_key: Curve25519PublicKey,
    sender_data_type: SenderDataType,
    after_session_id: Option<String>,
    limit: usize,
) -> Result<Vec<InboundGroupSession>, Error> {
    let codec = &account.codec;
    let sender_key = codec.key(TABLE, sender_key.to_base64());
    // Sorts before every id.
    let start = || Codec::Plain.key(TABLE, []);
    let after = after_session_id.map_or_else(start, |id| codec.key(TABLE, id));
    let sender = sender(&sender_key, sender_data_type);
    let rows = account.query_unless_absent(&BY_SENDER, sender, &[&after, &as_limit(limit)]).await?;
    open_all(account, rows)
}

pub(super) async fn for_backup(
    account: &StoreLane,
    version: &str,
    limit: usize,
) -> Result<Vec<InboundGroupSession>, Error> {
    let version = backups::key(&account.codec, version);
    open_all(account, account.query(&FOR_BACKUP, &[&version, &as_limit(limit)]).await?)
}

pub(super) async fn counts(
    account: &StoreLane,
    version: Option<&str>,
) -> Result<RoomKeyCounts, Error> {
    let version = version.map(|version| backups::key(&account.codec, version));
    let Some(row) = account.query_opt(&COUNTS, &[&version]).await? else {
        return Ok(RoomKeyCounts { total: 0, backed_up: 0 });
    };
    let (total, backed_up): (i64, i64) = (column(&row, 0, TABLE)?, column(&row, 1, TABLE)?);
    Ok(RoomKeyCounts { total: total as usize, backed_up: backed_up as usize })
}

/// Stages a session; `version` is the backup version that holds it, if any.
pub(super) async fn stage(
    batch: &mut Batch,
    codec: &Codec,
    session: &InboundGroupSession,
    version: Option<&str>,
) -> Result<(), Error> {
    let [room_id, session_id] = key(codec, session.room_id(), session.session_id());
    let pickle = session.pickle().await;
    let bytes = compact::encode(&pickle).ok_or(Error::Encode { table: TABLE })?;
    let data = Cell::from(codec.seal_bytes(TABLE, &[&room_id, &session_id], bytes)?);
    let sender_key = codec.key(TABLE, session.sender_key().to_base64());
    let sender_data_type = pickle.sender_data.to_type();

    let key = Cells::from([&room_id, &session_id]);
    let group = CacheKey::new(&BY_KEY, key.clone());
    let update = if version.is_none() && session.backed_up() {
        // Whether a backup holds it depends on the stored row.
        CacheUpdate::InvalidateGroup(group)
    } else {
        let row = [data.clone(), Cell::Bool(version.is_some())];
        CacheUpdate::ReplaceGroup(group, Cells::default(), row.into())
    };
    let sender = CacheKey::new(&BY_SENDER, sender(&sender_key, sender_data_type));

    let version = version.map(|version| backups::stage_version(batch, codec, version));
    let otherwise = if session.backed_up() { KEEP_STORED } else { NOT_BACKED_UP };
    let values = [
        sender_key.into(),
        Cell::Int(sender_data_type as i64),
        version.into(),
        Cell::Int(otherwise),
        data,
    ];
    batch.write(&UPSERT, key, values, [update, CacheUpdate::InvalidateGroup(sender)]);
    Ok(())
}

/// Marks sessions as held by the backup of this version; unknown sessions are skipped.
pub(super) async fn mark_backed_up(
    account: &StoreLane,
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
                let key = Cells::from(key);
                let update = CacheUpdate::InvalidateGroup(CacheKey::new(&BY_KEY, key.clone()));
                batch.write(&MARK_BACKED_UP, key, [version], [update]);
            }
            Ok(batch)
        })
        .await
}

fn key(codec: &Codec, room_id: &RoomId, session_id: &str) -> [Key; 2] {
    [codec.key(TABLE, room_id), codec.key(TABLE, session_id)]
}

fn open_all(account: &StoreLane, rows: Vec<Row>) -> Result<Vec<InboundGroupSession>, Error> {
    rows.iter().map(|row| open_row(&account.codec, row)).collect()
}

fn open_row(codec: &Codec, row: &Row) -> Result<InboundGroupSession, Error> {
    let key = [&Key::of(row, 0, TABLE)?, &Key::of(row, 1, TABLE)?];
    open(codec, key, column(row, 2, TABLE)?, column(row, 3, TABLE)?)
}

/// Opens and decodes a row as [`inspect`](super::inspect) reads it, and compares its
/// other columns with the value.
pub(super) fn check(codec: &Codec, row: &Row) -> Result<(), Error> {
    let session = open_row(codec, row)?;
    let derived = key(codec, session.room_id(), session.session_id());
    same(&derived[0], &Key::of(row, 0, TABLE)?, TABLE)?;
    same(&derived[1], &Key::of(row, 1, TABLE)?, TABLE)?;
    let sender_key = codec.key(TABLE, session.sender_key().to_base64());
    same(&sender_key, &Key::of(row, 4, TABLE)?, TABLE)?;
    match column::<i16>(row, 5, TABLE)? == session.sender_data_type() as i16 {
        true => Ok(()),
        false => {
            let reason = "the column sender_data_type is not the value's";
            Err(Error::CorruptRow { table: TABLE, reason })
        }
    }
}

fn open(
    codec: &Codec,
    key: [&Key; 2],
    data: &[u8],
    backed_up: bool,
) -> Result<InboundGroupSession, Error> {
    let bytes = codec.open_bytes(TABLE, &key, data)?;
    let mut pickle: PickledInboundGroupSession =
        compact::decode(&bytes).map_err(|reason| Error::CorruptRow { table: TABLE, reason })?;
    // The columns decide: marking and resetting do not rewrite the data.
    pickle.backed_up = backed_up;
    InboundGroupSession::from_pickle(pickle)
        .map_err(|_| Error::CorruptRow { table: TABLE, reason: "the pickle is invalid" })
}

fn sender(sender_key: &Key, sender_data_type: SenderDataType) -> Cells {
    [sender_key.into(), Cell::Int(sender_data_type as i64)].into()
}

fn as_limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
