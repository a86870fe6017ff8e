//! Users whose devices we follow, and whether what we know of them is out of date.

use std::collections::BTreeMap;

use matrix_sdk_common::ruma::{OwnedUserId, UserId};
use matrix_sdk_crypto::TrackedUser;
use tokio_postgres::types::Type;

use crate::{
    Error,
    account::{
        Group, OpenAccount, Staging,
        cache::{Effect, Place, Stored},
        cipher::Key,
        write::batch::Batch,
    },
    postgres::statement::{Sql, upsert_by_key},
};

const TABLE: &str = "tracked_users";

static ALL: Sql = Sql {
    name: "tracked_users.all",
    template: "SELECT user_id, data, false FROM {schema}.tracked_users WHERE account_id = $1",
    types: &[Type::INT8],
};

static GROUP: Group = Group { table: TABLE, rows: &ALL, keys: None };

static UPSERT: Sql = upsert_by_key!("tracked_users", "user_id");

pub(super) const STATEMENTS: &[&Sql] = &[&ALL, &UPSERT];

pub(super) async fn all(account: &OpenAccount) -> Result<Vec<TrackedUser>, Error> {
    let rows = account.rows(&GROUP, &place(), &[]).await?;
    let users =
        rows.iter().map(|(key, row)| account.codec.open(TABLE, &[&Key::stored(key)], &row.data));
    users.collect()
}

pub(super) async fn save(account: &OpenAccount, users: &[(&UserId, bool)]) -> Result<(), Error> {
    // Of a user named twice the last one counts.
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

/// Stages a user, unless that is stored already.
fn stage(batch: &mut Batch, staging: &Staging, user: &TrackedUser) -> Result<(), Error> {
    let codec = &staging.codec;
    let key = codec.key(TABLE, &user.user_id);
    let is_the_same = |data: &[u8]| codec.holds(TABLE, &[&key], data, user);
    if staging.finds(&place(), key.as_bytes(), is_the_same) {
        batch.skip_unchanged();
        return Ok(());
    }
    let row = Stored::new(codec.seal(TABLE, &[&key], user)?);
    batch.note(Effect::Put(place(), key.as_bytes().to_vec(), Some(row.clone())));
    batch.put(&UPSERT, [key.into()], [row.into()]);
    Ok(())
}

/// All are read at once.
fn place() -> Place {
    Place::new(TABLE, [])
}
