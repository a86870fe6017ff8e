//! The SQL of inbound Megolm sessions.

use tokio_postgres::types::Type;

use super::TABLE;
use crate::{
    account::Group,
    postgres::statement::{Sql, keys_of},
};

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

pub(super) static GROUP: Group = Group { table: TABLE, rows: &GET, keys: Some(&KEYS) };

pub(super) static ALL: Sql =
    Sql { name: "megolm_inbound_sessions.all", template: select!(""), types: &[Type::INT8] };

pub(super) static BY_ROOM: Sql = Sql {
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
pub(super) static FOR_BACKUP: Sql = Sql {
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
pub(super) static SENDER_GROUP: Group =
    Group { table: "megolm_inbound_sessions, by sender", rows: &BY_SENDER, keys: Some(&SENDERS) };

pub(super) static COUNTS: Sql = Sql {
    name: "megolm_inbound_sessions.counts",
    template: "
SELECT count(*), count(*) FILTER (WHERE s.backup_generation = (
    SELECT generation FROM {schema}.backup_versions
    WHERE account_id = $1 AND version = $2 AND NOT retired))
FROM {schema}.megolm_inbound_sessions s WHERE s.account_id = $1",
    types: &[Type::INT8, Type::BYTEA],
};

// A version makes the session backed up in it; generation -1 keeps what a known session has.
pub(super) static UPSERT: Sql = Sql {
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

pub(super) static MARK_BACKED_UP: Sql = Sql {
    name: "megolm_inbound_sessions.mark_backed_up",
    template: "
UPDATE {schema}.megolm_inbound_sessions s SET backup_generation = v.generation
FROM unnest($2, $3, $4) AS u (room_id, session_id, version)
JOIN {schema}.backup_versions v ON v.account_id = $1 AND v.version = u.version AND NOT v.retired
WHERE {guarded}
  AND s.account_id = $1 AND s.room_id = u.room_id AND s.session_id = u.session_id",
    types: &[Type::INT8, Type::BYTEA_ARRAY, Type::BYTEA_ARRAY, Type::BYTEA_ARRAY],
};

pub(in crate::crypto_store) const STATEMENTS: &[&Sql] = &[
    &GET,
    &KEYS,
    &ALL,
    &BY_ROOM,
    &BY_SENDER,
    &SENDERS,
    &FOR_BACKUP,
    &COUNTS,
    &UPSERT,
    &MARK_BACKED_UP,
];
