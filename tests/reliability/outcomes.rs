//! Rule 21: only the server decides the outcome of a transaction. An error that a pooler sends in the server's
//! place leaves the outcome unknown.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use matrix_sdk_crypto::{CryptoStoreError, store::CryptoStore};
use matrix_sdk_postgres::{
    Error, PoolSettings, PostgresCryptoStore, Timeouts, testing::PostgresServer,
};
use test_support::{
    Mode, connect, eventually, number,
    pooler::{Pooler, Release},
    process::Stopped,
    proxy::{Action, Message, Proxy},
    rounds, without_heartbeats,
};

use crate::commit::{ProxiedStore, is_begin, is_commit};

/// The pooler's time limit in seconds.
const QUERY_TIMEOUT: &str = "query_timeout = 1\n";

/// A store behind a pooler with a short time limit, and a fault proxy between pooler and server.
struct Pooled {
    server: PostgresServer,
    proxy: Proxy,
    store: PostgresCryptoStore,
    _pooler: Pooler,
}

impl Pooled {
    async fn new() -> Self {
        let server = PostgresServer::start().unwrap();
        let proxy = Proxy::start(format!("127.0.0.1:{}", server.port()));
        let pooler = Pooler::start_before(Release::Old, &server, proxy.port(), QUERY_TIMEOUT);
        let config = Mode::Plain.config(&pooler.url(&server.url(), &server), "bot");
        let config = config.pool(PoolSettings { prepared_statements: false, ..Default::default() });
        // Without heartbeats, which are transactions too, so that the rules match only the store's messages.
        let config = config.access(without_heartbeats());
        let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
        Self { server, proxy, store, _pooler: pooler }
    }

    async fn set(&self, value: &str) {
        self.store.set_custom_value("key", value.as_bytes().to_vec()).await.unwrap();
    }

    async fn value(&self) -> Vec<u8> {
        let read_only = Mode::Plain.open_read_only(&self.server.url(), "bot").await;
        read_only.get_custom_value("key").await.unwrap().unwrap()
    }

    /// Waits until the backend has executed the late messages, and has ended.
    async fn has_ended(&self, backend: u32) {
        let watcher = connect(&self.server.url()).await;
        let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {backend}");
        eventually("the late attempt has ended", || async { number(&watcher, &sql).await == 0 })
            .await;
    }
}

/// The link stalls in a write, the pooler times out, the write is retried, later ones follow; then the held
/// messages are delivered.
#[tokio::test(flavor = "multi_thread")]
async fn messages_delivered_after_the_poolers_timeout_change_nothing() {
    for at in [is_begin, is_commit, |message: &Message<'_>| message.tag == b'P'] {
        let pooled = Pooled::new().await;
        pooled.set("first").await;
        let commits = pooled.store.commit_count().await.unwrap();
        let backend = Arc::new(AtomicU32::new(0));
        let (slot, mut begun) = (backend.clone(), 0);
        pooled.proxy.rule(move |message| {
            // A statement of a write, not of a read.
            begun = if is_begin(message) { message.backend } else { begun };
            if slot.load(SeqCst) == 0 && begun == message.backend && at(message) {
                slot.store(message.backend, SeqCst);
                return Action::Hold;
            }
            Action::Pass
        });
        pooled.set("second").await;
        pooled.set("third").await;
        let held = backend.load(SeqCst);
        assert_ne!(held, 0, "nothing was held");
        pooled.proxy.release();
        pooled.has_ended(held).await;
        assert_eq!(pooled.value().await, b"third", "a late attempt undid a later write");
        assert_eq!(pooled.store.commit_count().await.unwrap(), commits + 2);
        pooled.set("fourth").await;
    }
}

