//! Inbound Megolm sessions ("room keys"): the keys that decrypt rooms.

use std::sync::Arc;

use matrix_sdk_common::ruma::RoomId;
use matrix_sdk_crypto::{
    olm::{InboundGroupSession, PickledInboundGroupSession, SenderDataType},
    store::types::RoomKeyCounts,
    vodozemac::Curve25519PublicKey,
};
use tokio_postgres::{Row, types::Type};

use super::backups;
use crate::{
    Error,
    account::{Group, OpenAccount},
    batch::{Batch, Cell},
    cache::{Effect, Place, Stored},
    codec::{Codec, Key, column},
    connection::Param,
    statement::{Sql, keys_of},
};

pub(super) const TABLE: &str = "megolm_inbound_sessions";

/// What every read selects: the place of the row, its data, and whether a backup holds it.
macro_rules! select {
    ($condition:literal) => {
        select!("s.room_id, s.session_id", $condition)
    };
    ($keys:literal, $condition:literal) => {
        concat!(
            "SELECT ",
            $keys,
            ", s.data, s.backup_generation > 0 AND EXISTS (",
            "SELECT FROM {schema}.backup_versions v WHERE v.account_id = s.account_id ",
            "AND v.generation = s.backup_generation AND NOT v.retired) ",
            "FROM {schema}.megolm_inbound_sessions s WHERE s.account_id = $1 ",
            $condition
        )
    };
}

static GET: Sql = Sql {
    name: "megolm_inbound_sessions.get",
    template: select!("s.session_id", "AND s.room_id = $2 AND s.session_id = $3"),
    types: &[Type::INT8, Type::BYTEA, Type::BYTEA],
};

static KEYS: Sql = keys_of!("megolm_inbound_sessions", "room_id || session_id");

// In the order of the primary key, from which an import that is repeated does not stray far.
static NEIGHBOURS: Sql = Sql {
    name: "megolm_inbound_sessions.neighbours",
    template: select!(
        "AND (s.room_id, s.session_id) > ($2, $3) ORDER BY s.room_id, s.session_id LIMIT $4"
    ),
    types: &[Type::INT8, Type::BYTEA, Type::BYTEA, Type::INT8],
};

static GROUP: Group =
    Group { table: TABLE, rows: &GET, keys: Some(&KEYS), neighbours: Some(&NEIGHBOURS) };

static ALL: Sql =
    Sql { name: "megolm_inbound_sessions.all", template: select!(""), types: &[Type::INT8] };

static BY_ROOM: Sql = Sql {
    name: "megolm_inbound_sessions.by_room",
    template: select!("AND s.room_id = $2"),
    types: &[Type::INT8, Type::BYTEA],
};

// Session ids are compared as stored bytes: hashes in an encrypted account, so the order means
// nothing, but it is total and stays. The next page begins after a session id, so the last id of a
// page comes with all its rooms, be they more than the limit: a page that ended between them would
// skip the rest.
static BY_SENDER: Sql = Sql {
    name: "megolm_inbound_sessions.by_sender",
    template: select!(
        "AND s.sender_key = $2 AND s.sender_data_type = $3 AND s.session_id > $4
ORDER BY s.session_id FETCH FIRST $5 ROWS WITH TIES"
    ),
    types: &[Type::INT8, Type::BYTEA, Type::INT2, Type::BYTEA, Type::INT8],
};

// Two ranges of the index on the generation, beside the one generation that is up to date. An
// unknown version has generation 0, which is nobody's, so everything needs to be backed up. The
// planner takes a third of the table for either range; ordered, it must take the index all the same,
// and not read the whole table for the few sessions that are new.
static FOR_BACKUP: Sql = Sql {
    name: "megolm_inbound_sessions.for_backup",
    template: concat!(
        "WITH current AS (SELECT coalesce((SELECT generation FROM {schema}.backup_versions ",
        "WHERE account_id = $1 AND version = $2 AND NOT retired), 0) AS generation) (",
        select!(
            "AND s.backup_generation < greatest(1, (SELECT generation FROM current))
ORDER BY s.backup_generation LIMIT $3"
        ),
        ") UNION ALL (",
        select!(
            "AND s.backup_generation > (SELECT generation FROM current) AND s.backup_generation > 0
ORDER BY s.backup_generation LIMIT $3"
        ),
        ") LIMIT $3"
    ),
    types: &[Type::INT8, Type::BYTEA, Type::INT8],
};

