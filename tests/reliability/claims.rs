//! Rule 23: a late claim takes nothing, and an abandoned one leaves the account free.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use assert_matches::assert_matches;
use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{
    Error, OpenStoreError, OwnershipSettings, PostgresCryptoStore, Takeover, Timeouts,
};
use test_support::{
    Mode, connect, eventually, number,
    process::Stopped,
    proxy::{Action, Message},
    without_heartbeats,
};
use tokio::time::timeout;

use crate::commit::{ProxiedStore, is_begin, is_commit};

/// The state of a backup from before this owner and before its last commit.
const ROLL_BACK: &str = "UPDATE matrix_sdk.account_owners SET token = '\\x00', name = 'older';
                        UPDATE matrix_sdk.account_lanes SET commits = commits - 1;
                        DELETE FROM matrix_sdk.account_handles";

async fn open(url: &str) -> Result<PostgresCryptoStore, OpenStoreError> {
    PostgresCryptoStore::open_with_config(&Mode::Plain.config(url, "bot")).await
}

async fn set(store: &PostgresCryptoStore, value: &str) {
    store.set_custom_value("key", value.as_bytes().to_vec()).await.unwrap();
}

fn through_proxy(proxied: &ProxiedStore) -> String {
    proxied.proxy.url(&proxied.database.url(), proxied.server.port())
}

pub fn is_claim(message: &Message<'_>) -> bool {
    // Either the statement's text, or the `BEGIN` of its transaction.
    message.tag == b'P' && message.body.windows(6).any(|bytes| bytes == b"claim(")
}

fn is_sync(message: &Message<'_>) -> bool {
    message.tag == b'S'
}

/// A claim is held on the wire or stopped in the server, its opener retries and gets the account, another one
/// takes over and writes; then the first claim continues.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_claim_does_not_take_the_account_back() {
    let moments = [
        ("BEGIN", is_begin as fn(&Message<'_>) -> bool),
        ("the claim", is_claim),
        ("COMMIT", is_commit),
    ];
    for (moment, at) in moments {
        for stop_server in [false, true] {
            // If the claim's `Sync` message never arrived, the transaction would hold the row's lock: see "A
            // stopped server process" in docs/reliability.md.
            let at = if stop_server && moment == "the claim" { is_sync } else { at };
            println!("{} at {moment}", if stop_server { "stopped" } else { "held" });
            let proxied = ProxiedStore::new().await;
            let url = through_proxy(&proxied);
            let stopped = Arc::new(std::sync::Mutex::new(None));
            let (slot, pid) = (stopped.clone(), Arc::new(AtomicU32::new(0)));
            let backend = pid.clone();
            let mut claiming = 0;
            proxied.proxy.rule(move |message| {
                claiming = if is_claim(message) { message.backend } else { claiming };
                let ours = is_begin(message) || claiming == message.backend;
                if pid.load(SeqCst) != 0 || !ours || !at(message) {
                    return Action::Pass;
                }
                pid.store(message.backend, SeqCst);
                if stop_server {
                    *slot.lock().unwrap() = Some(Stopped::when_asleep(message.backend));
                    return Action::CutClient;
                }
                Action::Hold
            });
            // A time limit of a second for a response.
            let config = Mode::Plain
                .config(&url, "bot")
                .timeouts(Timeouts { statement: Duration::from_secs(1), ..Default::default() });
            let first = PostgresCryptoStore::open_with_config(&config).await;
            let backend = backend.load(SeqCst);
            assert_ne!(backend, 0, "no claim was caught");
            if let Ok(first) = &first {
                set(first, "first").await;
            }
            // The stopped process may hold the lock on the owner's row.
            let takes_over = tokio::spawn({
                let url = proxied.database.url();
                async move { open(&url).await }
            });
            let watcher = connect(&proxied.database.url()).await;
            let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
            eventually("the second opener has the account, or waits", || async {
                takes_over.is_finished() || number(&watcher, waits).await > 0
            })
            .await;
            drop(stopped.lock().unwrap().take());
            let second = takes_over.await.unwrap().unwrap();
            set(&second, "second").await;
            proxied.proxy.release();
            let busy = format!(
                "SELECT count(*) FROM pg_stat_activity WHERE pid = {backend} AND state <> 'idle'"
            );
            eventually("the late claim has ended", || async { number(&watcher, &busy).await == 0 })
                .await;
            set(&second, "still the second's").await;
            assert_eq!(proxied.value("key").await.unwrap(), b"still the second's");
        }
    }
}

/// Without a fault: an `open()` that is dropped while it waits takes nothing afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_open_takes_nothing_later() {
    let proxied = ProxiedStore::new().await;
    proxied.set("first").await;
    let mut client = connect(&proxied.database.url()).await;
    let held = client.transaction().await.unwrap();
    held.batch_execute("SELECT FROM matrix_sdk.account_owners FOR SHARE").await.unwrap();
    let url = proxied.database.url();
    let opening = timeout(Duration::from_millis(500), open(&url));
    assert!(opening.await.is_err(), "the opener did not wait");
    held.commit().await.unwrap();
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%claim(%'
                 AND pid <> pg_backend_pid() AND state <> 'idle'";
    eventually("the claim has ended", || async { number(&client, waits).await == 0 }).await;
    proxied.set("still ours").await;
}

/// After an `open()` is dropped at any poll, the account is free for the next one. Because of the long heartbeat
/// interval only the dropped open's own release can free it.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_dropped_at_any_poll_leaves_the_account_free() {
    let proxied = ProxiedStore::new().await;
    let url = proxied.database.url();
    let config = Mode::Plain.config(&url, "other").access(without_heartbeats());
    let waits = config.clone().access(OwnershipSettings {
        takeover: Takeover::WaitUntilFree(Duration::from_secs(30)),
        ..without_heartbeats()
    });
    // Keeps the heartbeat of this process alive.
    let keeper = Mode::Plain.config(&url, "keeper").access(without_heartbeats());
    let _keeper = PostgresCryptoStore::open_with_config(&keeper).await.unwrap();
    for polls in 1.. {
        let mut opening = Box::pin(PostgresCryptoStore::open_with_config(&config));
        let (mut polled, is_open) = (0, AtomicBool::new(false));
        std::future::poll_fn(|context| {
            polled += 1;
            let ready = opening.as_mut().poll(context).is_ready();
            is_open.store(ready, SeqCst);
            match ready || polled == polls {
                true => std::task::Poll::Ready(()),
                false => std::task::Poll::Pending,
            }
        })
        .await;
        drop(opening);
        let next = PostgresCryptoStore::open_with_config(&waits).await;
        next.unwrap_or_else(|error| panic!("dropped at poll {polls}: {error}"));
        if is_open.load(SeqCst) {
            assert!(polls > 3, "the opening was never dropped before its end");
            return;
        }
    }
}

