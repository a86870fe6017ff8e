//! The application's and the SDK's own values. Nothing of this crate is kept here.

use tokio_postgres::types::Type;

use crate::{
    Error,
    account::{OpenAccount, cipher::column, write::batch::Batch},
    postgres::statement::{Sql, delete_by_key, get_by_key, upsert_by_key},
};

const TABLE: &str = "custom_values";

static GET: Sql = get_by_key!("custom_values", "key");
static UPSERT: Sql = upsert_by_key!("custom_values", "key");
static DELETE: Sql = delete_by_key!("custom_values", "key");

pub(super) const STATEMENTS: &[&Sql] = &[&GET, &UPSERT, &DELETE];

pub(super) async fn get(account: &OpenAccount, key: &str) -> Result<Option<Vec<u8>>, Error> {
    let key = account.codec.key(TABLE, key);
    let Some(row) = account.query_opt(&GET, &[&key]).await? else { return Ok(None) };
    let mut value = account.codec.open_bytes(TABLE, &[&key], column(&row, 0, TABLE)?)?;
    Ok(Some(std::mem::take(&mut *value)))
}

pub(super) async fn set(account: &OpenAccount, key: &str, value: Vec<u8>) -> Result<(), Error> {
    let key = account.codec.key(TABLE, key);
    account
        .write(|staging| async move {
            let mut batch = Batch::default();
            let data = staging.codec.seal_bytes(TABLE, &[&key], value)?;
            batch.put(&UPSERT, [key.into()], [data.into()]);
            Ok(batch)
        })
        .await
}

pub(super) async fn remove(account: &OpenAccount, key: &str) -> Result<(), Error> {
    let key = account.codec.key(TABLE, key);
    account.apply(&DELETE, [key.into()], None).await
}
