//! The application's and the SDK's own values. Nothing of this crate is kept here.

use crate::{
    Error,
    account::{StoreLane, cipher::column, write::batch::Batch},
    postgres::statement::{Delete, Sql, Table, Upsert, bytea},
};

const TABLE: &str = CUSTOM_VALUES.name;

pub(super) static CUSTOM_VALUES: Table =
    Table { name: "custom_values", key: &[bytea("key")], values: &[bytea("data")], cache: None };

static GET: Sql = Sql::get("custom_values.get", &CUSTOM_VALUES);
static UPSERT: Upsert = Upsert::new("custom_values.upsert", &CUSTOM_VALUES);
static DELETE: Delete = Delete::new("custom_values.delete", &CUSTOM_VALUES);

pub(super) const STATEMENTS: &[&Sql] = &[&GET, UPSERT.sql(), DELETE.sql()];

pub(super) async fn get(account: &StoreLane, key: &str) -> Result<Option<Vec<u8>>, Error> {
    let key = account.codec.key(TABLE, key);
    let Some(row) = account.query_opt(&GET, &[&key]).await? else { return Ok(None) };
    let mut value = account.codec.open_bytes(TABLE, &[&key], column(&row, 0, TABLE)?)?;
    Ok(Some(std::mem::take(&mut *value)))
}

pub(super) async fn set(account: &StoreLane, key: &str, value: Vec<u8>) -> Result<(), Error> {
    let key = account.codec.key(TABLE, key);
    account
        .write(|staging| async move {
            let mut batch = Batch::default();
            let data = staging.codec.seal_bytes(TABLE, &[&key], value)?;
            batch.upsert(&UPSERT, [key], [data]);
            Ok(batch)
        })
        .await
}

pub(super) async fn remove(account: &StoreLane, key: &str) -> Result<(), Error> {
    let key = account.codec.key(TABLE, key);
    account.delete(&DELETE, [key]).await
}
