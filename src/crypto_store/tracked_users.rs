//! Users whose devices we follow, and whether what we know of them is out of date.

use matrix_sdk_common::ruma::{OwnedUserId, UserId};
use matrix_sdk_crypto::TrackedUser;
use tokio_postgres::types::Type;

use crate::{
    Error,
    account::OpenAccount,
    batch::Batch,
    codec::{Key, column},
    statement::{Sql, upsert_by_key},
};

const TABLE: &str = "tracked_users";

static ALL: Sql = Sql {
    name: "tracked_users.all",
    template: "SELECT user_id, data FROM {schema}.tracked_users WHERE account_id = $1",
    types: &[Type::INT8],
};

static UPSERT: Sql = upsert_by_key!("tracked_users", "user_id");

pub(super) const STATEMENTS: &[&Sql] = &[&ALL, &UPSERT];

pub(super) async fn all(account: &OpenAccount) -> Result<Vec<TrackedUser>, Error> {
    let rows = account.query(&ALL, &[]).await?;
    let users = rows.iter().map(|row| {
        let key = Key::of(row, 0, TABLE)?;
        account.codec.open(TABLE, &[&key], column(row, 1, TABLE)?)
    });
    users.collect()
}

pub(super) async fn save(account: &OpenAccount, users: &[(&UserId, bool)]) -> Result<(), Error> {
    let users: Vec<(OwnedUserId, bool)> =
        users.iter().map(|(user_id, dirty)| ((*user_id).to_owned(), *dirty)).collect();
    account
        .write(|codec| async move {
            let mut batch = Batch::default();
            for (user_id, dirty) in users {
                let key = codec.key(TABLE, &user_id);
                let data = codec.seal(TABLE, &[&key], &TrackedUser { user_id, dirty })?;
                batch.put(&UPSERT, [key.into()], [data.into()]);
            }
            Ok(batch)
        })
        .await
}
