//! Rule 23: a claim that comes late takes nothing, and one that was given up blocks nobody.

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

use crate::commit::{Harmed, is_begin, is_commit};

/// As a backup from before the owner, and of before its last commit.
const SET_BACK: &str = "UPDATE matrix_sdk.account_owners SET token = '\\x00', name = 'older';
                        UPDATE matrix_sdk.account_lanes SET commits = commits - 1;
                        DELETE FROM matrix_sdk.account_handles";

async fn open(url: &str) -> Result<PostgresCryptoStore, OpenStoreError> {
    PostgresCryptoStore::open_with_config(&Mode::Plain.config(url, "bot")).await
}

async fn set(store: &PostgresCryptoStore, value: &str) {
    store.set_custom_value("key", value.as_bytes().to_vec()).await.unwrap();
}

fn through_proxy(harmed: &Harmed) -> String {
    harmed.proxy.url(&harmed.database.url(), harmed.server.port())
}

pub fn is_claim(message: &Message<'_>) -> bool {
    // The statement's text, or the transaction in which it runs.
    message.tag == b'P' && message.body.windows(6).any(|bytes| bytes == b"claim(")
}

fn is_sync(message: &Message<'_>) -> bool {
    message.tag == b'S'
}

/// A claim is held on its way or stopped in the server, its opener asks again and gets the account,
/// another one takes over and writes; then the first claim goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_claim_takes_nothing_back() {
    let moments = [
        ("BEGIN", is_begin as fn(&Message<'_>) -> bool),
        ("the claim", is_claim),
        ("COMMIT", is_commit),
    ];
    for (moment, at) in moments {
        for stop_server in [false, true] {
            // Of a claim whose end never arrives the server would hold the row: see "A stopped server
            // process" in docs/reliability.md.
            let at = if stop_server && moment == "the claim" { is_sync } else { at };
            println!("{} at {moment}", if stop_server { "stopped" } else { "held" });
            let harmed = Harmed::new().await;
            let url = through_proxy(&harmed);
            let stopped = Arc::new(std::sync::Mutex::new(None));
            let (slot, pid) = (stopped.clone(), Arc::new(AtomicU32::new(0)));
            let backend = pid.clone();
            let mut claiming = 0;
            harmed.proxy.rule(move |message| {
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
            // Waits for an answer no longer than a second.
            let config = Mode::Plain
                .config(&url, "bot")
                .timeouts(Timeouts { statement: Duration::from_secs(1), ..Default::default() });
            let first = PostgresCryptoStore::open_with_config(&config).await;
            let backend = backend.load(SeqCst);
            assert_ne!(backend, 0, "no claim was caught");
            if let Ok(first) = &first {
                set(first, "first").await;
            }
            // A stopped process may hold the owner's row.
            let takes_over = tokio::spawn({
                let url = harmed.database.url();
                async move { open(&url).await }
            });
            let watcher = connect(&harmed.database.url()).await;
            let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
            eventually("the second opener has the account, or waits", || async {
                takes_over.is_finished() || number(&watcher, waits).await > 0
            })
            .await;
            drop(stopped.lock().unwrap().take());
            let second = takes_over.await.unwrap().unwrap();
            set(&second, "second").await;
            harmed.proxy.let_go();
            let busy = format!(
                "SELECT count(*) FROM pg_stat_activity WHERE pid = {backend} AND state <> 'idle'"
            );
            eventually("the late claim has ended", || async { number(&watcher, &busy).await == 0 })
                .await;
            set(&second, "still the second's").await;
            assert_eq!(harmed.value("key").await.unwrap(), b"still the second's");
        }
    }
}

/// Without any fault: an `open()` that is dropped while it waits takes nothing afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_that_was_given_up_takes_nothing_later() {
    let harmed = Harmed::new().await;
    harmed.set("first").await;
    let mut client = connect(&harmed.database.url()).await;
    let held = client.transaction().await.unwrap();
    held.batch_execute("SELECT FROM matrix_sdk.account_owners FOR SHARE").await.unwrap();
    let url = harmed.database.url();
    let opening = timeout(Duration::from_millis(500), open(&url));
    assert!(opening.await.is_err(), "the opener did not wait");
    held.commit().await.unwrap();
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%claim(%'
                 AND pid <> pg_backend_pid() AND state <> 'idle'";
    eventually("the claim has ended", || async { number(&client, waits).await == 0 }).await;
    harmed.set("still ours").await;
}

/// At whatever moment an `open()` is dropped, the account is free for the next one: nothing but its
/// own release can tell, for the heartbeats are long.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_that_is_dropped_at_any_poll_blocks_nobody() {
    let harmed = Harmed::new().await;
    let url = harmed.database.url();
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
            assert!(polls > 3, "the opening was never dropped half done");
            return;
        }
    }
}

