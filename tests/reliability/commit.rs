//! The connection breaks before, during and after `COMMIT`, or the answer stays away. The caller
//! notices nothing; what was written is written once.

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
    stream::{Ledger, observe},
    without_heartbeats,
};

/// A store whose way to the server goes through a proxy that does harm.
pub struct Harmed {
    pub database: TestDatabase,
    pub server: PostgresServer,
    pub proxy: Proxy,
    pub store: PostgresCryptoStore,
}

impl Harmed {
    pub async fn new() -> Self {
        Self::with_defaults(&[]).await
    }

    /// With settings that every session of the database begins with.
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
        // Heartbeats, which are transactions too, stay out of what the rules count.
        let config = Mode::Plain.config(&url, "bot").access(without_heartbeats());
        let config =
            config.timeouts(Timeouts { statement: Duration::from_secs(1), ..Default::default() });
        let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
        Self { database, server, proxy, store }
    }

    /// What the database holds, by a store that remembers nothing.
    pub async fn value(&self, key: &str) -> Option<Vec<u8>> {
        let other = self.observer().await;
        other.get_custom_value(key).await.unwrap()
    }

    pub async fn observer(&self) -> PostgresCryptoStore {
        observe(&self.database.url(), "bot").await
    }

    /// A connection beside the proxy.
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
async fn a_connection_cut_around_its_commit_goes_unnoticed() {
    let mut rng = seeded("cut around COMMIT");
    let harmed = Harmed::new().await;
    let mut ledger = Ledger::default();
    let cuts = [Action::CutBefore, Action::CutDuring, Action::CutAfter];
    let (repeated, before) = (rounds(30, 200), harmed.store.commit_count().await.unwrap());
    for _ in 0..repeated {
        for _ in 0..rng.usize(0..3) {
            let _ = ledger.save(&harmed.store).await;
        }
        let done = harmed.proxy.once(is_commit, rng.choice(&cuts).unwrap().clone());
        if ledger.save(&harmed.store).await.is_err() {
            test_support::stream::reopen(&harmed.store).await;
        }
        assert!(done.load(SeqCst));
    }
    let checked = ledger.check(&harmed.observer().await).await;
    figure("connections cut before, during or after COMMIT, times", repeated);
    figure("acknowledged saves checked after it", checked);
    ledger.assert_no_error();
    // Once, not once more for each lost answer.
    let commits = harmed.store.commit_count().await.unwrap() - before;
    assert_eq!((u64::try_from(checked).unwrap(), commits), (ledger.begun, ledger.begun));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_stays_away_is_asked_for_elsewhere() {
    let harmed = Harmed::new().await;
    harmed.set("old").await;
    // Longer than the store waits: the answers come, to a connection that nobody listens to.
    let done = harmed.proxy.once(is_commit, Action::Delay(Duration::from_secs(8)));
    harmed.set("new").await;
    assert!(done.load(SeqCst));
    harmed.set("newer").await;
    assert_eq!(harmed.value("key").await.unwrap(), b"newer");
    // A read, too.
    let done = harmed.proxy.once(|message| message.runs(), Action::Delay(Duration::from_secs(8)));
    harmed.store.get_user_devices(ruma::user_id!("@bob:example.org")).await.unwrap();
    assert!(done.load(SeqCst), "the read asked nobody");
}

/// The first attempt is stopped in the server, its retry acknowledged, and a later write too. When
/// the first one goes on, it must not undo the later one.
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_stopped_in_the_server_is_fenced_before_it_is_repeated() {
    // The store's end breaks, or hears nothing until it has waited long enough.
    for silence in [Action::BlackHole, Action::CutClient] {
        stopped_and_repeated(silence).await;
    }
}

async fn stopped_and_repeated(at_commit: Action) {
    let harmed = Harmed::new().await;
    harmed.set("first").await;
    let stopped = std::sync::Arc::new(std::sync::Mutex::new(None));
    let slot = stopped.clone();
    harmed.proxy.rule(move |message| {
        let mut slot = slot.lock().unwrap();
        match &*slot {
            // Stopped before it has read anything of the transaction, and so without a lock.
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
    harmed.set("stopped and repeated").await;
    harmed.set("later").await;
    assert_eq!(harmed.value("key").await.unwrap(), b"later");
    let stopped = stopped.lock().unwrap().take().expect("a write that was stopped");
    let pid = stopped.pid();
    drop(stopped);
    let watcher = connect(&harmed.database.url()).await;
    let busy = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND state IN ('active', \
         'idle in transaction')"
    );
    let ended = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
    // It answers into the void, and goes idle.
    test_support::eventually("the stopped one has worked off its messages", || async {
        number(&watcher, &busy).await == 0 || number(&watcher, &ended).await == 0
    })
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(number(&watcher, &busy).await, 0);
    assert_eq!(harmed.value("key").await.unwrap(), b"later", "an old attempt undid a later write");
    harmed.set("latest").await;
}

/// Without its `BEGIN`, a statement would commit by itself, past the guard.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_begin_writes_nothing_outside_a_transaction() {
    for loss in [Action::Drop, Action::Instead("SELECT 1")] {
        let harmed = Harmed::new().await;
        harmed.set("old").await;
        let watcher = connect(&harmed.database.url()).await;
        // Each write says whether its transaction was begun: the statement is then not the first.
        let trigger = "CREATE TABLE alone (key bytea);
            CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
              IF current_setting('idle_in_transaction_session_timeout') IN ('0', '') THEN
                INSERT INTO public.alone VALUES ('lost');
              END IF;
              RETURN new; END $$;
            CREATE TRIGGER note BEFORE INSERT OR UPDATE ON matrix_sdk.custom_values
              FOR EACH ROW EXECUTE FUNCTION note()";
        watcher.batch_execute(trigger).await.unwrap();
        let done = harmed.proxy.once(is_begin, loss.clone());
        let saved = harmed.store.set_custom_value("key", b"new".to_vec()).await;
        assert!(done.load(SeqCst));
        let alone = number(&watcher, "SELECT count(*) FROM alone").await;
        assert_eq!(alone, 0, "{loss:?}: a row was written outside a transaction");
        let expected: &[u8] = if saved.is_ok() { b"new" } else { b"old" };
        assert_eq!(harmed.value("key").await.unwrap(), expected, "{loss:?}: {saved:?}");
        saved.unwrap_or_else(|error| panic!("{loss:?} was not overcome: {error:?}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_that_the_server_has_forgotten_are_prepared_again() {
    let harmed = Harmed::new().await;
    harmed.set("old").await;
    for (round, forget) in ["DEALLOCATE ALL", "DISCARD ALL"].into_iter().enumerate() {
        // In the place of a BEGIN, so that it happens in the store's own session.
        let done = harmed.proxy.once(is_begin, Action::Instead(forget));
        let value = format!("new {round}");
        harmed.set(&value).await;
        assert!(done.load(SeqCst));
        assert_eq!(harmed.value("key").await.unwrap(), value.as_bytes());
        harmed.store.get_user_devices(ruma::user_id!("@bob:example.org")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_a_delete_and_a_counter_of_unknown_outcome_are_done_once() {
    let harmed = Harmed::new().await;
    let store = &harmed.store;
    assert_eq!(store.try_take_leased_lock(60_000, "lock", "first").await.unwrap(), Some(1));
    assert_eq!(store.try_take_leased_lock(0, "lock", "first").await.unwrap(), Some(1));
    for action in [Action::CutBefore, Action::CutDuring, Action::CutAfter] {
        // A lease: the holder changes once, so the generation rises once.
        let before = generation(store, "former").await;
        let statement = |message: &Message<'_>| message.runs() && !is_begin(message);
        let done = harmed.proxy.once(statement, action.clone());
        let after = store.try_take_leased_lock(60_000, "lock", "new").await.unwrap();
        assert!(done.load(SeqCst));
        assert_eq!(after, Some(before + 1), "{action:?}");
        assert_eq!(store.try_take_leased_lock(0, "lock", "new").await.unwrap(), after);

        // A delete that comes to its answer late takes no later value along.
        harmed.set("old").await;
        let commits = store.commit_count().await.unwrap();
        let done = harmed.proxy.once(is_commit, action.clone());
        store.remove_custom_value("key").await.unwrap();
        assert!(done.load(SeqCst));
        // The counter, which a repetition would raise twice.
        assert_eq!(store.commit_count().await.unwrap(), commits + 1, "{action:?}");
        assert_eq!(harmed.value("key").await, None, "{action:?}");
        harmed.set("new").await;
        assert_eq!(harmed.value("key").await.unwrap(), b"new", "{action:?}");
    }
}

/// The lease's generation, taken and let go by another holder.
async fn generation(store: &PostgresCryptoStore, holder: &str) -> u64 {
    let taken = store.try_take_leased_lock(60_000, "lock", holder).await.unwrap().unwrap();
    store.try_take_leased_lock(0, "lock", holder).await.unwrap();
    taken
}
