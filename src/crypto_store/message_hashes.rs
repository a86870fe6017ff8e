//! Hashes of Olm messages that were processed, so that a replay is recognised.

use matrix_sdk_crypto::olm::OlmMessageHash;
use tokio_postgres::types::Type;

use crate::{
    Error,
    account::OpenAccount,
    batch::Batch,
    codec::{Codec, Key},
    statement::Sql,
};

const TABLE: &str = "message_hashes";

static GET: Sql = Sql {
    name: "message_hashes.get",
    template: "SELECT 1 FROM {schema}.message_hashes WHERE account_id = $1 AND hash = $2",
    types: &[Type::INT8, Type::BYTEA],
};

static INSERT: Sql = Sql {
    name: "message_hashes.insert",
    template: "
INSERT INTO {schema}.message_hashes (account_id, hash)
SELECT $1, u.hash FROM unnest($2) AS u (hash) WHERE {guarded} ON CONFLICT DO NOTHING",
    types: &[Type::INT8, Type::BYTEA_ARRAY],
};

pub(super) const STATEMENTS: &[&Sql] = &[&GET, &INSERT];

pub(super) async fn is_known(account: &OpenAccount, hash: &OlmMessageHash) -> Result<bool, Error> {
    Ok(account.query_opt(&GET, &[&key(&account.codec, hash)]).await?.is_some())
}

pub(super) fn stage(batch: &mut Batch, codec: &Codec, hash: &OlmMessageHash) {
    batch.put(&INSERT, [key(codec, hash).into()], []);
}

fn key(codec: &Codec, hash: &OlmMessageHash) -> Key {
    // Neither part contains a NUL: the key is base64, and so is the hash.
    codec.key(TABLE, [hash.sender_key.as_bytes(), hash.hash.as_bytes()].join(&0))
}
