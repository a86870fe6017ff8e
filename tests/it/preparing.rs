//! A statement is prepared once on each connection, in the round trip of its first use, and no other is.

use std::time::Duration;

use assert_matches::assert_matches;
use matrix_sdk_crypto::{
    olm::OlmMessageHash,
    store::{CryptoStore, CryptoStoreError, types::Changes},
};
use matrix_sdk_postgres::{
    Error, OwnershipSettings, PoolSettings, PostgresCryptoStore, PostgresStoreConfig, Timeouts,
    deadpool_postgres,
    testing::{PostgresServer, TestDatabase},
    tokio_postgres,
};
use ruma::user_id;
use test_support::{Mode, connect, proxy::Proxy, without_heartbeats};
use tokio::{task::JoinSet, time::timeout};

/// A server that logs each message of the extended protocol.
fn server() -> PostgresServer {
    PostgresServer::builder().setting("log_min_duration_statement", "0").start().unwrap()
}

/// Number of named statements that were prepared and executed, from this position in the server's log.
fn named(server: &PostgresServer, from: usize) -> (usize, usize) {
    let log = server.log();
    let count = |what: &str| log[from..].lines().filter(|line| line.contains(what)).count();
    (count(" ms  parse s"), count(" ms  execute s"))
}

/// The first call on a connection.
#[derive(Debug, Clone, Copy)]
enum Call {
    Read,
    Write,
    Stream,
    Lease,
    Transaction,
}

const CALLS: [Call; 5] = [Call::Read, Call::Write, Call::Stream, Call::Lease, Call::Transaction];

impl Call {
    async fn make(self, store: &PostgresCryptoStore) {
        let value = || b"value".to_vec();
        match self {
            Self::Read => drop(store.next_batch_token().await.unwrap()),
            Self::Write => store.set_custom_value("key", value()).await.unwrap(),
            Self::Stream => drop(store.get_inbound_group_sessions().await.unwrap()),
            Self::Lease => drop(store.try_take_leased_lock(0, "key", "holder").await.unwrap()),
            Self::Transaction => {
                let within = async {
                    store.set_custom_value("key", value()).await.unwrap();
                    store.get_custom_value("other").await.unwrap();
                    Ok::<_, CryptoStoreError>(())
                };
                store.atomically(within).await.unwrap();
            }
        }
    }
}

/// An open store, on a connection on which nothing is prepared.
async fn reconnected_store(database: &TestDatabase) -> (Proxy, PostgresCryptoStore) {
    let (proxy, url) = Proxy::before(database);
    let config = Mode::Key
        .config(&url, "bot")
        .pool(PoolSettings { max_size: 1, ..Default::default() })
        .access(OwnershipSettings { cache_bytes: 0, ..without_heartbeats() });
    let pool = config.build_pool().unwrap();
    let store = PostgresCryptoStore::open_with_pool(pool.clone(), &config).await.unwrap();
    proxy.cut_all();
    // Until the loss has been noticed.
    while pool.get().await.unwrap().simple_query("").await.is_err() {}
    (proxy, store)
}

/// The statements, named or not, that the server has parsed since this position in its log.
fn parsed(server: &PostgresServer, from: usize) -> Vec<String> {
    let is_parsed = |line: &&str| line.contains(" ms  parse ");
    server.log()[from..].lines().filter(is_parsed).map(str::to_owned).collect()
}

#[tokio::test]
async fn the_first_call_on_a_connection_takes_no_round_trip_more_than_the_next() {
    let server = server();
    let database = server.create_database().unwrap();
    drop(Mode::Key.open(&database.url(), "bot").await);
    for call in CALLS {
        let (proxy, store) = reconnected_store(&database).await;
        let start = server.log().len();
        let before = proxy.round_trips();
        call.make(&store).await;
        let first = proxy.round_trips() - before;
        assert!((1..10).contains(&named(&server, start).0), "{call:?}");

        let start = server.log().len();
        let before = proxy.round_trips();
        call.make(&store).await;
        assert_eq!(proxy.round_trips() - before, first, "{call:?}");
        let (prepared, executed) = named(&server, start);
        assert_eq!(prepared, 0, "{call:?}");
        assert!(executed > 0, "{call:?}");
        store.close().await.unwrap();
    }
}

