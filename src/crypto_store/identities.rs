//! Cross-signing identities of users, their public part.

use matrix_sdk_common::ruma::UserId;
use matrix_sdk_crypto::UserIdentityData;

use crate::{
    Error,
    account::{StoreLane, cipher::Codec, write::batch::Batch},
    postgres::statement::{CacheIndex, Prefetched, Sql, Table, Upsert, bytea},
};

const TABLE: &str = USER_IDENTITIES.name;

pub(super) static USER_IDENTITIES: Table = Table {
    name: "user_identities",
    key: &[bytea("user_id")],
    values: &[bytea("data")],
    cache: Some(&BY_USER),
};

static BY_USER: CacheIndex = CacheIndex {
    table: &USER_IDENTITIES,
    group: &GET,
    row: None,
    keys: Some(&KEYS),
    prefetch: Some(Prefetched::SmallTable(&FEW)),
    row_key: 0,
    keeps_rows: true,
};

static GET: Sql = Sql::get("user_identities.get", &USER_IDENTITIES);
static FEW: Sql = Sql::get_few("user_identities.few", &USER_IDENTITIES);
static KEYS: Sql = Sql::key_set("user_identities.keys", &USER_IDENTITIES);
static UPSERT: Upsert = Upsert::new("user_identities.upsert", &USER_IDENTITIES);

pub(super) const STATEMENTS: &[&Sql] = &[&GET, &FEW, &KEYS, UPSERT.sql()];

pub(super) async fn get(
    account: &StoreLane,
    user_id: &UserId,
) -> Result<Option<UserIdentityData>, Error> {
    let user_id = account.codec.key(TABLE, user_id);
    let row = account.row(&BY_USER, [&user_id]).await?;
    row.map(|row| account.codec.open(TABLE, &[&user_id], row.bytes(0, TABLE)?)).transpose()
}

pub(super) fn stage(
    batch: &mut Batch,
    codec: &Codec,
    identity: &UserIdentityData,
) -> Result<(), Error> {
    let user_id = codec.key(TABLE, identity.user_id());
    let data = codec.seal(TABLE, &[&user_id], identity)?;
    batch.upsert(&UPSERT, [user_id], [data]);
    Ok(())
}
