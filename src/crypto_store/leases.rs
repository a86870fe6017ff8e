//! The cross-process lock: leases by the server's clock.

use matrix_sdk_common::cross_process_lock::CrossProcessLockGeneration;
use tokio_postgres::types::Type;

use crate::{
    Error,
    account::{OpenAccount, cipher::column},
    postgres::statement::Sql,
};

const TABLE: &str = "lease_locks";

// Neither queued behind saves nor part of a transaction: the SDK renews a lease of half a second every
// fifty milliseconds. now() would be the transaction's start, so clock_timestamp() is read, once: an
// attempt that waited for another is judged by the time at which it was made.
static TAKE: Sql = Sql::new(
    "lease_locks.take",
    "
INSERT INTO {schema}.lease_locks AS l (account_id, key, holder, expires_at, generation)
SELECT o.account_id, $2, $3, clock_timestamp() + $4 * interval '1 millisecond', 1
FROM (SELECT {schema}.guard($1, $5, NULL)) AS guarded
LEFT JOIN {schema}.account_owners o ON o.account_id = $1
ON CONFLICT (account_id, key) DO UPDATE SET
    holder = excluded.holder, expires_at = excluded.expires_at,
    generation = CASE WHEN l.holder = excluded.holder THEN l.generation ELSE l.generation + 1 END
WHERE l.holder = excluded.holder
    OR l.expires_at <= excluded.expires_at - $4 * interval '1 millisecond'
RETURNING generation",
    &[Type::INT8, Type::BYTEA, Type::BYTEA, Type::FLOAT8, Type::BYTEA],
);

pub(super) const STATEMENTS: &[&Sql] = &[&TAKE];

/// Takes or extends the lease; `None` when another holds it. A duration of 0 releases it.
pub(super) async fn take(
    account: &OpenAccount,
    duration_ms: u32,
    key: &str,
    holder: &str,
) -> Result<Option<CrossProcessLockGeneration>, Error> {
    let codec = &account.codec;
    let (key, holder) = (codec.key(TABLE, key), codec.key(TABLE, holder));
    let duration = f64::from(duration_ms);
    let Some(row) = account.write_apart(&TAKE, &[&key, &holder, &duration]).await? else {
        return Ok(None);
    };
    let generation: i64 = column(&row, 0, TABLE)?;
    Ok(Some(generation.unsigned_abs()))
}