/// Each empty sync of a `Client` ends with such a save. Planning its statement would take the server longer than
/// running it.
#[tokio::test]
async fn an_unchanged_save_checks_the_ownership_with_a_prepared_statement() {
    let server = server();
    let database = server.create_database().unwrap();
    let config = Mode::Key
        .config(&database.url(), "bot")
        .pool(PoolSettings { max_size: 1, ..Default::default() })
        .access(without_heartbeats());
    let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
    let user = user_id!("@alice:example.org");
    store.load_tracked_users().await.unwrap();
    for _ in 0..2 {
        store.save_tracked_users(&[(user, true)]).await.unwrap();
    }
    let commits = store.commit_count().await.unwrap();
    let start = server.log().len();
    store.save_tracked_users(&[(user, true)]).await.unwrap();
    assert_eq!(parsed(&server, start), [""; 0]);
    assert_eq!(named(&server, start), (0, 1));
    assert_eq!(store.commit_count().await.unwrap(), commits);
}

#[tokio::test]
async fn an_opening_prepares_what_it_sends() {
    let server = server();
    for is_new in [false, true] {
        let mut opening = Vec::new();
        for mode in [Mode::Key, Mode::Passphrase] {
            let database = server.create_database().unwrap();
            mode.open(&database.url(), "bot").await.close().await.unwrap();
            let account = if is_new { "new" } else { "bot" };
            let (proxy, url) = Proxy::before(&database);
            let start = server.log().len();
            let store = mode.open(&url, account).await;
            opening.push(proxy.round_trips());
            assert!((1..10).contains(&named(&server, start).0), "{mode:?}, new: {is_new}");
            store.close().await.unwrap();
        }
        // With a key, the owner is read together with the account's row, and so it is of a new account.
        assert_eq!(opening[0] + usize::from(!is_new), opening[1], "new: {is_new}");
    }
}

/// Of thousands of accounts on one pool. Parsing and planning took a third of the server's time.
#[tokio::test]
async fn an_opening_on_a_connection_that_another_account_has_used_parses_nothing() {
    let server = server();
    let database = server.create_database().unwrap();
    let config = Mode::Key
        .config(&database.url(), "one")
        .pool(PoolSettings { max_size: 1, ..Default::default() })
        .access(without_heartbeats());
    let pool = config.build_pool().unwrap();
    let open = async |account: &str| {
        let config = config.clone().account(account);
        PostgresCryptoStore::open_with_pool(pool.clone(), &config).await.unwrap()
    };
    open("two").await.close().await.unwrap();
    let _one = open("one").await;
    let start = server.log().len();
    let _two = open("two").await;
    assert_eq!(parsed(&server, start), [""; 0]);
    // The account's row, its owner, and the claim.
    assert_eq!(named(&server, start), (0, 3));
}

