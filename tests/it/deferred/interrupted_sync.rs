//! A sync is interrupted, the store may be closed and reopened (`Client::pause`, `Client::resume`), and the same
//! machine continues: either no key is lost, or its writes are refused.

use std::{collections::BTreeMap, time::Duration};

use assert_matches::assert_matches;
use matrix_sdk_crypto::store::{CryptoStore, types::PendingChanges};
use matrix_sdk_postgres::{
    Error, OwnershipSettings, PostgresCryptoStore, PostgresStoreConfig, Takeover,
};
use test_support::machine::open_machine;
use tokio::time::timeout;

use super::{
    cuts::is_reopen_required,
    fixture::DeferredSession,
    sync_replay::{Cut, Kind, ROOMS, SyncReplay, bob, open, polls_of, receive, until},
};

/// What happens to the store after the sync was interrupted.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pause {
    Close,
    Reopen,
    /// Closed while the sync runs, so that the sync fails.
    CloseDuringSync,
    /// Closed and reopened while the sync is not polled; it continues afterwards.
    CloseWithoutPolling,
}

/// Interrupts a sync after several numbers of polls.
async fn pause_and_retry(kind: Kind, pause: Pause) {
    let mut replay = SyncReplay::new(kind).await;
    let all = {
        let (_store, machine) = open(&replay.copy().await, true).await;
        polls_of(receive(&machine, kind, &replay.events)).await
    };
    let mut readable = BTreeMap::new();
    let cuts = match pause {
        // Only one, because closing waits for futures that are not polled.
        Pause::CloseWithoutPolling => vec![all / 3],
        _ => vec![4, 6, all / 2],
    };
    for polls in cuts {
        let url = replay.copy().await;
        interrupt_and_pause(&replay, &url, kind, pause, polls).await;
        readable.insert(polls, replay.readable(&url).await);
    }
    assert!(readable.values().all(|rooms| *rooms == ROOMS), "{kind:?}, {pause:?}: {readable:?}");
}

