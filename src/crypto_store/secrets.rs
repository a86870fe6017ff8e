//! Secrets received from the user's other devices, until the application fetches them.

use matrix_sdk_common::ruma::events::secret::request::SecretName;
use matrix_sdk_crypto::store::types::SecretsInboxItem;
use tokio_postgres::types::Type;
use zeroize::Zeroizing;

use crate::{
    Error,
    account::{
        StoreLane,
        cipher::{Codec, Key, column},
        write::batch::Batch,
    },
    postgres::statement::{ExpectedRows, Sql, Table, Upsert, Write, bytea},
};

const TABLE: &str = SECRETS_INBOX.name;

// Keyed by a hash of the secret: the same secret twice is one entry, however it is sealed.
pub(super) static SECRETS_INBOX: Table = Table {
    name: "secrets_inbox",
    key: &[bytea("secret_name"), bytea("secret_hash")],
    values: &[bytea("data")],
    cache: None,
};

static BY_NAME: Sql = Sql::new(
    "secrets_inbox.by_name",
    "
SELECT secret_hash, data FROM {schema}.secrets_inbox WHERE account_id = $1 AND secret_name = $2",
    &[Type::INT8, Type::BYTEA],
);

static UPSERT: Upsert = Upsert::new("secrets_inbox.upsert", &SECRETS_INBOX);

static DELETE: Write = Write {
    table: &SECRETS_INBOX,
    expected_rows: ExpectedRows::Any,
    sql: Sql::new(
        "secrets_inbox.delete",
        "
DELETE FROM {schema}.secrets_inbox
WHERE account_id = $1 AND {guarded} AND secret_name = ANY ($2)",
        &[Type::INT8, Type::BYTEA_ARRAY],
    ),
};

pub(super) const STATEMENTS: &[&Sql] = &[&BY_NAME, UPSERT.sql(), &DELETE.sql];

pub(super) async fn by_name(
    account: &StoreLane,
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

pub(super) async fn delete(account: &StoreLane, name: &SecretName) -> Result<(), Error> {
    let name = account.codec.key(TABLE, name.as_str());
    account.apply(&DELETE, [name], []).await
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
    batch.upsert(&UPSERT, [name, hash], [data]);
    Ok(())
}
