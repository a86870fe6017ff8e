//! The SQL of inbound Megolm sessions.

use tokio_postgres::types::Type;

use crate::postgres::statement::{CacheIndex, ExpectedRows, Prefetched, Sql, Table, Write, bytea};

pub(super) const TABLE: &str = INBOUND_SESSIONS.name;

pub(crate) static INBOUND_SESSIONS: Table = Table {
    name: "megolm_inbound_sessions",
    key: &[bytea("room_id"), bytea("session_id")],
    // The statements below read and write them.
    values: &[],
    cache: Some(&BY_KEY),
};

/// Caches a session's data, and whether a backup holds it.
pub(in crate::crypto_store) static BY_KEY: CacheIndex = CacheIndex {
    table: &INBOUND_SESSIONS,
    group: &GET,
    row: None,
    keys: Some(&KEYS),
    prefetch: Some(Prefetched::SmallTable(&FEW)),
    row_key: 0,
    keeps_rows: true,
};

// A key query looks up the sessions of each new device, and most have sent nothing yet: the key set
// saves a query for each of these.
pub(super) static BY_SENDER: CacheIndex = CacheIndex {
    table: &INBOUND_SESSIONS,
    group: &GET_BY_SENDER,
    row: None,
    keys: Some(&SENDERS),
    prefetch: None,
    row_key: 0,
    keeps_rows: false,
};

/// What every read selects: the row's key, its data, and whether a backup holds it.
macro_rules! select {
    ($condition:literal) => {
        select!("s.room_id, s.session_id, ", $condition)
    };
    ($keys:literal, $condition:literal) => {
        concat!(
            "SELECT ",
            $keys,
            "s.data, s.backup_generation > 0 AND EXISTS (
    SELECT FROM {schema}.backup_versions v
    WHERE v.account_id = $1 AND v.generation = s.backup_generation AND NOT v.retired)
FROM {schema}.megolm_inbound_sessions s
WHERE s.account_id = $1 ",
            $condition
        )
    };
}

static GET: Sql = Sql::new(
    "megolm_inbound_sessions.get",
    select!("", "AND s.room_id = $2 AND s.session_id = $3"),
    &[Type::INT8, Type::BYTEA, Type::BYTEA],
);

static KEYS: Sql = Sql::key_set("megolm_inbound_sessions.keys", &INBOUND_SESSIONS);

pub(super) static ALL: Sql = Sql::new("megolm_inbound_sessions.all", select!(""), &[Type::INT8]);

