//! Estimates the size of an account in the database without reading its rows.

use tokio_postgres::types::Type;

use super::{
    account_data, backups, custom_values, devices, encrypted_rooms, identities,
    inbound_group_sessions, key_requests, message_hashes, olm_sessions, outbound_group_sessions,
    room_key_bundles, secrets, sync_tokens, tracked_users, withheld,
};
use crate::{
    Error,
    account::{StoreLane, cipher::column},
    postgres::statement::{Sql, Table},
};

/// The store's own tables.
pub(crate) static TABLES: [&Table; 18] = [
    &account_data::ACCOUNT_DATA,
    &backups::BACKUP_VERSIONS,
    &custom_values::CUSTOM_VALUES,
    &devices::DEVICES,
    &encrypted_rooms::ENCRYPTED_ROOMS,
    &identities::USER_IDENTITIES,
    &inbound_group_sessions::INBOUND_SESSIONS,
    &key_requests::KEY_REQUESTS,
    &message_hashes::MESSAGE_HASHES,
    &olm_sessions::OLM_SESSIONS,
    &outbound_group_sessions::OUTBOUND_SESSIONS,
    &room_key_bundles::ROOM_KEY_BUNDLES,
    &room_key_bundles::PENDING_KEY_BUNDLES,
    &room_key_bundles::BACKED_UP_ROOMS,
    &secrets::SECRETS_INBOX,
    &sync_tokens::SYNC_TOKENS,
    &tracked_users::TRACKED_USERS,
    &withheld::WITHHELD_SESSIONS,
];

// Each table's size, times the account's share of its rows as ANALYZE last estimated it: its frequency
// if it is one of the most common accounts, else an even share of the remaining rows. In a table that
// was never analysed, all accounts have the same share.
static ESTIMATE: Sql = Sql::new(
    "size.estimate",
    "
SELECT coalesce(sum(pg_total_relation_size(c.oid) * coalesce(
    s.freqs[array_position(s.vals, $1)],
    (1 - coalesce((SELECT sum(f) FROM unnest(s.freqs) f), 0))
        / nullif(greatest(s.accounts - coalesce(cardinality(s.vals), 0), 1), 0),
    1 / (SELECT greatest(count(*), 1) FROM {schema}.accounts)::float8)), 0)::int8
FROM pg_class c
LEFT JOIN LATERAL (
    SELECT most_common_vals::text::int8[] AS vals, most_common_freqs::float8[] AS freqs,
           CASE WHEN n_distinct < 0 THEN -n_distinct * c.reltuples ELSE n_distinct END AS accounts
    FROM pg_stats
    WHERE schemaname = c.relnamespace::regnamespace::text AND tablename = c.relname
      AND attname = 'account_id'
) s ON true
WHERE c.relkind = 'r' AND c.relname = ANY ($2) AND c.relnamespace = (
    SELECT t.relnamespace FROM pg_class t JOIN {schema}.accounts a ON a.tableoid = t.oid
    WHERE a.id = $1)",
    &[Type::INT8, Type::TEXT_ARRAY],
);

pub(super) const STATEMENTS: &[&Sql] = &[&ESTIMATE];

pub(super) async fn estimate(account: &StoreLane) -> Result<usize, Error> {
    let tables = TABLES.map(|table| table.name);
    let Some(row) = account.query_opt(&ESTIMATE, &[&tables.as_slice()]).await? else {
        return Ok(0);
    };
    let bytes: i64 = column(&row, 0, "accounts")?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::{super::store::CRYPTO_STORE, TABLES};

    #[test]
    fn every_table_of_the_store_is_listed() {
        for sql in CRYPTO_STORE.statements.iter().copied().flatten() {
            let (table, _) = sql.name.split_once('.').unwrap_or_default();
            let is_listed = TABLES.iter().any(|listed| listed.name == table);
            assert!(is_listed || table == "size", "{}", sql.name);
        }
    }
}
