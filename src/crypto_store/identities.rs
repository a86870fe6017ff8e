//! Cross-signing identities of users, their public part.

use matrix_sdk_common::ruma::UserId;
use matrix_sdk_crypto::UserIdentityData;
use tokio_postgres::types::Type;

use crate::{
    Error,
    account::OpenAccount,
    batch::Batch,
    codec::{Codec, column},
    statement::{Sql, get_by_key, upsert_by_key},
};

const TABLE: &str = "user_identities";

static GET: Sql = get_by_key!("user_identities", "user_id");
static UPSERT: Sql = upsert_by_key!("user_identities", "user_id");

pub(super) const STATEMENTS: &[&Sql] = &[&GET, &UPSERT];

pub(super) async fn get(
    account: &OpenAccount,
    user_id: &UserId,
) -> Result<Option<UserIdentityData>, Error> {
    let user_id = account.codec.key(TABLE, user_id);
    let Some(row) = account.query_opt(&GET, &[&user_id]).await? else { return Ok(None) };
    account.codec.open(TABLE, &[&user_id], column(&row, 0, TABLE)?).map(Some)
}

pub(super) fn stage(
    batch: &mut Batch,
    codec: &Codec,
    identity: &UserIdentityData,
) -> Result<(), Error> {
    let user_id = codec.key(TABLE, identity.user_id());
    let data = codec.seal(TABLE, &[&user_id], identity)?;
    batch.put(&UPSERT, [user_id.into()], [data.into()]);
    Ok(())
}