static FEW: Sql = Sql::new(
    "megolm_inbound_sessions.few",
    concat!(
        "SELECT room_id, session_id, data, is_backed_up
FROM (SELECT *, count(*) OVER () AS number, sum(octet_length(data)) OVER () AS bytes
      FROM (",
        select!("LIMIT $2 + 1"),
        ") few (room_id, session_id, data, is_backed_up)) few
WHERE number <= $2 AND bytes <= $3"
    ),
    &[Type::INT8, Type::INT8, Type::INT8],
);

pub(super) static BY_ROOM: Sql = Sql::new(
    "megolm_inbound_sessions.by_room",
    select!("AND s.room_id = $2"),
    &[Type::INT8, Type::BYTEA],
);

// In the order of the primary key: hashes in an encrypted account, so it means nothing, but it is total
// and stays.
pub(super) static AFTER: Sql = Sql::new(
    "megolm_inbound_sessions.after",
    select!(
        "AND (s.room_id, s.session_id) > ($2, $3)
ORDER BY s.room_id, s.session_id LIMIT $4"
    ),
    &[Type::INT8, Type::BYTEA, Type::BYTEA, Type::INT8],
);

// Session ids are compared as stored bytes: hashes in an encrypted account, so the order has no
// meaning, but it is total and stable. The next page begins after a session id, so a page holds all rooms
// of its last id, even beyond the limit: otherwise the next page would skip the rest.
static GET_BY_SENDER: Sql = Sql::new(
    "megolm_inbound_sessions.by_sender",
    select!(
        "AND s.sender_key = $2 AND s.sender_data_type = $3 AND s.session_id > $4
ORDER BY s.session_id FETCH FIRST $5 ROWS WITH TIES"
    ),
    &[Type::INT8, Type::BYTEA, Type::INT2, Type::BYTEA, Type::INT8],
);

// Two ranges of the index on the generation: below and above the generation that is up to date. An
// unknown version has generation 0, which no session has, so everything needs to be backed up. The
// planner estimates a third of the table for either range; ORDER BY makes it use the index all the
// same, instead of reading the whole table for a few new sessions.
pub(super) static FOR_BACKUP: Sql = Sql::new(
    "megolm_inbound_sessions.for_backup",
    concat!(
        "WITH current AS (
    SELECT coalesce((SELECT generation FROM {schema}.backup_versions
                     WHERE account_id = $1 AND version = $2 AND NOT retired), 0) AS generation)
(",
        select!(
            "AND s.backup_generation < greatest(1, (SELECT generation FROM current))
ORDER BY s.backup_generation LIMIT $3"
        ),
        ")
UNION ALL
(",
        select!(
            "AND s.backup_generation > (SELECT generation FROM current) AND s.backup_generation > 0
ORDER BY s.backup_generation LIMIT $3"
        ),
        ")
LIMIT $3"
    ),
    &[Type::INT8, Type::BYTEA, Type::INT8],
);

static SENDERS: Sql = Sql::new(
    "megolm_inbound_sessions.senders",
    "
SELECT string_agg(substring(sha256(k.key) FOR 8), ''::bytea)
FROM (SELECT sender_key || int8send(sender_data_type) AS key
      FROM {schema}.megolm_inbound_sessions WHERE account_id = $1 LIMIT $2) k",
    &[Type::INT8, Type::INT8],
);

pub(super) static COUNTS: Sql = Sql::new(
    "megolm_inbound_sessions.counts",
    "
SELECT count(*), count(*) FILTER (WHERE s.backup_generation = (
    SELECT generation FROM {schema}.backup_versions
    WHERE account_id = $1 AND version = $2 AND NOT retired))
FROM {schema}.megolm_inbound_sessions s WHERE s.account_id = $1",
    &[Type::INT8, Type::BYTEA],
);

// With a version, the session is backed up in it; generation -1 keeps a known session's generation.
pub(super) static UPSERT: Write = Write {
    table: &INBOUND_SESSIONS,
    expected_rows: ExpectedRows::Each,
    sql: Sql::new(
        "megolm_inbound_sessions.upsert",
        "
INSERT INTO {schema}.megolm_inbound_sessions AS s
    (account_id, room_id, session_id, sender_key, sender_data_type, backup_generation, data)
SELECT o.account_id, u.room_id, u.session_id, u.sender_key, u.sender_data_type,
       coalesce(v.generation, u.otherwise), u.data
FROM {schema}.account_owners o
CROSS JOIN unnest($2, $3, $4, $5, $6, $7, $8)
    AS u (room_id, session_id, sender_key, sender_data_type, version, otherwise, data)
LEFT JOIN {schema}.backup_versions v
    ON v.account_id = $1 AND v.version = u.version AND NOT v.retired
WHERE o.account_id = $1 AND {guarded}
ON CONFLICT (account_id, room_id, session_id) DO UPDATE SET
    sender_key = excluded.sender_key, sender_data_type = excluded.sender_data_type,
    backup_generation = CASE WHEN excluded.backup_generation < 0 THEN s.backup_generation
                             ELSE excluded.backup_generation END,
    data = excluded.data",
        &[
            Type::INT8,
            Type::BYTEA_ARRAY,
            Type::BYTEA_ARRAY,
            Type::BYTEA_ARRAY,
            Type::INT4_ARRAY,
            Type::BYTEA_ARRAY,
            Type::INT4_ARRAY,
            Type::BYTEA_ARRAY,
        ],
    ),
};

// Unknown sessions are skipped.
pub(super) static MARK_BACKED_UP: Write = Write {
    table: &INBOUND_SESSIONS,
    expected_rows: ExpectedRows::Any,
    sql: Sql::new(
        "megolm_inbound_sessions.mark_backed_up",
        "
UPDATE {schema}.megolm_inbound_sessions s SET backup_generation = v.generation
FROM unnest($2, $3, $4) AS u (room_id, session_id, version)
JOIN {schema}.backup_versions v ON v.account_id = $1 AND v.version = u.version AND NOT v.retired
WHERE {guarded}
  AND s.account_id = $1 AND s.room_id = u.room_id AND s.session_id = u.session_id",
        &[Type::INT8, Type::BYTEA_ARRAY, Type::BYTEA_ARRAY, Type::BYTEA_ARRAY],
    ),
};

pub(in crate::crypto_store) const STATEMENTS: &[&Sql] = &[
    &GET,
    &KEYS,
    &ALL,
    &FEW,
    &AFTER,
    &BY_ROOM,
    &GET_BY_SENDER,
    &SENDERS,
    &FOR_BACKUP,
    &COUNTS,
    &UPSERT.sql,
    &MARK_BACKED_UP.sql,
];
