//! The position of the to-device sync.

use tokio_postgres::types::Type;

use crate::{
    Error,
    account::{
        OpenAccount,
        cipher::{Codec, column},
        write::batch::Batch,
    },
    postgres::statement::Sql,
};

const TABLE: &str = "sync_tokens";

static GET: Sql = Sql {
    name: "sync_tokens.get",
    template: "SELECT data FROM {schema}.sync_tokens WHERE account_id = $1",
    types: &[Type::INT8],
};

static UPSERT: Sql = Sql {
    name: "sync_tokens.upsert",
    template: "
INSERT INTO {schema}.sync_tokens (account_id, data)
SELECT $1, u.data FROM unnest($2) AS u (data) WHERE {guarded}
ON CONFLICT (account_id) DO UPDATE SET data = excluded.data, updated_at = excluded.updated_at",
    types: &[Type::INT8, Type::BYTEA_ARRAY],
};

pub(super) const STATEMENTS: &[&Sql] = &[&GET, &UPSERT];

pub(super) async fn get(account: &OpenAccount) -> Result<Option<String>, Error> {
    let Some(row) = account.query_opt(&GET, &[]).await? else { return Ok(None) };
    account.codec.open(TABLE, &[], column(&row, 0, TABLE)?).map(Some)
}

pub(super) fn stage(batch: &mut Batch, codec: &Codec, token: &str) -> Result<(), Error> {
    batch.put(&UPSERT, [], [codec.seal(TABLE, &[], &token)?.into()]);
    Ok(())
}
