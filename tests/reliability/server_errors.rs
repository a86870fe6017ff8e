//! Rule 22: errors of the server are retried, or returned with their code.

use std::time::Duration;

use assert_matches::assert_matches;
use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{Error, PostgresCryptoStore, Timeouts, testing::PostgresServer};
use test_support::{Mode, connect, eventually, number};
use tokio::task::JoinHandle;

struct Bot {
    url: String,
    store: PostgresCryptoStore,
    _database: matrix_sdk_postgres::testing::TestDatabase,
    _server: PostgresServer,
}

impl Bot {
    async fn new(settings: &[(&str, &str)]) -> Self {
        let mut builder = PostgresServer::builder();
        for (name, value) in settings {
            builder = builder.setting(name, value);
        }
        let server = builder.start().unwrap();
        let database = server.create_database().unwrap();
        let url = database.url();
        let config = Mode::Plain
            .config(&url, "bot")
            .timeouts(Timeouts { statement: Duration::from_secs(2), ..Default::default() });
        let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
        store.set_custom_value("key", b"old".to_vec()).await.unwrap();
        Self { url, store, _database: database, _server: server }
    }

    fn write(&self) -> JoinHandle<Result<(), Error>> {
        let store = self.store.clone();
        tokio::spawn(async move { store.set_custom_value("key", b"new".to_vec()).await })
    }

    async fn value(&self) -> Vec<u8> {
        let other = Mode::Plain.open_read_only(&self.url, "bot").await;
        other.get_custom_value("key").await.unwrap().unwrap()
    }
}

/// Asserts that a write is retried after this error.
async fn assert_retried(raise: &str) {
    let bot = Bot::new(&[]).await;
    let client = connect(&bot.url).await;
    let trigger = format!(
        "CREATE SEQUENCE tries;
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           IF nextval('public.tries') < 3 THEN {raise}; END IF; RETURN new; END $$;
         CREATE TRIGGER refuse AFTER INSERT OR UPDATE ON matrix_sdk.custom_values
           FOR EACH ROW EXECUTE FUNCTION refuse()"
    );
    client.batch_execute(&trigger).await.unwrap();
    bot.write().await.unwrap().unwrap_or_else(|error| panic!("{raise}: {error}"));
    assert_eq!(number(&client, "SELECT last_value FROM tries").await, 3, "{raise}");
    assert_eq!(bot.value().await, b"new");
}

#[tokio::test(flavor = "multi_thread")]
async fn serialization_failures_and_deadlocks_are_retried() {
    assert_retried("RAISE EXCEPTION 'no' USING ERRCODE = '40001'").await;
    assert_retried("RAISE EXCEPTION 'no' USING ERRCODE = '40P01'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_shutdown_is_retried() {
    assert_retried("PERFORM pg_terminate_backend(pg_backend_pid())").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_deadlock_is_retried() {
    let bot = Bot::new(&[("deadlock_timeout", "100ms")]).await;
    let mut client = connect(&bot.url).await;
    client.batch_execute("SET deadlock_timeout = '1h'").await.unwrap();
    let other = client.transaction().await.unwrap();
    // The store's write must wait for the second lock while it holds the first one.
    let trigger = "CREATE TABLE hub (n int); INSERT INTO hub VALUES (1)";
    let maker = connect(&bot.url).await;
    maker.batch_execute(trigger).await.unwrap();
    let trigger = "CREATE FUNCTION lock_hub() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           UPDATE public.hub SET n = n + 1; RETURN new; END $$;
         CREATE TRIGGER lock_hub AFTER UPDATE ON matrix_sdk.custom_values
           FOR EACH ROW EXECUTE FUNCTION lock_hub()";
    maker.batch_execute(trigger).await.unwrap();
    other.batch_execute("UPDATE hub SET n = 0").await.unwrap();
    let write = bot.write();
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    eventually("the write waits", || async { number(&maker, waiting).await == 1 }).await;
    // Completes the deadlock, which the store's backend detects first.
    other.batch_execute("SELECT * FROM matrix_sdk.custom_values FOR UPDATE").await.unwrap();
    other.commit().await.unwrap();
    write.await.unwrap().unwrap();
    assert_eq!(bot.value().await, b"new");
}

/// A lock that is not released: the server cancels the statement with a specific error.
#[tokio::test(flavor = "multi_thread")]
async fn a_statement_timeout_is_reported_as_that() {
    let bot = Bot::new(&[]).await;
    let mut client = connect(&bot.url).await;
    let lock = client.transaction().await.unwrap();
    lock.batch_execute("SELECT * FROM matrix_sdk.custom_values FOR UPDATE").await.unwrap();
    let write = bot.write().await.unwrap();
    assert_matches!(write, Err(Error::StatementTimeout) | Err(Error::Database(_)));
    if let Err(Error::Database(error)) = write {
        assert_eq!(error.sqlstate(), Some("57014"), "{error}");
    }
    lock.commit().await.unwrap();
    assert_eq!(bot.value().await, b"old");
    bot.store.reopen().await.unwrap();
    bot.store.set_custom_value("key", b"after".to_vec()).await.unwrap();
    assert_eq!(bot.value().await, b"after");
}

/// The server ends the idle transaction of a scope: it is retried, with the earlier saves.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_transaction_ended_by_the_server_is_retried() {
    use matrix_sdk_crypto::CryptoStoreError;
    let bot = Bot::new(&[]).await;
    let client = connect(&bot.url).await;
    let done: Result<(), CryptoStoreError> = bot
        .store
        .atomically(async {
            bot.store.set_custom_value("key", b"new".to_vec()).await?;
            bot.store.get_custom_value("key").await?;
            let idle = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                        WHERE state = 'idle in transaction'";
            eventually("the scope's transaction is idle", || async {
                number(&client, idle).await == 1
            })
            .await;
            bot.store.get_custom_value("key").await?;
            Ok(())
        })
        .await;
    done.unwrap();
    assert_eq!(bot.value().await, b"new");
    bot.store.set_custom_value("key", b"after".to_vec()).await.unwrap();
}

/// All connections of the server are in use for a while: the write is retried until one is free.
#[tokio::test(flavor = "multi_thread")]
async fn too_many_connections_are_retried() {
    let settings = [("max_connections", "12"), ("superuser_reserved_connections", "0")];
    let bot = Bot::new(&settings).await;
    let admin = connect(&bot.url).await;
    // Terminates the store's connections, and occupies all others.
    let ours = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                WHERE application_name LIKE 'matrix-sdk-postgres%'";
    let mut others = Vec::new();
    loop {
        number(&admin, ours).await;
        let connected = tokio_postgres::connect(&bot.url, tokio_postgres::NoTls).await;
        let Ok((client, connection)) = connected else { break };
        tokio::spawn(connection);
        others.push(client);
    }
    let write = bot.write();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!write.is_finished(), "a connection was free, or the write was not retried");
    others.clear();
    write.await.unwrap().unwrap();
    assert_eq!(bot.value().await, b"new");
}
