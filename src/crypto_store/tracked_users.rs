//! Users whose devices are tracked, and whether their device lists are outdated.

use std::collections::BTreeMap;

use matrix_sdk_common::ruma::{OwnedUserId, UserId};
use matrix_sdk_crypto::TrackedUser;

use crate::{
    Error,
    account::{Staging, StoreLane, cipher::Key, write::batch::Batch},
    postgres::{
        cell::Cells,
        statement::{CacheIndex, Sql, Table, Upsert, bytea},
    },
};

const TABLE: &str = TRACKED_USERS.name;

pub(crate) static TRACKED_USERS: Table = Table {
    name: "tracked_users",
    key: &[bytea("user_id")],
    values: &[bytea("data")],
    cache: Some(&ALL),
};

// One group: all users are read together.
static ALL: CacheIndex = CacheIndex {
    table: &TRACKED_USERS,
    group: &GET_ALL,
    row: None,
    keys: None,
    prefetch: None,
    row_key: 1,
    keeps_rows: true,
};

static GET_ALL: Sql = Sql::get_group("tracked_users.all", &TRACKED_USERS);
static UPSERT: Upsert = Upsert::new("tracked_users.upsert", &TRACKED_USERS);

pub(super) const STATEMENTS: &[&Sql] = &[&GET_ALL, UPSERT.sql()];

pub(super) async fn all(account: &StoreLane) -> Result<Vec<TrackedUser>, Error> {
    let rows = account.rows(&ALL, Cells::default()).await?;
    let users = rows.iter().map(|(key, row)| {
        let key = Key::of_cell(key, 0, TABLE)?;
        account.codec.open(TABLE, &[&key], row.bytes(0, TABLE)?)
    });
    users.collect()
}

pub(super) async fn save(account: &StoreLane, users: &[(&UserId, bool)]) -> Result<(), Error> {
    // If a user is listed twice, the last entry wins.
    let users: BTreeMap<OwnedUserId, bool> =
        users.iter().map(|(user_id, dirty)| ((*user_id).to_owned(), *dirty)).collect();
    account
        .write(|staging| async move {
            let mut batch = Batch::default();
            for (user_id, dirty) in users {
                stage(&mut batch, &staging, &TrackedUser { user_id, dirty })?;
            }
            Ok(batch)
        })
        .await
}

/// Stages a user, unless the row is unchanged.
fn stage(batch: &mut Batch, staging: &Staging, user: &TrackedUser) -> Result<(), Error> {
    let codec = &staging.codec;
    let key = codec.key(TABLE, &user.user_id);
    let is_same = |row: &Cells| {
        let data = row.bytes(0, TABLE);
        data.is_ok_and(|data| codec.matches_sealed(TABLE, &[&key], data, user))
    };
    if staging.is_unchanged(&TRACKED_USERS, &[&key].into(), is_same) {
        batch.skip_unchanged();
        return Ok(());
    }
    let data = codec.seal(TABLE, &[&key], user)?;
    batch.upsert(&UPSERT, [key], [data]);
    Ok(())
}