async fn interrupt_and_pause(
    replay: &SyncReplay,
    url: &str,
    kind: Kind,
    pause: Pause,
    polls: usize,
) {
    let cut = Cut { cached: true, polls, when_woken: false };
    let (store, machine) = open(url, true).await;
    let mut sync = Box::pin(receive(&machine, kind, &replay.events));
    let has_ended = until(cut, sync.as_mut()).await.is_some();
    match pause {
        Pause::CloseDuringSync if !has_ended => {
            let (closed, _) = tokio::join!(store.close(), sync);
            closed.unwrap();
        }
        Pause::CloseWithoutPolling if !has_ended => {
            store.close().await.unwrap();
            store.reopen().await.unwrap();
            let _ = sync.await;
        }
        _ => drop(sync),
    }
    if pause == Pause::Close {
        store.close().await.unwrap();
    }
    store.reopen().await.unwrap();
    if let Err(error) = receive(&machine, kind, &replay.events).await {
        assert!(is_reopen_required(&error), "{kind:?}, {pause:?}: {error:?}");
        store.reopen().await.unwrap();
        let machine = open_machine(bob(), store.clone()).await;
        receive(&machine, kind, &replay.events).await.unwrap();
    }
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_and_reopened_after_a_dropped_sync() {
    pause_and_retry(Kind::NewSessions, Pause::Close).await;
    pause_and_retry(Kind::KnownSessions, Pause::Close).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reopened_after_a_dropped_sync() {
    pause_and_retry(Kind::NewSessions, Pause::Reopen).await;
    pause_and_retry(Kind::KnownSessions, Pause::Reopen).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_during_a_sync_and_reopened() {
    pause_and_retry(Kind::NewSessions, Pause::CloseDuringSync).await;
    pause_and_retry(Kind::KnownSessions, Pause::CloseDuringSync).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_and_reopened_in_the_middle_of_a_sync() {
    pause_and_retry(Kind::NewSessions, Pause::CloseWithoutPolling).await;
    pause_and_retry(Kind::KnownSessions, Pause::CloseWithoutPolling).await;
}

/// A machine cannot end its sync after another task has reopened the store.
#[tokio::test]
async fn a_token_is_refused_after_a_reopening_has_dropped_deferred_saves() {
    let fixture = DeferredSession::new().await;
    fixture.store.load_account().await.unwrap();
    fixture.receive().await;
    fixture.store.reopen().await.unwrap();
    assert_matches!(fixture.try_save_token().await, Err(Error::ReopenRequired));
    fixture.build_machine().await;
    fixture.save_token().await;
}

#[tokio::test]
async fn a_token_is_refused_after_a_closed_store_has_refused_a_read_of_the_sync() {
    let fixture = DeferredSession::new().await;
    fixture.store.load_account().await.unwrap();
    fixture.store.close().await.unwrap();
    assert_matches!(fixture.store.get_sessions("key").await, Err(Error::StoreClosed));
    fixture.store.reopen().await.unwrap();
    assert_matches!(fixture.try_save_token().await, Err(Error::ReopenRequired));
    // Closing between syncs does not interrupt any.
    fixture.build_machine().await;
    fixture.store.load_account().await.unwrap();
    fixture.store.close().await.unwrap();
    fixture.store.reopen().await.unwrap();
    fixture.save_token().await;
}

/// As in an aborted upload of one-time keys: either it was stored, or they are uploaded again.
#[tokio::test]
async fn a_dropped_save_of_the_account_interrupts_no_sync() {
    let fixture = DeferredSession::new().await;
    fixture.build_machine().await;
    fixture.store.load_account().await.unwrap();
    for polls in [1, 2, 3] {
        let account = Some(fixture.own.deep_clone());
        let save = fixture.store.save_pending_changes(PendingChanges { account });
        let cut = Cut { cached: true, polls, when_woken: false };
        if until(cut, save).await.is_none() {
            fixture.store.load_account().await.unwrap();
        }
        fixture.save_token().await;
    }
}

#[tokio::test]
async fn loading_the_account_again_ends_saves_that_end_a_sync_until_a_machine_is_built() {
    let fixture = DeferredSession::new().await;
    let save_token = async || fixture.try_save_token().await;
    fixture.store.load_account().await.unwrap();
    fixture.store.load_identity().await.unwrap();
    // The first use by the machine.
    fixture.store.load_account().await.unwrap();
    save_token().await.unwrap();
    save_token().await.unwrap();
    // The machine has lost its account, as after a dropped sync.
    fixture.store.load_account().await.unwrap();
    assert_matches!(save_token().await, Err(Error::ReopenRequired));
    // Reopening alone is not enough.
    fixture.store.reopen().await.unwrap();
    fixture.store.load_account().await.unwrap();
    assert_matches!(save_token().await, Err(Error::ReopenRequired));
    fixture.store.reopen().await.unwrap();
    fixture.build_machine().await;
    fixture.store.load_account().await.unwrap();
    save_token().await.unwrap();
}

/// As in a bot's shutdown: one branch of a `select!` has the sync, and the other closes the store.
#[tokio::test(flavor = "multi_thread")]
async fn closing_does_not_wait_for_a_sync_that_is_not_polled() {
    let mut replay = SyncReplay::new(Kind::NewSessions).await;
    for polls in [1, 2, 5, 9] {
        let url = replay.copy().await;
        let (store, machine) = open(&url, true).await;
        let mut sync = Box::pin(receive(&machine, Kind::NewSessions, &replay.events));
        let cut = Cut { cached: true, polls, when_woken: false };
        let _ = until(cut, sync.as_mut()).await;
        let closed = timeout(Duration::from_secs(40), store.close()).await;
        closed.expect("close() hangs").unwrap();
        // The account is free.
        let config = PostgresStoreConfig::new(&url, "bob")
            .access(OwnershipSettings { takeover: Takeover::RefuseIfAlive, ..Default::default() });
        let next = PostgresCryptoStore::open_with_config(&config).await.unwrap();
        next.close().await.unwrap();
        drop(sync);
    }
}
