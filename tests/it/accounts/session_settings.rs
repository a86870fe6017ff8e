//! Rules 15, 20 and 24: nothing depends on the session settings of a role, a database or a server.

use std::{cell::RefCell, collections::HashSet, time::Duration};

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{
    OwnershipSettings, PoolSettings, PostgresCryptoStore, Timeouts, testing, tokio_postgres::Client,
};
use ruma::user_id;
use test_support::{Mode, connect, eventually, number};

use super::exercise;

/// Settings that change how statements are parsed, how values are formatted, or how transactions run.
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

/// Tables that unqualified names would refer to under a hostile `search_path`.
const HOSTILE_SCHEMA: &str = "
CREATE SCHEMA hostile;
CREATE TABLE hostile.accounts (id int);
CREATE TABLE hostile.devices (id int);";

/// Sets it for the whole database, so that it applies to every session like a role's setting.
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
        // The settings must apply to the session, or the test proves nothing.
        let client = connect(&url).await;
        let timezone = client.query_one("SHOW timezone", &[]).await.unwrap();
        assert_eq!(timezone.get::<_, &str>(0), "Pacific/Auckland");
        for prepared in [true, false] {
            let config = mode
                .config(&url, "bot")
                .pool(PoolSettings { prepared_statements: prepared, ..Default::default() });
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

/// Defaults of the sessions.
const DEFAULTS: [(&str, &str); 4] = [
    ("default_transaction_isolation", "'serializable'"),
    ("statement_timeout", "77777"),
    ("lock_timeout", "77778"),
    ("idle_in_transaction_session_timeout", "77779"),
];

/// Triggers that fail changes of a table or of the schema in transactions with the session's defaults.
const WATCH_SCHEMA: &str = "
CREATE SCHEMA watch;
CREATE FUNCTION watch.settings() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
  IF current_setting('transaction_isolation') <> 'read committed'
      OR current_setting('statement_timeout') = '77777ms'
      OR current_setting('lock_timeout') = '77778ms'
      OR current_setting('idle_in_transaction_session_timeout') = '77779ms' THEN
    RAISE EXCEPTION 'runs with the defaults of its session: %', current_query();
  END IF; END $$;
CREATE FUNCTION watch.ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
  PERFORM watch.settings(); END $$;
CREATE FUNCTION watch.dml() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  PERFORM watch.settings(); RETURN NULL; END $$;
CREATE EVENT TRIGGER watch ON ddl_command_start EXECUTE FUNCTION watch.ddl();";

const WATCH_TABLES: &str = "
DO $$ DECLARE name text; BEGIN
  FOR name IN SELECT relname FROM pg_class
      WHERE relnamespace = 'matrix_sdk'::regnamespace AND relkind = 'r' LOOP
    EXECUTE format('CREATE TRIGGER watch AFTER INSERT OR UPDATE OR DELETE ON matrix_sdk.%I
                    FOR EACH STATEMENT EXECUTE FUNCTION watch.dml()', name);
  END LOOP; END $$;";

/// Every statement that writes runs in a transaction with explicit isolation level, access mode and time limits.
#[tokio::test]
async fn no_write_depends_on_the_defaults_of_its_session() {
    for (mode, prepared) in [(Mode::Plain, true), (Mode::Key, false)] {
        let database = testing::database().unwrap();
        let url = database.url();
        // Connected before the defaults are set.
        let client = connect(&url).await;
        client.batch_execute(WATCH_SCHEMA).await.unwrap();
        for (setting, value) in DEFAULTS {
            let sql = format!("ALTER DATABASE {} SET {setting} = {value}", database.name());
            client.batch_execute(&sql).await.unwrap();
        }
        let config = |account: &str| {
            let config = mode
                .config(&url, account)
                .pool(PoolSettings { prepared_statements: prepared, ..Default::default() });
            config.access(OwnershipSettings {
                heartbeat_interval: Duration::from_millis(50),
                ..Default::default()
            })
        };
        let first = PostgresCryptoStore::open_with_config(&config("first")).await.unwrap();
        let watch = format!(
            "SET default_transaction_isolation = 'read committed';
             BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; {WATCH_TABLES} COMMIT"
        );
        client.batch_execute(&watch).await.unwrap();

        let store = PostgresCryptoStore::open_with_config(&config("second")).await.unwrap();
        exercise(&store).await;
        store.close().await.unwrap();
        store.reopen().await.unwrap();
        let within = store.atomically(async {
            store.set_custom_value("key", b"value".to_vec()).await?;
            store.transaction().await?.query("SELECT 1", &[]).await?;
            Ok::<_, matrix_sdk_crypto::CryptoStoreError>(())
        });
        within.await.unwrap();
        // A takeover, and heartbeats.
        let _third = PostgresCryptoStore::open_with_config(&config("second")).await.unwrap();
        let seen = RefCell::new(HashSet::<String>::new());
        eventually("the heartbeat is renewed", async || {
            let sql = "SELECT max(alive_until)::text FROM matrix_sdk.heartbeats";
            let renewed = client.query_one(sql, &[]).await.unwrap().get(0);
            seen.borrow_mut().insert(renewed);
            seen.borrow().len() >= 4
        })
        .await;
        first.close().await.unwrap();
        let released = "SELECT count(*) FROM matrix_sdk.account_handles o
                        JOIN matrix_sdk.accounts a ON a.id = o.account_id WHERE a.name = 'first'";
        assert_eq!(number(&client, released).await, 0, "the release was refused");
    }
}

/// Limits of a role, shorter than the waits of these tests.
const LIMITS: [(&str, &str); 2] = [("statement_timeout", "'300ms'"), ("lock_timeout", "'200ms'")];

/// Locks a table of the owner's until `COMMIT`.
async fn lock_lanes(url: &str) -> Client {
    let client = connect(url).await;
    let lock = "BEGIN; LOCK TABLE matrix_sdk.account_lanes IN ACCESS EXCLUSIVE MODE";
    client.batch_execute(lock).await.unwrap();
    client
}

/// A takeover waits for the owner's open transaction, regardless of the role's time limits.
#[tokio::test(flavor = "multi_thread")]
async fn a_roles_limits_do_not_fail_a_takeover_that_waits() {
    let database = testing::database().unwrap();
    let url = database.url();
    for (setting, value) in LIMITS {
        set(&url, database.name(), setting, value).await;
    }
    let known = "SELECT count(*) FROM pg_settings WHERE name = 'transaction_timeout'";
    // From PostgreSQL 17 on.
    if number(&connect(&url).await, known).await == 1 {
        set(&url, database.name(), "transaction_timeout", "'400ms'").await;
    }
    let first = Mode::Plain.open(&url, "bot").await;
    let (locked, release) = tokio::sync::oneshot::channel::<()>();
    let (entered, has_entered) = tokio::sync::oneshot::channel();
    let owner = tokio::spawn(async move {
        let hold = first.atomically(async {
            first.set_custom_value("key", b"held".to_vec()).await?;
            first.transaction().await?.query("SELECT 1", &[]).await?;
            entered.send(()).unwrap();
            release.await.unwrap();
            Ok::<_, matrix_sdk_crypto::CryptoStoreError>(())
        });
        hold.await
    });
    has_entered.await.unwrap();
    let mut next = tokio::spawn(async move { Mode::Plain.open(&url, "bot").await });
    let early = tokio::time::timeout(Duration::from_secs(1), &mut next).await;
    assert!(early.is_err(), "the takeover did not wait");
    locked.send(()).unwrap();
    owner.await.unwrap().unwrap();
    next.await.unwrap().set_custom_value("key", b"next".to_vec()).await.unwrap();
}

/// The owner's tables may be locked for longer than a role's limits.
#[tokio::test(flavor = "multi_thread")]
async fn a_roles_limits_do_not_fail_an_opening_that_waits() {
    for (setting, value) in LIMITS {
        let database = testing::database().unwrap();
        let url = database.url();
        Mode::Plain.open(&url, "bot").await.close().await.unwrap();
        set(&url, database.name(), setting, value).await;
        let other = lock_lanes(&url).await;
        let timeouts = Timeouts { retry: Duration::from_millis(500), ..Default::default() };
        let config = Mode::Plain.config(&url, "bot").timeouts(timeouts);
        let mut opening =
            tokio::spawn(async move { PostgresCryptoStore::open_with_config(&config).await });
        let early = tokio::time::timeout(Duration::from_secs(3), &mut opening).await;
        assert!(early.is_err(), "{setting}: the opening did not wait: {:?}", early.map(drop));
        other.batch_execute("COMMIT").await.unwrap();
        opening.await.unwrap().unwrap();
    }
}

/// The check that stands for a save of unchanged rows waits as a save would.
#[tokio::test(flavor = "multi_thread")]
async fn a_roles_limits_do_not_fail_a_save_of_unchanged_rows() {
    for (setting, value) in LIMITS {
        let database = testing::database().unwrap();
        let url = database.url();
        set(&url, database.name(), setting, value).await;
        let store = Mode::Plain.open(&url, "bot").await;
        let users = [(user_id!("@alice:example.org"), true)];
        store.save_tracked_users(&users).await.unwrap();
        // Reading makes the row known, so that saving it is a no-op.
        store.load_tracked_users().await.unwrap();
        let commits = store.commit_count().await.unwrap();

        let other = lock_lanes(&url).await;
        let save = store.clone();
        let mut save = tokio::spawn(async move { save.save_tracked_users(&users).await });
        let early = tokio::time::timeout(Duration::from_secs(1), &mut save).await;
        assert!(early.is_err(), "{setting}: the save did not wait");
        other.batch_execute("COMMIT").await.unwrap();
        save.await.unwrap().unwrap();
        assert_eq!(store.commit_count().await.unwrap(), commits, "the save was a commit");
    }
}