/// The backend is stopped instead of the link.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_process_resumed_after_the_poolers_timeout_changes_nothing() {
    for _ in 0..rounds(1, 20) {
        let pooled = Pooled::new().await;
        pooled.set("first").await;
        let commits = pooled.store.commit_count().await.unwrap();
        let stopped = Arc::new(std::sync::Mutex::new(None));
        let slot = stopped.clone();
        pooled.proxy.rule(move |message| {
            let mut slot = slot.lock().unwrap();
            if slot.is_none() && is_begin(message) {
                *slot = Some(Stopped::new(message.backend));
            }
            Action::Pass
        });
        pooled.set("second").await;
        pooled.set("third").await;
        let stopped = stopped.lock().unwrap().take().expect("a process that was stopped");
        let backend = stopped.pid();
        drop(stopped);
        pooled.has_ended(backend).await;
        assert_eq!(pooled.value().await, b"third", "a late attempt undid a later write");
        assert_eq!(pooled.store.commit_count().await.unwrap(), commits + 2);
    }
}

/// An error in the server's place, before the response to `COMMIT`: the transaction is committed nevertheless, and
/// not a second time.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_in_the_servers_place_is_an_unknown_outcome() {
    let impostors = [
        ("FATAL", "08P01"),
        ("FATAL", "58000"),
        ("FATAL", "40001"),
        ("ERROR", "XX000"),
        ("ERROR", "40001"),
        ("ERROR", "MX001"),
        ("PANIC", "25P02"),
    ];
    for at in [is_begin, |message: &Message<'_>| message.tag == b'S'] {
        for (severity, code) in impostors {
            let proxied = ProxiedStore::new().await;
            proxied.set("old").await;
            let commits = proxied.store.commit_count().await.unwrap();
            let mut begun = false;
            let at_write = move |message: &Message<'_>| {
                begun |= is_begin(message);
                begun && at(message)
            };
            let done = proxied.proxy.once(at_write, Action::ForgedError(severity, code));
            proxied.set("new").await;
            assert!(done.load(SeqCst));
            assert_eq!(proxied.value("key").await.unwrap(), b"new");
            let found = proxied.store.commit_count().await.unwrap();
            assert_eq!(found, commits + 1, "{severity} {code}");
        }
    }
}

/// The sessions' default isolation level does not change outcomes.
#[tokio::test(flavor = "multi_thread")]
async fn the_isolation_of_a_session_changes_no_outcome() {
    for isolation in ["repeatable read", "serializable"] {
        let defaults = [("default_transaction_isolation", isolation), ("lock_timeout", "100ms")];
        let proxied = ProxiedStore::with_defaults(&defaults).await;
        let actions = [Action::CutBefore, Action::CutAfter, Action::CutClient, Action::BlackHole];
        for (number, action) in actions.into_iter().enumerate() {
            proxied.set("old").await;
            let commits = proxied.store.commit_count().await.unwrap();
            let done = proxied.proxy.once(is_commit, action.clone());
            let value = number.to_string();
            proxied.set(&value).await;
            assert!(done.load(SeqCst));
            assert_eq!(proxied.value("key").await.unwrap(), value.as_bytes());
            let found = proxied.store.commit_count().await.unwrap();
            assert_eq!(found, commits + 1, "{isolation}, {action:?}");
        }
    }
}

/// Another writer with the same token, such as a clone of this machine, is detected by the count.
#[tokio::test(flavor = "multi_thread")]
async fn a_copied_token_writes_nothing_and_is_detected() {
    let proxied = ProxiedStore::new().await;
    proxied.set("ours").await;
    let client = connect(&proxied.database.url()).await;
    let clone = "UPDATE matrix_sdk.account_lanes SET commits = commits + 1";
    client.batch_execute(clone).await.unwrap();
    let refused = proxied.store.set_custom_value("key", b"late".to_vec()).await;
    assert!(refused.as_ref().is_err_and(test_support::stream::is_superseded), "{refused:?}");
    assert_eq!(proxied.value("key").await.unwrap(), b"ours");
}

