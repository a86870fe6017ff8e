//! Rules 15 and 20: nothing depends on what a role, a database or a server sets for its sessions.

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{PostgresCryptoStore, testing};

use crate::{
    common::{Mode, connect, number},
    exercise,
};

/// Settings that change how statements are read, how values are written, or how transactions run.
const SETTINGS: [(&str, &str); 17] = [
    ("timezone", "'Pacific/Auckland'"),
    ("search_path", "hostile"),
    ("datestyle", "'German, DMY'"),
    ("intervalstyle", "'sql_standard'"),
    ("bytea_output", "'escape'"),
    ("extra_float_digits", "'-15'"),
    ("default_transaction_isolation", "'serializable'"),
    ("default_transaction_deferrable", "on"),
    ("standard_conforming_strings", "off"),
    ("quote_all_identifiers", "on"),
    ("array_nulls", "off"),
    ("lc_messages", "'C'"),
    ("plan_cache_mode", "'force_generic_plan'"),
    ("jit_above_cost", "0"),
    ("synchronous_commit", "off"),
    ("row_security", "off"),
    ("statement_timeout", "'20s'"),
];

/// Tables that a session with a hostile `search_path` would take for ours.
const HOSTILE_SCHEMA: &str = "
CREATE SCHEMA hostile;
CREATE TABLE hostile.accounts (id int);
CREATE TABLE hostile.devices (id int);";

/// Sets it for the whole database, so that it reaches every session as a role's setting would.
async fn set(url: &str, name: &str, setting: &str, value: &str) {
    let client = connect(url).await;
    let sql = format!("ALTER DATABASE {name} SET {setting} = {value}");
    client.batch_execute(&sql).await.unwrap();
}

#[tokio::test]
async fn hostile_settings_of_the_session_do_not_matter() {
    for mode in [Mode::Plain, Mode::Key] {
        let database = testing::database().unwrap();
        let url = database.url();
        connect(&url).await.batch_execute(HOSTILE_SCHEMA).await.unwrap();
        for (setting, value) in SETTINGS {
            set(&url, database.name(), setting, value).await;
        }
        // They have reached the session: otherwise the test has no teeth.
        let client = connect(&url).await;
        let timezone = client.query_one("SHOW timezone", &[]).await.unwrap();
        assert_eq!(timezone.get::<_, &str>(0), "Pacific/Auckland");
        for prepared in [true, false] {
            let config = mode.config(&url, "bot").prepared_statements(prepared);
            exercise(&PostgresCryptoStore::open_with_config(&config).await.unwrap()).await;
        }
        let strangers =
            "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
                         WHERE nspname IN ('public', 'hostile') AND relkind = 'r'";
        assert_eq!(number(&client, strangers).await, 2, "only the hostile tables themselves");
    }
}

/// A lease taken by a session in one time zone counts in another.
#[tokio::test]
async fn leases_and_times_do_not_depend_on_the_time_zone() {
    let database = testing::database().unwrap();
    let url = database.url();
    let here = Mode::Plain.open(&url, "bot").await;
    assert_eq!(here.try_take_leased_lock(60_000, "key", "here").await.unwrap(), Some(1));
    for zone in ["'Pacific/Auckland'", "'Pacific/Pago_Pago'", "'Asia/Kathmandu'"] {
        set(&url, database.name(), "timezone", zone).await;
        let there = Mode::Plain.open(&url, "bot").await;
        let taken = there.try_take_leased_lock(60_000, "key", "there").await.unwrap();
        assert_eq!(taken, None, "{zone}");
    }
    set(&url, database.name(), "timezone", "'Pacific/Auckland'").await;
    let client = connect(&url).await;
    let sql = "SELECT count(*) FROM matrix_sdk.lease_locks
               WHERE expires_at BETWEEN now() AND now() + interval '1 minute'";
    assert_eq!(number(&client, sql).await, 1);
}
