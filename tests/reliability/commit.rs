//! The connection breaks before, during or after `COMMIT`, or the response is missing. No error is returned, and
//! each save is written once.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{
    PostgresCryptoStore, Timeouts,
    testing::{PostgresServer, TestDatabase},
};
use test_support::{
    Mode, connect, figure, number,
    process::Stopped,
    proxy::{Action, Message, Proxy},
    rounds, seeded,
    stream::Ledger,
    without_heartbeats,
};

/// A store that is connected through a proxy which injects faults.
pub struct ProxiedStore {
    pub database: TestDatabase,
    pub server: PostgresServer,
    pub proxy: Proxy,
    pub store: PostgresCryptoStore,
}

impl ProxiedStore {
    pub async fn new() -> Self {
        Self::with_defaults(&[]).await
    }

    /// With default settings for the sessions of the database.
    pub async fn with_defaults(settings: &[(&str, &str)]) -> Self {
        let server = PostgresServer::start().unwrap();
        let database = server.create_database().unwrap();
        let client = connect(&database.url()).await;
        for (setting, value) in settings {
            let name = database.name();
            let sql = format!("ALTER DATABASE {name} SET {setting} = '{value}'");
            client.batch_execute(&sql).await.unwrap();
        }
        let proxy = Proxy::start(format!("127.0.0.1:{}", server.port()));
        let url = proxy.url(&database.url(), server.port());
        // Without heartbeats, which are transactions too, so that the rules count only the store's messages.
        let config = Mode::Plain.config(&url, "bot").access(without_heartbeats());
        let config =
            config.timeouts(Timeouts { statement: Duration::from_secs(1), ..Default::default() });
        let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
        Self { database, server, proxy, store }
    }

    /// The value in the database, read by a read-only store, which has no cache.
    pub async fn value(&self, key: &str) -> Option<Vec<u8>> {
        let other = self.read_only().await;
        other.get_custom_value(key).await.unwrap()
    }

    pub async fn read_only(&self) -> PostgresCryptoStore {
        Mode::Plain.open_read_only(&self.database.url(), "bot").await
    }

    /// A connection that bypasses the proxy.
    pub async fn connect(&self) -> tokio_postgres::Client {
        connect(&self.database.url()).await
    }

    pub async fn set(&self, value: &str) {
        self.store.set_custom_value("key", value.as_bytes().to_vec()).await.unwrap();
    }
}

pub fn is_commit(message: &Message<'_>) -> bool {
    message.is_query("COMMIT")
}