/// To prepare a statement, the server locks its tables: also those that are locked by `CREATE INDEX`, or by
/// `VACUUM FULL`.
#[tokio::test]
async fn an_opening_and_the_calls_after_it_do_not_wait_for_a_table_that_they_do_not_use() {
    const LIMIT: Duration = Duration::from_secs(30);
    let server = server();
    let database = server.create_database().unwrap();
    for mode in [Mode::Plain, Mode::Key, Mode::Passphrase] {
        let account = format!("{mode:?}");
        mode.open(&database.url(), &account).await.close().await.unwrap();
    }
    for lock in ["SHARE", "ACCESS EXCLUSIVE"] {
        let other = connect(&database.url()).await;
        let lock_table = format!("BEGIN; LOCK TABLE matrix_sdk.secrets_inbox IN {lock} MODE");
        other.batch_execute(&lock_table).await.unwrap();
        for mode in [Mode::Plain, Mode::Key, Mode::Passphrase] {
            let (url, account) = (database.url(), format!("{mode:?}"));
            let opened = timeout(LIMIT, mode.open(&url, &account)).await;
            let store = opened.unwrap_or_else(|_| panic!("{lock}, {mode:?}: opening waits"));
            store.close().await.unwrap();
        }
        for call in CALLS {
            let (_proxy, store) = reconnected_store(&database).await;
            let made = timeout(LIMIT, call.make(&store)).await;
            made.unwrap_or_else(|_| panic!("{lock}: {call:?} waits"));
            store.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn many_readers_of_a_connection_prepare_its_statements_once() {
    const READERS: usize = 64;
    let server = server();
    let database = server.create_database().unwrap();
    drop(Mode::Key.open(&database.url(), "bot").await);
    // The proxy's delay ensures that all of them have sent a query before anything is prepared.
    let (_proxy, store) = reconnected_store(&database).await;
    let start = server.log().len();
    let mut readers = JoinSet::new();
    for number in 0..READERS {
        let store = store.clone();
        readers.spawn(async move { store.get_custom_value(&number.to_string()).await.unwrap() });
    }
    readers.join_all().await;
    assert_eq!(named(&server, start).0, 1);
}

/// Stores recognise a pool that was made by `build_pool`.
#[tokio::test]
async fn stores_that_share_a_pool_of_build_pool_prepare_their_statements() {
    let server = server();
    let database = server.create_database().unwrap();
    let one = Mode::Key
        .config(&database.url(), "one")
        .pool(PoolSettings { max_size: 1, ..Default::default() })
        .access(OwnershipSettings { cache_bytes: 0, ..Default::default() });
    let pool = one.build_pool().unwrap();
    let other_schema = one.clone().schema("another").account("two");
    let mut stores = Vec::new();
    for config in [&one, &other_schema] {
        let start = server.log().len();
        let store = PostgresCryptoStore::open_with_pool(pool.clone(), config).await.unwrap();
        store.set_custom_value("key", b"value".to_vec()).await.unwrap();
        assert!(named(&server, start).0 > 3);

        let start = server.log().len();
        store.set_custom_value("key", b"next".to_vec()).await.unwrap();
        let (prepared, executed) = named(&server, start);
        assert_eq!(prepared, 0);
        assert!(executed > 0);
        stores.push(store);
    }
    // Accounts in one schema share their statements.
    let config = one.clone().account("three");
    let start = server.log().len();
    let store = PostgresCryptoStore::open_with_pool(pool, &config).await.unwrap();
    let opened = server.log().len();
    store.set_custom_value("key", b"value".to_vec()).await.unwrap();
    assert_eq!(named(&server, start).0, 0);
    // Its first write, too, is sent by name: one of the guard, one of the row, one that counts the commit.
    assert_eq!(named(&server, opened).1, 3);
}

/// A foreign pool may lead to a pooler without prepared statements.
#[tokio::test]
async fn over_a_foreign_pool_nothing_is_prepared_and_no_url_is_needed() {
    let server = server();
    let database = server.create_database().unwrap();
    let postgres = database.url().parse().unwrap();
    let manager = deadpool_postgres::Manager::new(postgres, tokio_postgres::NoTls);
    let pool = deadpool_postgres::Pool::builder(manager).max_size(2).build().unwrap();
    let config = PostgresStoreConfig::for_account("bot").passphrase(Some("a passphrase"));
    let store = PostgresCryptoStore::open_with_pool(pool, &config).await.unwrap();
    store.set_custom_value("key", b"value".to_vec()).await.unwrap();
    assert_eq!(store.get_custom_value("key").await.unwrap(), Some(b"value".to_vec()));
    assert_eq!(named(&server, 0), (0, 0));
}

/// A statement with an outdated plan is prepared again, whatever the language of the server's messages. Any
/// other "feature not supported" error is returned without a retry.
#[tokio::test]
async fn only_a_stale_plan_is_prepared_again() {
    let server = server();
    let database = server.create_database().unwrap();
    let config = Mode::Plain
        .config(&database.url(), "bot")
        .pool(PoolSettings { max_size: 1, ..Default::default() })
        .access(OwnershipSettings { cache_bytes: 0, ..Default::default() })
        .timeouts(Timeouts { retry: Duration::from_secs(60), ..Default::default() });
    let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
    for _ in 0..2 {
        store.get_custom_value("key").await.unwrap();
    }
    let client = connect(&database.url()).await;
    let retype = "ALTER TABLE matrix_sdk.custom_values ALTER COLUMN data TYPE text USING 'x'";
    client.batch_execute(retype).await.unwrap();
    assert_eq!(store.get_custom_value("key").await.unwrap(), None);
    assert!(server.log().contains("cached plan must not change result type"));

    let refuse = "
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN RAISE EXCEPTION ''no'' USING ERRCODE = ''0A000''; END';
        CREATE TRIGGER refuse BEFORE INSERT ON matrix_sdk.message_hashes
            FOR EACH ROW EXECUTE FUNCTION refuse()";
    client.batch_execute(refuse).await.unwrap();
    let hash = OlmMessageHash { sender_key: "key".into(), hash: "hash".into() };
    let changes = Changes { message_hashes: vec![hash], ..Default::default() };
    let saved = timeout(Duration::from_secs(30), store.save_changes(changes)).await.unwrap();
    assert_matches!(saved, Err(Error::Database(error)) if error.sqlstate() == Some("0A000"));
}
