//! Backup versions as small integers ("generations"), so that a reset touches no session.

use tokio_postgres::types::Type;

use super::inbound_group_sessions;
use crate::{
    Error,
    account::{
        OpenAccount,
        cache::Effect,
        cipher::{Codec, Key},
        write::batch::Batch,
    },
    postgres::statement::Sql,
};

const TABLE: &str = "backup_versions";

// A generation is never used twice, retired or not: an old session must not count for a new version.
static INSERT: Sql = Sql {
    name: "backup_versions.insert",
    template: "
INSERT INTO {schema}.backup_versions (account_id, generation, version)
SELECT $1, (SELECT coalesce(max(generation), 0) FROM {schema}.backup_versions WHERE account_id = $1)
           + row_number() OVER (), u.version
FROM unnest($2) AS u (version)
WHERE {guarded} AND NOT EXISTS (SELECT FROM {schema}.backup_versions v
                  WHERE v.account_id = $1 AND v.version = u.version AND NOT v.retired)",
    types: &[Type::INT8, Type::BYTEA_ARRAY],
};

static RETIRE: Sql = Sql {
    name: "backup_versions.retire",
    template: "
UPDATE {schema}.backup_versions SET retired = true
WHERE account_id = $1 AND {guarded} AND NOT retired",
    types: &[Type::INT8],
};

pub(super) const STATEMENTS: &[&Sql] = &[&INSERT, &RETIRE];

pub(super) fn key(codec: &Codec, version: &str) -> Key {
    codec.key(TABLE, version)
}

/// Stages the version, ahead of the sessions that name it, and returns its key.
pub(super) fn stage_version(batch: &mut Batch, codec: &Codec, version: &str) -> Key {
    let key = key(codec, version);
    batch.put(&INSERT, [key.clone().into()], []);
    key
}

/// Makes all sessions need a backup, whatever their number.
pub(super) async fn reset(account: &OpenAccount) -> Result<(), Error> {
    account.apply(&RETIRE, [], Some(Effect::TouchAll(inbound_group_sessions::TABLE))).await
}
