//! Fills each table with 500 000 rows, most of them of one account.

use test_support::{number, reads::tables};
use tokio_postgres::Client;

const ROWS: i64 = 500_000;

pub const ACCOUNTS: i64 = 50_000;

/// For each table its columns except `account_id`, and their values in row `i`.
///
/// `one` is a unique id, `few` an id shared by 50 rows, `data` some bytes.
const TABLES: [(&str, &str, &str); 17] = [
    ("backed_up_rooms", "room_id", "one"),
    ("custom_values", "key, data", "one, data"),
    ("devices", "user_id, device_id, data", "few, one, data"),
    ("encrypted_rooms", "room_id, data", "one, data"),
    // One request in a thousand is unsent.
    ("key_requests", "request_id, info, sent_out, data", "one, one, i % 1000 > 0, data"),
    (
        "lease_locks",
        "lane, key, holder, expires_at, generation",
        "'crypto_store', one, few, now(), 1",
    ),
    // Nearly all are in the backup of the current version.
    (
        "megolm_inbound_sessions",
        "room_id, session_id, sender_key, sender_data_type, backup_generation, data",
        "few, one, few, 1, CASE WHEN i % 1000 = 0 THEN i / 1000 % 4 - 1 ELSE 3 END, data",
    ),
    ("megolm_outbound_sessions", "room_id, data", "one, data"),
    ("message_hashes", "hash", "one"),
    ("olm_sessions", "sender_key, session_id, data", "few, one, data"),
    ("pending_key_bundles", "room_id, data", "one, data"),
    ("room_key_bundles", "room_id, sender_user, data", "few, one, data"),
    ("secrets_inbox", "secret_name, secret_hash, data", "few, one, data"),
    ("tracked_users", "user_id, data", "one, data"),
    ("user_identities", "user_id, data", "one, data"),
    ("withheld_sessions", "room_id, session_id, data", "few, one, data"),
    // One row in ten belongs to another account than the large one.
    ("backup_versions", "generation, version, retired", "i, one, i < 499999"),
];

/// The tables with one or two rows per account.
const SMALL_TABLES: &str = "
INSERT INTO matrix_sdk.accounts (name, secret_kind, cipher_written_by)
    SELECT i, 0, 18 FROM generate_series(2, 50000) i;
INSERT INTO matrix_sdk.sync_tokens (account_id, data) SELECT i, 'token' FROM generate_series(2, 50000) i;
INSERT INTO matrix_sdk.account_data (account_id, item, data)
    SELECT i, item, sha512(i::text::bytea) FROM generate_series(1, 50000) i, generate_series(1, 5) item;
INSERT INTO matrix_sdk.account_owners (account_id, token, name, since)
    SELECT i, 'token', 'owner', now() FROM generate_series(2, 50000) i;
INSERT INTO matrix_sdk.heartbeats SELECT sha256(i::text::bytea), now() FROM generate_series(1, 50000) i;
INSERT INTO matrix_sdk.account_handles SELECT i, 'id', 'process' FROM generate_series(2, 50000) i;
INSERT INTO matrix_sdk.account_lanes (account_id, lane)
    SELECT i, 'crypto_store' FROM generate_series(2, 50000) i;";

/// Fills all tables of an empty store and runs ANALYZE.
pub async fn fill(client: &Client) {
    client.batch_execute(SMALL_TABLES).await.unwrap();
    for (table, columns, values) in TABLES {
        let sql = format!(
            "INSERT INTO matrix_sdk.{table} (account_id, {columns})
             SELECT account, {values} FROM (
                 SELECT i, CASE WHEN i % 10 > 0 THEN 1 ELSE i / 10 % {ACCOUNTS} + 1 END AS account,
                        decode(md5(i::text), 'hex') AS one, decode(md5((i / 50)::text), 'hex') AS few,
                        sha512(i::text::bytea) AS data
                 FROM generate_series(1, {ROWS}) i) row"
        );
        client.batch_execute(&sql).await.unwrap();
    }
    client.batch_execute("VACUUM ANALYZE").await.unwrap();
    for table in tables(client).await {
        let rows = number(client, &format!("SELECT count(*) FROM matrix_sdk.{table}")).await;
        let small = [
            "accounts",
            "sync_tokens",
            "account_data",
            "schema_migrations",
            "account_owners",
            "heartbeats",
            "account_handles",
            "account_lanes",
            // Empty unless an operator sets rows aside.
            "quarantined_rows",
        ];
        // A new table must be filled here, or its plans are not checked.
        assert!(rows >= ROWS || small.contains(&table.as_str()), "{table} has {rows} rows");
    }
}