/// A scope's `COMMIT` gets no response, and the server is away for longer than the store tries to resolve the
/// outcome, but not longer than it retries. The commit that it then finds is its own, not that of a copy.
#[tokio::test(flavor = "multi_thread")]
async fn a_scopes_commit_that_is_resolved_late_is_recognised() {
    let proxied = ProxiedStore::new().await;
    let url = proxied.proxy.url(&proxied.database.url(), proxied.server.port());
    let config = Mode::Plain.config(&url, "scoped").access(without_heartbeats());
    let config =
        config.timeouts(Timeouts { retry: Duration::from_millis(800), ..Default::default() });
    let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
    for away_for in [900, 1100, 1300, 1500, 5000] {
        let (away, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (is_away, is_sent) = (away.clone(), sent.clone());
        proxied.proxy.rule(move |message| {
            if is_away.load(SeqCst) {
                return Action::CutBefore;
            }
            if is_commit(message) && !is_sent.swap(true, SeqCst) {
                is_away.store(true, SeqCst);
                return Action::CutAfter;
            }
            Action::Pass
        });
        let commits = commits_of(&proxied).await;
        let saving = tokio::spawn({
            let store = store.clone();
            async move {
                let save = store.atomically(async {
                    store.set_custom_value("key", b"value".to_vec()).await?;
                    store.transaction().await?.query("SELECT 1", &[]).await?;
                    Ok::<_, CryptoStoreError>(())
                });
                save.await
            }
        });
        eventually("COMMIT was sent", async || sent.load(SeqCst)).await;
        tokio::time::sleep(Duration::from_millis(away_for)).await;
        away.store(false, SeqCst);
        let saved = saving.await.unwrap();
        // Whatever the result, the store is still the owner.
        if saved.is_err() {
            test_support::stream::reopen(&store).await;
        }
        store.set_custom_value("key", b"later".to_vec()).await.unwrap();
        assert_eq!(commits_of(&proxied).await, commits + 2, "away for {away_for} ms: {saved:?}");
    }
}

async fn commits_of(proxied: &ProxiedStore) -> i64 {
    let client = connect(&proxied.database.url()).await;
    number(&client, "SELECT max(commits) FROM matrix_sdk.account_lanes").await
}

/// A fence takes effect, and its response is missing. The store must not take it for that of a copy.
#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_fence_is_recognised_as_the_stores_own() {
    for pause in [900, 1100, 1300, 1700].map(Duration::from_millis) {
        let proxied = ProxiedStore::new().await;
        let url = proxied.proxy.url(&proxied.database.url(), proxied.server.port());
        let timeouts = Timeouts {
            statement: Duration::from_secs(1),
            retry: Duration::from_millis(800),
            ..Default::default()
        };
        let config = Mode::Plain.config(&url, "bot").access(without_heartbeats());
        let store =
            PostgresCryptoStore::open_with_config(&config.timeouts(timeouts)).await.unwrap();
        store.set_custom_value("key", b"before".to_vec()).await.unwrap();
        let (mut commits, mut away_since) = (0, None::<std::time::Instant>);
        proxied.proxy.rule(move |message| {
            if away_since.is_some_and(|since| since.elapsed() < pause) {
                return Action::CutBefore;
            }
            if !is_commit(message) {
                return Action::Pass;
            }
            commits += 1;
            match commits {
                1 => Action::CutBefore,
                2 => {
                    away_since = Some(std::time::Instant::now());
                    Action::CutAfter
                }
                _ => Action::Pass,
            }
        });
        let saved = store.set_custom_value("key", b"saved".to_vec()).await;
        let is_lost =
            |error: &Error| matches!(error, Error::Superseded { .. } | Error::DatabaseRolledBack);
        assert!(!saved.as_ref().is_err_and(is_lost), "{pause:?}: {saved:?}");
        if saved.is_err() {
            tokio::time::sleep(pause).await;
            store.reopen().await.unwrap();
        }
        store.set_custom_value("key", b"later".to_vec()).await.unwrap();
        assert_eq!(proxied.value("key").await.unwrap(), b"later", "{pause:?}");
    }
}