static SENDERS: Sql = Sql {
    name: "megolm_inbound_sessions.senders",
    ..keys_of!("megolm_inbound_sessions", "sender_key || int2send(sender_data_type)")
};

// Most new devices have sent nothing yet, and a key query asks for each of them.
static SENDER_GROUP: Group = Group {
    table: "megolm_inbound_sessions, by sender",
    rows: &BY_SENDER,
    keys: Some(&SENDERS),
    neighbours: None,
};

static COUNTS: Sql = Sql {
    name: "megolm_inbound_sessions.counts",
    template: "
SELECT count(*), count(*) FILTER (WHERE s.backup_generation = (
    SELECT generation FROM {schema}.backup_versions
    WHERE account_id = $1 AND version = $2 AND NOT retired))
FROM {schema}.megolm_inbound_sessions s WHERE s.account_id = $1",
    types: &[Type::INT8, Type::BYTEA],
};

// A version makes the session backed up in it; generation -1 keeps what a known session has.
static UPSERT: Sql = Sql {
    name: "megolm_inbound_sessions.upsert",
    template: "
INSERT INTO {schema}.megolm_inbound_sessions AS s
    (account_id, room_id, session_id, sender_key, sender_data_type, backup_generation, data)
SELECT $1, u.room_id, u.session_id, u.sender_key, u.sender_data_type,
       coalesce(v.generation, u.otherwise), u.data
FROM unnest($2, $3, $4, $5, $6, $7, $8)
    AS u (room_id, session_id, sender_key, sender_data_type, version, otherwise, data)
LEFT JOIN {schema}.backup_versions v
    ON v.account_id = $1 AND v.version = u.version AND NOT v.retired
WHERE {guarded}
ON CONFLICT (account_id, room_id, session_id) DO UPDATE SET
    sender_key = excluded.sender_key, sender_data_type = excluded.sender_data_type,
    backup_generation = CASE WHEN excluded.backup_generation < 0 THEN s.backup_generation
                             ELSE excluded.backup_generation END,
    data = excluded.data",
    types: &[
        Type::INT8,
        Type::BYTEA_ARRAY,
        Type::BYTEA_ARRAY,
        Type::BYTEA_ARRAY,
        Type::INT4_ARRAY,
        Type::BYTEA_ARRAY,
        Type::INT4_ARRAY,
        Type::BYTEA_ARRAY,
    ],
};

static MARK_BACKED_UP: Sql = Sql {
    name: "megolm_inbound_sessions.mark_backed_up",
    template: "
UPDATE {schema}.megolm_inbound_sessions s SET backup_generation = v.generation
FROM unnest($2, $3, $4) AS u (room_id, session_id, version)
JOIN {schema}.backup_versions v ON v.account_id = $1 AND v.version = u.version AND NOT v.retired
WHERE {guarded}
  AND s.account_id = $1 AND s.room_id = u.room_id AND s.session_id = u.session_id",
    types: &[Type::INT8, Type::BYTEA_ARRAY, Type::BYTEA_ARRAY, Type::BYTEA_ARRAY],
};

pub(super) const STATEMENTS: &[&Sql] = &[
    &GET,
    &KEYS,
    &NEIGHBOURS,
    &ALL,
    &BY_ROOM,
    &BY_SENDER,
    &SENDERS,
    &FOR_BACKUP,
    &COUNTS,
    &UPSERT,
    &MARK_BACKED_UP,
];

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
