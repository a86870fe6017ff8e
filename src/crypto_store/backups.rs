//! Backup versions as small integers ("generations"), so that a reset touches no session.

use tokio_postgres::types::Type;

use super::inbound_group_sessions;
use crate::{
    Error,
    account::{
        StoreLane,
        cache::CacheUpdate,
        cipher::{Codec, Key},
        write::batch::Batch,
    },
    postgres::{
        cell::Cells,
        statement::{ExpectedRows, Sql, Table, Write, bytea},
    },
};

const TABLE: &str = BACKUP_VERSIONS.name;

pub(super) static BACKUP_VERSIONS: Table =
    Table { name: "backup_versions", key: &[bytea("version")], values: &[], cache: None };

// A generation is never used twice, retired or not: an old session must not count for a new version.
// A version that exists is not inserted again.
static INSERT: Write = Write {
    table: &BACKUP_VERSIONS,
    expected_rows: ExpectedRows::Any,
    sql: Sql::new(
        "backup_versions.insert",
        "
INSERT INTO {schema}.backup_versions (account_id, generation, version)
SELECT o.account_id,
       (SELECT coalesce(max(generation), 0) FROM {schema}.backup_versions WHERE account_id = $1)
           + row_number() OVER (), u.version
FROM {schema}.account_owners o CROSS JOIN unnest($2) AS u (version)
WHERE o.account_id = $1 AND {guarded}
  AND NOT EXISTS (SELECT FROM {schema}.backup_versions v
                  WHERE v.account_id = $1 AND v.version = u.version AND NOT v.retired)",
        &[Type::INT8, Type::BYTEA_ARRAY],
    ),
};

static RETIRE: Write = Write {
    table: &BACKUP_VERSIONS,
    expected_rows: ExpectedRows::Any,
    sql: Sql::new(
        "backup_versions.retire",
        "
UPDATE {schema}.backup_versions SET retired = true
WHERE account_id = $1 AND {guarded} AND NOT retired",
        &[Type::INT8],
    ),
};

pub(super) const STATEMENTS: &[&Sql] = &[&INSERT.sql, &RETIRE.sql];

pub(super) fn key(codec: &Codec, version: &str) -> Key {
    codec.key(TABLE, version)
}

/// Stages the version, ahead of the sessions that name it, and returns its key.
pub(super) fn stage_version(batch: &mut Batch, codec: &Codec, version: &str) -> Key {
    let key = key(codec, version);
    // No cached row depends on a new version.
    batch.write(&INSERT, [&key], Cells::default(), []);
    key
}

/// Makes all sessions need a backup, whatever their number.
pub(super) async fn reset(account: &StoreLane) -> Result<(), Error> {
    // Cached sessions include whether a backup holds them.
    let update = CacheUpdate::InvalidateTable(&inbound_group_sessions::BY_KEY);
    account.apply(&RETIRE, Cells::default(), [update]).await
}
