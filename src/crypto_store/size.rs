//! How much of the database an account takes, estimated without reading it.

use tokio_postgres::types::Type;

use crate::{
    Error,
    account::{OpenAccount, cipher::column},
    postgres::statement::Sql,
};

// Each table's size, times the account's share of its rows as ANALYZE last estimated it: the
// frequency among the most common accounts, else an even share of what those leave over. A table
// that was never analysed is shared evenly by all accounts.
static ESTIMATE: Sql = Sql::new(
    "size.estimate",
    "
SELECT coalesce(sum(pg_total_relation_size(c.oid) * coalesce(
    s.freqs[array_position(s.vals, $1)],
    (1 - coalesce((SELECT sum(f) FROM unnest(s.freqs) f), 0))
        / nullif(greatest(s.accounts - coalesce(cardinality(s.vals), 0), 1), 0),
    1 / (SELECT greatest(count(*), 1) FROM {schema}.accounts)::float8)), 0)::int8
FROM pg_class c
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'account_id' AND NOT a.attisdropped
LEFT JOIN LATERAL (
    SELECT most_common_vals::text::int8[] AS vals, most_common_freqs::float8[] AS freqs,
           CASE WHEN n_distinct < 0 THEN -n_distinct * c.reltuples ELSE n_distinct END AS accounts
    FROM pg_stats
    WHERE schemaname = c.relnamespace::regnamespace::text AND tablename = c.relname
      AND attname = 'account_id'
) s ON true
WHERE c.relkind = 'r' AND c.relnamespace = (
    SELECT t.relnamespace FROM pg_class t JOIN {schema}.accounts a ON a.tableoid = t.oid
    WHERE a.id = $1)",
    &[Type::INT8],
);

pub(super) const STATEMENTS: &[&Sql] = &[&ESTIMATE];

pub(super) async fn estimate(account: &OpenAccount) -> Result<usize, Error> {
    let Some(row) = account.query_opt(&ESTIMATE, &[]).await? else { return Ok(0) };
    let bytes: i64 = column(&row, 0, "pg_stats")?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}
