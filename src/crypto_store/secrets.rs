//! Secrets that other devices of ours sent, until the application takes them.

use matrix_sdk_common::ruma::events::secret::request::SecretName;
use matrix_sdk_crypto::store::types::SecretsInboxItem;
use tokio_postgres::types::Type;
use zeroize::Zeroizing;

use crate::{
    Error,
    account::{
        OpenAccount,
        cipher::{Codec, Key, column},
        write::batch::Batch,
    },
    postgres::statement::{Sql, delete_by_key},
};

const TABLE: &str = "secrets_inbox";

static BY_NAME: Sql = Sql {
    name: "secrets_inbox.by_name",
    template: "
SELECT secret_hash, data FROM {schema}.secrets_inbox WHERE account_id = $1 AND secret_name = $2",
    types: &[Type::INT8, Type::BYTEA],
};

// Keyed by a hash of the secret: the same one twice is one entry, however it is sealed.
static INSERT: Sql = Sql {
    name: "secrets_inbox.insert",
    template: "
INSERT INTO {schema}.secrets_inbox (account_id, secret_name, secret_hash, data)
SELECT $1, u.secret_name, u.secret_hash, u.data
FROM unnest($2, $3, $4) AS u (secret_name, secret_hash, data)
WHERE {guarded}
ON CONFLICT (account_id, secret_name, secret_hash) DO NOTHING",
    types: &[Type::INT8, Type::BYTEA_ARRAY, Type::BYTEA_ARRAY, Type::BYTEA_ARRAY],
};

static DELETE: Sql = delete_by_key!("secrets_inbox", "secret_name");

pub(super) const STATEMENTS: &[&Sql] = &[&BY_NAME, &INSERT, &DELETE];

pub(super) async fn by_name(
    account: &OpenAccount,
    name: &SecretName,
) -> Result<Vec<Zeroizing<String>>, Error> {
    let name = account.codec.key(TABLE, name.as_str());
    let rows = account.query(&BY_NAME, &[&name]).await?;
    let secrets = rows.iter().map(|row| {
        let hash = Key::of(row, 0, TABLE)?;
        account.codec.open_json(TABLE, &[&name, &hash], column(row, 1, TABLE)?)
    });
    secrets.map(|secret| secret.map(Zeroizing::new)).collect()
}

pub(super) async fn delete(account: &OpenAccount, name: &SecretName) -> Result<(), Error> {
    let name = account.codec.key(TABLE, name.as_str());
    account.apply(&DELETE, [name.into()], None).await
}

pub(super) fn stage(
    batch: &mut Batch,
    codec: &Codec,
    item: &SecretsInboxItem,
) -> Result<(), Error> {
    let SecretsInboxItem { secret_name, secret } = item;
    let name = codec.key(TABLE, secret_name.as_str());
    let hash = codec.fingerprint(TABLE, secret.as_bytes());
    let data = codec.seal_json(TABLE, &[&name, &hash], &secret.as_str())?;
    batch.put(&INSERT, [name.into(), hash.into()], [data.into()]);
    Ok(())
}
