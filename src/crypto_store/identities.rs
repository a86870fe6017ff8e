//! Cross-signing identities of users, their public part.

use matrix_sdk_common::ruma::UserId;
use matrix_sdk_crypto::UserIdentityData;
use tokio_postgres::types::Type;

use crate::{
    Error,
    account::{
        Group, OpenAccount,
        cache::{Effect, Place, Stored},
        cipher::Codec,
        write::batch::Batch,
    },
    postgres::statement::{Sql, keys_of, upsert_by_key},
};

const TABLE: &str = "user_identities";

static GET: Sql = Sql {
    name: "user_identities.get",
    template: "
SELECT user_id, data, false FROM {schema}.user_identities WHERE account_id = $1 AND user_id = $2",
    types: &[Type::INT8, Type::BYTEA],
};
static KEYS: Sql = keys_of!("user_identities", "user_id");
static GROUP: Group = Group { table: TABLE, rows: &GET, keys: Some(&KEYS) };
static UPSERT: Sql = upsert_by_key!("user_identities", "user_id");

pub(super) const STATEMENTS: &[&Sql] = &[&GET, &KEYS, &UPSERT];

pub(super) async fn get(
    account: &OpenAccount,
    user_id: &UserId,
) -> Result<Option<UserIdentityData>, Error> {
    let user_id = account.codec.key(TABLE, user_id);
    let rows = account.rows(&GROUP, &Place::new(TABLE, [&user_id]), &[&user_id]).await?;
    let row = rows.values().next();
    row.map(|row| account.codec.open(TABLE, &[&user_id], &row.data)).transpose()
}

pub(super) fn stage(
    batch: &mut Batch,
    codec: &Codec,
    identity: &UserIdentityData,
) -> Result<(), Error> {
    let user_id = codec.key(TABLE, identity.user_id());
    let row = Stored::new(codec.seal(TABLE, &[&user_id], identity)?);
    let place = Place::new(TABLE, [&user_id]);
    batch.note(Effect::Set(place, user_id.as_bytes().to_vec(), row.clone()));
    batch.put(&UPSERT, [user_id.into()], [row.into()]);
    Ok(())
}
