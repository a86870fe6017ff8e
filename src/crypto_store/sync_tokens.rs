//! The sync token.

use tokio_postgres::types::Type;

use crate::{
    Error,
    account::{
        StoreLane,
        cipher::{Codec, column},
        write::batch::Batch,
    },
    postgres::{
        cell::Cells,
        statement::{ExpectedRows, Sql, Table, Write, bytea},
    },
};

const TABLE: &str = SYNC_TOKENS.name;

pub(crate) static SYNC_TOKENS: Table =
    Table { name: "sync_tokens", key: &[], values: &[bytea("data")], cache: None };

static GET: Sql = Sql::new(
    "sync_tokens.get",
    "SELECT data FROM {schema}.sync_tokens WHERE account_id = $1",
    &[Type::INT8],
);

static UPSERT: Write = Write {
    table: &SYNC_TOKENS,
    expected_rows: ExpectedRows::Each,
    sql: Sql::new(
        "sync_tokens.upsert",
        "
INSERT INTO {schema}.sync_tokens (account_id, data)
SELECT o.account_id, u.data
FROM {schema}.account_owners o CROSS JOIN unnest($2) AS u (data)
WHERE o.account_id = $1 AND {guarded}
ON CONFLICT (account_id) DO UPDATE SET data = excluded.data, updated_at = excluded.updated_at",
        &[Type::INT8, Type::BYTEA_ARRAY],
    ),
};

pub(super) const STATEMENTS: &[&Sql] = &[&GET, &UPSERT.sql];

pub(super) async fn get(account: &StoreLane) -> Result<Option<String>, Error> {
    let Some(row) = account.query_opt(&GET, &[]).await? else { return Ok(None) };
    account.codec.open(TABLE, &[], column(&row, 0, TABLE)?).map(Some)
}

pub(super) fn stage(batch: &mut Batch, codec: &Codec, token: &str) -> Result<(), Error> {
    batch.write(&UPSERT, Cells::default(), [codec.seal(TABLE, &[], &token)?], []);
    Ok(())
}