/// The claim's `COMMIT` is cut around, or its answer stays away: it is asked for, with the same token.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_without_an_answer_is_asked_for_again() {
    let actions = [Action::CutBefore, Action::CutDuring, Action::CutAfter, Action::BlackHole];
    for action in actions {
        let harmed = Harmed::new().await;
        let mut claiming = false;
        let at_claim = move |message: &Message<'_>| {
            claiming |= is_claim(message);
            claiming && is_commit(message)
        };
        let done = harmed.proxy.once(at_claim, action.clone());
        let config = Mode::Plain.config(&through_proxy(&harmed), "bot");
        let config =
            config.timeouts(Timeouts { statement: Duration::from_secs(1), ..Default::default() });
        let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
        assert!(done.load(SeqCst), "{action:?}");
        set(&store, "value").await;
        let client = connect(&harmed.database.url()).await;
        let openings = number(&client, "SELECT count(*) FROM matrix_sdk.account_handles").await;
        assert_eq!(openings, 1, "{action:?}");
    }
}

/// The claim's `COMMIT` is cut around, and the database is set back before the claim is asked for again.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_finds_the_database_set_back_says_so_and_takes_nothing() {
    for action in [Action::CutBefore, Action::CutAfter] {
        for reopens in [true, false] {
            println!("{action:?}, reopened: {reopens}");
            let harmed = Harmed::new().await;
            harmed.set("first").await;
            harmed.set("second").await;
            harmed.store.close().await.unwrap();
            let client = harmed.connect().await;
            let away = Arc::new(AtomicBool::new(false));
            let (is_away, at_commit) = (away.clone(), action.clone());
            let (mut claiming, mut is_cut) = (0, false);
            harmed.proxy.rule(move |message| {
                claiming = if is_claim(message) { message.backend } else { claiming };
                match claiming == message.backend && is_commit(message) && !is_cut {
                    true => {
                        is_cut = true;
                        is_away.store(true, SeqCst);
                        at_commit.clone()
                    }
                    // Nothing is asked until the database has been set back.
                    false if is_away.load(SeqCst) => Action::CutBefore,
                    false => Action::Pass,
                }
            });
            let claim = tokio::spawn({
                let (store, url) = (harmed.store.clone(), through_proxy(&harmed));
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
            client.batch_execute(SET_BACK).await.unwrap();
            away.store(false, SeqCst);
            let refused = claim.await.unwrap();
            match reopens {
                true => assert_matches!(refused, Err(Error::DatabaseRolledBack)),
                // It has committed nothing that could be missing.
                false => {
                    assert_matches!(refused, Err(Error::Superseded { by, .. }) if by == "older")
                }
            }
            assert_eq!(number(&client, "SELECT count(*) FROM matrix_sdk.account_handles").await, 0);
            let older = "SELECT count(*) FROM matrix_sdk.account_owners
                         WHERE name = 'older' AND token = '\\x00'";
            assert_eq!(number(&client, older).await, 1, "the account was taken");
            if reopens {
                let refused = harmed.store.set_custom_value("key", b"late".to_vec()).await;
                assert_matches!(refused, Err(Error::DatabaseRolledBack));
                assert_matches!(harmed.store.reopen().await, Err(Error::DatabaseRolledBack));
            }
        }
    }
}
