//! Hashes of Olm messages that were processed, so that a replay is recognised.

use matrix_sdk_crypto::olm::OlmMessageHash;
use tokio_postgres::types::Type;

use crate::{
    Error,
    account::{
        Group, OpenAccount,
        cache::{Effect, Place},
        cipher::{Codec, Key},
        write::batch::Batch,
    },
    postgres::statement::{Sql, keys_of},
};

const TABLE: &str = "message_hashes";

static GET: Sql = Sql {
    name: "message_hashes.get",
    template: "SELECT 1 FROM {schema}.message_hashes WHERE account_id = $1 AND hash = $2",
    types: &[Type::INT8, Type::BYTEA],
};

static KEYS: Sql = keys_of!("message_hashes", "hash");

static GROUP: Group = Group { table: TABLE, rows: &GET, keys: Some(&KEYS) };

static INSERT: Sql = Sql {
    name: "message_hashes.insert",
    template: "
INSERT INTO {schema}.message_hashes (account_id, hash)
SELECT $1, u.hash FROM unnest($2) AS u (hash) WHERE {guarded} ON CONFLICT DO NOTHING",
    types: &[Type::INT8, Type::BYTEA_ARRAY],
};

pub(super) const STATEMENTS: &[&Sql] = &[&GET, &KEYS, &INSERT];

pub(super) async fn is_known(account: &OpenAccount, hash: &OlmMessageHash) -> Result<bool, Error> {
    let hash = key(&account.codec, hash);
    let place = Place::new(TABLE, [&hash]);
    Ok(!account.query_unless_absent(&GROUP, &place, &[&hash]).await?.is_empty())
}

pub(super) fn stage(batch: &mut Batch, codec: &Codec, hash: &OlmMessageHash) {
    let hash = key(codec, hash);
    batch.note(Effect::Touch(Place::new(TABLE, [&hash])));
    batch.put(&INSERT, [hash.into()], []);
}

fn key(codec: &Codec, hash: &OlmMessageHash) -> Key {
    // Neither part contains a NUL: the key is base64, and so is the hash.
    codec.key(TABLE, [hash.sender_key.as_bytes(), hash.hash.as_bytes()].join(&0))
}