/// The connection breaks around the claim's `COMMIT`, or its response is missing: the claim is resolved with the
/// same token.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_of_unknown_outcome_is_resolved() {
    let actions = [Action::CutBefore, Action::CutDuring, Action::CutAfter, Action::BlackHole];
    for action in actions {
        let proxied = ProxiedStore::new().await;
        let mut claiming = false;
        let at_claim = move |message: &Message<'_>| {
            claiming |= is_claim(message);
            claiming && is_commit(message)
        };
        let done = proxied.proxy.once(at_claim, action.clone());
        let config = Mode::Plain.config(&through_proxy(&proxied), "bot");
        let config =
            config.timeouts(Timeouts { statement: Duration::from_secs(1), ..Default::default() });
        let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
        assert!(done.load(SeqCst), "{action:?}");
        set(&store, "value").await;
        let client = connect(&proxied.database.url()).await;
        let openings = number(&client, "SELECT count(*) FROM matrix_sdk.account_handles").await;
        assert_eq!(openings, 1, "{action:?}");
    }
}

/// The connection breaks around the claim's `COMMIT`, and the database is rolled back before the claim is resolved.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_in_a_rolled_back_database_fails_and_takes_nothing() {
    for action in [Action::CutBefore, Action::CutAfter] {
        for reopens in [true, false] {
            println!("{action:?}, reopened: {reopens}");
            let proxied = ProxiedStore::new().await;
            proxied.set("first").await;
            proxied.set("second").await;
            proxied.store.close().await.unwrap();
            let client = proxied.connect().await;
            let away = Arc::new(AtomicBool::new(false));
            let (is_away, at_commit) = (away.clone(), action.clone());
            let (mut claiming, mut is_cut) = (0, false);
            proxied.proxy.rule(move |message| {
                claiming = if is_claim(message) { message.backend } else { claiming };
                match claiming == message.backend && is_commit(message) && !is_cut {
                    true => {
                        is_cut = true;
                        is_away.store(true, SeqCst);
                        at_commit.clone()
                    }
                    // Other messages are dropped until the database was rolled back.
                    false if is_away.load(SeqCst) => Action::CutBefore,
                    false => Action::Pass,
                }
            });
            let claim = tokio::spawn({
                let (store, url) = (proxied.store.clone(), through_proxy(&proxied));
                async move {
                    match reopens {
                        true => store.reopen().await,
                        false => open(&url).await.map(drop).map_err(|error| match error {
                            OpenStoreError::Store(error) => error,
                            error => panic!("{error:?}"),
                        }),
                    }
                }
            });
            eventually("COMMIT is cut", async || away.load(SeqCst)).await;
            client.batch_execute(ROLL_BACK).await.unwrap();
            away.store(false, SeqCst);
            let refused = claim.await.unwrap();
            match reopens {
                true => assert_matches!(refused, Err(Error::DatabaseRolledBack)),
                // This store has made no commit that could be missing, so it is a takeover.
                false => {
                    assert_matches!(refused, Err(Error::Superseded { by, .. }) if by == "older")
                }
            }
            assert_eq!(number(&client, "SELECT count(*) FROM matrix_sdk.account_handles").await, 0);
            let older = "SELECT count(*) FROM matrix_sdk.account_owners
                         WHERE name = 'older' AND token = '\\x00'";
            assert_eq!(number(&client, older).await, 1, "the account was taken");
            if reopens {
                let refused = proxied.store.set_custom_value("key", b"late".to_vec()).await;
                assert_matches!(refused, Err(Error::DatabaseRolledBack));
                assert_matches!(proxied.store.reopen().await, Err(Error::DatabaseRolledBack));
            }
        }
    }
}