pub fn is_begin(message: &Message<'_>) -> bool {
    message.is_query("BEGIN")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_around_commit_is_not_an_error() {
    let mut rng = seeded("cut around COMMIT");
    let proxied = ProxiedStore::new().await;
    let mut ledger = Ledger::default();
    let cuts = [Action::CutBefore, Action::CutDuring, Action::CutAfter];
    let (repeated, before) = (rounds(30, 200), proxied.store.commit_count().await.unwrap());
    for _ in 0..repeated {
        for _ in 0..rng.usize(0..3) {
            let _ = ledger.save(&proxied.store).await;
        }
        let done = proxied.proxy.once(is_commit, rng.choice(&cuts).unwrap().clone());
        if ledger.save(&proxied.store).await.is_err() {
            test_support::stream::reopen(&proxied.store).await;
        }
        assert!(done.load(SeqCst));
    }
    let checked = ledger.check(&proxied.read_only().await).await;
    figure("connections cut before, during or after COMMIT, times", repeated);
    figure("acknowledged saves checked after it", checked);
    ledger.assert_no_error();
    // Each save is committed once, although responses were lost.
    let commits = proxied.store.commit_count().await.unwrap() - before;
    assert_eq!((u64::try_from(checked).unwrap(), commits), (ledger.begun, ledger.begun));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_response_is_resolved_on_another_connection() {
    let proxied = ProxiedStore::new().await;
    proxied.set("old").await;
    // Longer than the store waits: the responses arrive on a connection that was abandoned.
    let done = proxied.proxy.once(is_commit, Action::Delay(Duration::from_secs(8)));
    proxied.set("new").await;
    assert!(done.load(SeqCst));
    proxied.set("newer").await;
    assert_eq!(proxied.value("key").await.unwrap(), b"newer");
    // The same for a read.
    let done = proxied.proxy.once(|message| message.runs(), Action::Delay(Duration::from_secs(8)));
    proxied.store.get_user_devices(ruma::user_id!("@bob:example.org")).await.unwrap();
    assert!(done.load(SeqCst), "no message of the read was delayed");
}

/// The first attempt is stopped in the server, its retry and a later write are acknowledged. When the first
/// attempt continues, it must not undo the later write.
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_stopped_in_the_server_is_fenced_before_it_is_repeated() {
    // The store's end breaks, or gets no response within its time limit.
    for silence in [Action::BlackHole, Action::CutClient] {
        stopped_and_repeated(silence).await;
    }
}

async fn stopped_and_repeated(at_commit: Action) {
    let proxied = ProxiedStore::new().await;
    proxied.set("first").await;
    let stopped = std::sync::Arc::new(std::sync::Mutex::new(None));
    let slot = stopped.clone();
    proxied.proxy.rule(move |message| {
        let mut slot = slot.lock().unwrap();
        match &*slot {
            // Stopped before it has read any statement of the transaction, and so without a lock.
            None if is_begin(message) => {
                *slot = Some(Stopped::new(message.backend));
                Action::Pass
            }
            Some(stopped) if stopped.pid() == message.backend && is_commit(message) => {
                at_commit.clone()
            }
            _ => Action::Pass,
        }
    });
    proxied.set("stopped and repeated").await;
    proxied.set("later").await;
    assert_eq!(proxied.value("key").await.unwrap(), b"later");
    let stopped = stopped.lock().unwrap().take().expect("a write that was stopped");
    let pid = stopped.pid();
    drop(stopped);
    let watcher = connect(&proxied.database.url()).await;
    let busy = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND state IN ('active', \
         'idle in transaction')"
    );
    let ended = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
    // Its connection was abandoned; it executes the messages and becomes idle.
    test_support::eventually("the stopped backend has executed its messages", || async {
        number(&watcher, &busy).await == 0 || number(&watcher, &ended).await == 0
    })
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(number(&watcher, &busy).await, 0);
    assert_eq!(proxied.value("key").await.unwrap(), b"later", "an old attempt undid a later write");
    proxied.set("latest").await;
}

/// Without its `BEGIN`, a statement would be committed by itself, without the guard.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_begin_writes_nothing_outside_a_transaction() {
    for loss in [Action::Drop, Action::Instead("SELECT 1")] {
        let proxied = ProxiedStore::new().await;
        proxied.set("old").await;
        let watcher = connect(&proxied.database.url()).await;
        // Each write checks that it is not the first statement of its transaction.
        let trigger = "CREATE TABLE alone (key bytea);
            CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
              IF current_setting('idle_in_transaction_session_timeout') IN ('0', '') THEN
                INSERT INTO public.alone VALUES ('lost');
              END IF;
              RETURN new; END $$;
            CREATE TRIGGER note BEFORE INSERT OR UPDATE ON matrix_sdk.custom_values
              FOR EACH ROW EXECUTE FUNCTION note()";
        watcher.batch_execute(trigger).await.unwrap();
        let done = proxied.proxy.once(is_begin, loss.clone());
        let saved = proxied.store.set_custom_value("key", b"new".to_vec()).await;
        assert!(done.load(SeqCst));
        let alone = number(&watcher, "SELECT count(*) FROM alone").await;
        assert_eq!(alone, 0, "{loss:?}: a row was written outside a transaction");
        let expected: &[u8] = if saved.is_ok() { b"new" } else { b"old" };
        assert_eq!(proxied.value("key").await.unwrap(), expected, "{loss:?}: {saved:?}");
        saved.unwrap_or_else(|error| panic!("{loss:?} was not retried: {error:?}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deallocated_statements_are_prepared_again() {
    let proxied = ProxiedStore::new().await;
    proxied.set("old").await;
    for (round, forget) in ["DEALLOCATE ALL", "DISCARD ALL"].into_iter().enumerate() {
        // Sent in the place of a BEGIN, to run in the store's own session.
        let done = proxied.proxy.once(is_begin, Action::Instead(forget));
        let value = format!("new {round}");
        proxied.set(&value).await;
        assert!(done.load(SeqCst));
        assert_eq!(proxied.value("key").await.unwrap(), value.as_bytes());
        proxied.store.get_user_devices(ruma::user_id!("@bob:example.org")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_a_delete_and_a_counter_of_unknown_outcome_are_done_once() {
    let proxied = ProxiedStore::new().await;
    let store = &proxied.store;
    assert_eq!(store.try_take_leased_lock(60_000, "lock", "first").await.unwrap(), Some(1));
    assert_eq!(store.try_take_leased_lock(0, "lock", "first").await.unwrap(), Some(1));
    for action in [Action::CutBefore, Action::CutDuring, Action::CutAfter] {
        // A lease: the holder changes once, so the generation rises once.
        let before = generation(store, "former").await;
        let statement = |message: &Message<'_>| message.runs() && !is_begin(message);
        let done = proxied.proxy.once(statement, action.clone());
        let after = store.try_take_leased_lock(60_000, "lock", "new").await.unwrap();
        assert!(done.load(SeqCst));
        assert_eq!(after, Some(before + 1), "{action:?}");
        assert_eq!(store.try_take_leased_lock(0, "lock", "new").await.unwrap(), after);

        // A delete whose response is late does not delete a later value.
        proxied.set("old").await;
        let commits = store.commit_count().await.unwrap();
        let done = proxied.proxy.once(is_commit, action.clone());
        store.remove_custom_value("key").await.unwrap();
        assert!(done.load(SeqCst));
        // The counter, which a second commit would raise twice.
        assert_eq!(store.commit_count().await.unwrap(), commits + 1, "{action:?}");
        assert_eq!(proxied.value("key").await, None, "{action:?}");
        proxied.set("new").await;
        assert_eq!(proxied.value("key").await.unwrap(), b"new", "{action:?}");
    }
}

/// The lease's generation after another holder has taken and released it.
async fn generation(store: &PostgresCryptoStore, holder: &str) -> u64 {
    let taken = store.try_take_leased_lock(60_000, "lock", holder).await.unwrap().unwrap();
    store.try_take_leased_lock(0, "lock", holder).await.unwrap();
    taken
}
