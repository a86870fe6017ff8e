//! Hashes of Olm messages that were processed, so that a replay is recognised.

use matrix_sdk_crypto::olm::OlmMessageHash;

use crate::{
    Error,
    account::{
        StoreLane,
        cipher::{Codec, Key},
        write::batch::Batch,
    },
    postgres::{
        cell::Cells,
        statement::{CacheIndex, Sql, Table, Upsert, bytea},
    },
};

const TABLE: &str = MESSAGE_HASHES.name;

pub(crate) static MESSAGE_HASHES: Table =
    Table { name: "message_hashes", key: &[bytea("hash")], values: &[], cache: Some(&BY_HASH) };

// Only the key set is cached: the rows have no other columns.
static BY_HASH: CacheIndex = CacheIndex {
    table: &MESSAGE_HASHES,
    group: &GET,
    row: None,
    keys: Some(&KEYS),
    prefetch: None,
    row_key: 0,
    keeps_rows: false,
};

static GET: Sql = Sql::get("message_hashes.get", &MESSAGE_HASHES);
static KEYS: Sql = Sql::key_set("message_hashes.keys", &MESSAGE_HASHES);
static INSERT: Upsert = Upsert::new("message_hashes.insert", &MESSAGE_HASHES);

pub(super) const STATEMENTS: &[&Sql] = &[&GET, &KEYS, INSERT.sql()];

pub(super) async fn is_known(account: &StoreLane, hash: &OlmMessageHash) -> Result<bool, Error> {
    let hash = key(&account.codec, hash);
    Ok(!account.query_unless_absent(&BY_HASH, [&hash], &[]).await?.is_empty())
}

pub(super) fn stage(batch: &mut Batch, codec: &Codec, hash: &OlmMessageHash) {
    batch.upsert(&INSERT, [key(codec, hash)], Cells::default());
}

fn key(codec: &Codec, hash: &OlmMessageHash) -> Key {
    // Neither part contains a NUL: the key is base64, and so is the hash.
    codec.key(TABLE, [hash.sender_key.as_bytes(), hash.hash.as_bytes()].join(&0))
}
