//! A sync is torn, the store may be closed and opened again (`Client::pause`, `Client::resume`), and the
//! same machine goes on: either it has lost nothing, or its writes are refused.

use std::{collections::BTreeMap, time::Duration};

use assert_matches::assert_matches;
use matrix_sdk_crypto::store::{CryptoStore, types::PendingChanges};
use matrix_sdk_postgres::{
    Error, OwnershipSettings, PostgresCryptoStore, PostgresStoreConfig, Takeover,
};
use test_support::machine::open_machine;
use tokio::time::timeout;

use super::{
    bench::Bench,
    contact::{Contact, Cut, Kind, ROOMS, bob, open, polls_of, receive, until},
    cuts::is_reopen_required,
};

/// What happens to the store after the sync was torn.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pause {
    Close,
    Reopen,
    /// While the sync still runs, so that it fails.
    CloseBesides,
    /// While nobody polls the sync, which goes on afterwards.
    Between,
}

/// At some of the places where a sync waits.
async fn pause_and_go_on(kind: Kind, pause: Pause) {
    let mut contact = Contact::new(kind).await;
    let all = {
        let (_store, machine) = open(&contact.copy().await, true).await;
        polls_of(receive(&machine, kind, &contact.events)).await
    };
    let mut readable = BTreeMap::new();
    let places = match pause {
        // Closing waits for what nobody polls.
        Pause::Between => vec![all / 3],
        _ => vec![4, 6, all / 2],
    };
    for polls in places {
        let url = contact.copy().await;
        tear_and_pause(&contact, &url, kind, pause, polls).await;
        readable.insert(polls, contact.readable(&url).await);
    }
    assert!(readable.values().all(|rooms| *rooms == ROOMS), "{kind:?}, {pause:?}: {readable:?}");
}

async fn tear_and_pause(contact: &Contact, url: &str, kind: Kind, pause: Pause, polls: usize) {
    let cut = Cut { cached: true, polls, when_woken: false };
    let (store, machine) = open(url, true).await;
    let mut sync = Box::pin(receive(&machine, kind, &contact.events));
    let has_ended = until(cut, sync.as_mut()).await.is_some();
    match pause {
        Pause::CloseBesides if !has_ended => {
            let (closed, _) = tokio::join!(store.close(), sync);
            closed.unwrap();
        }
        Pause::Between if !has_ended => {
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
    if let Err(error) = receive(&machine, kind, &contact.events).await {
        assert!(is_reopen_required(&error), "{kind:?}, {pause:?}: {error:?}");
        store.reopen().await.unwrap();
        let machine = open_machine(bob(), store.clone()).await;
        receive(&machine, kind, &contact.events).await.unwrap();
    }
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_and_reopened_after_a_dropped_sync() {
    pause_and_go_on(Kind::NewSessions, Pause::Close).await;
    pause_and_go_on(Kind::KnownSessions, Pause::Close).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reopened_after_a_dropped_sync() {
    pause_and_go_on(Kind::NewSessions, Pause::Reopen).await;
    pause_and_go_on(Kind::KnownSessions, Pause::Reopen).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_beside_a_sync_and_reopened() {
    pause_and_go_on(Kind::NewSessions, Pause::CloseBesides).await;
    pause_and_go_on(Kind::KnownSessions, Pause::CloseBesides).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_and_reopened_in_the_middle_of_a_sync() {
    pause_and_go_on(Kind::NewSessions, Pause::Between).await;
    pause_and_go_on(Kind::KnownSessions, Pause::Between).await;
}

/// A machine that is in the middle of a sync does not end it after another task has reopened the store.
#[tokio::test]
async fn what_was_deferred_before_a_reopening_is_missed_by_no_token() {
    let bench = Bench::new().await;
    bench.store.load_account().await.unwrap();
    bench.receive().await;
    bench.store.reopen().await.unwrap();
    assert_matches!(bench.try_save_token().await, Err(Error::ReopenRequired));
    bench.build_machine().await;
    bench.save_token().await;
}

#[tokio::test]
async fn a_read_of_a_closed_store_in_the_middle_of_a_sync_is_missed_by_no_token() {
    let bench = Bench::new().await;
    bench.store.load_account().await.unwrap();
    bench.store.close().await.unwrap();
    assert_matches!(bench.store.get_sessions("key").await, Err(Error::StoreClosed));
    bench.store.reopen().await.unwrap();
    assert_matches!(bench.try_save_token().await, Err(Error::ReopenRequired));
    // An orderly pause between syncs costs nothing.
    bench.build_machine().await;
    bench.store.load_account().await.unwrap();
    bench.store.close().await.unwrap();
    bench.store.reopen().await.unwrap();
    bench.save_token().await;
}

/// As when an upload of one-time keys is aborted: all of it was stored, or is uploaded again.
#[tokio::test]
async fn an_account_that_is_saved_for_nobody_tears_nothing() {
    let bench = Bench::new().await;
    bench.build_machine().await;
    bench.store.load_account().await.unwrap();
    for polls in [1, 2, 3] {
        let account = Some(bench.own.deep_clone());
        let save = bench.store.save_pending_changes(PendingChanges { account });
        let cut = Cut { cached: true, polls, when_woken: false };
        if until(cut, save).await.is_none() {
            bench.store.load_account().await.unwrap();
        }
        bench.save_token().await;
    }
}

#[tokio::test]
async fn an_account_loaded_again_ends_the_saves_that_end_a_sync_until_a_machine_is_built() {
    let bench = Bench::new().await;
    let save_token = async || bench.try_save_token().await;
    bench.store.load_account().await.unwrap();
    bench.store.load_identity().await.unwrap();
    // When the machine needs it first.
    bench.store.load_account().await.unwrap();
    save_token().await.unwrap();
    save_token().await.unwrap();
    // When it has lost it.
    bench.store.load_account().await.unwrap();
    assert_matches!(save_token().await, Err(Error::ReopenRequired));
    // By reopening alone it does not get it back.
    bench.store.reopen().await.unwrap();
    bench.store.load_account().await.unwrap();
    assert_matches!(save_token().await, Err(Error::ReopenRequired));
    bench.store.reopen().await.unwrap();
    bench.build_machine().await;
    bench.store.load_account().await.unwrap();
    save_token().await.unwrap();
}

/// As a bot ends: the sync is in one branch, and the other closes the store before the first is dropped.
#[tokio::test(flavor = "multi_thread")]
async fn closing_does_not_wait_for_a_sync_that_nobody_polls() {
    let mut contact = Contact::new(Kind::NewSessions).await;
    for polls in [1, 2, 5, 9] {
        let url = contact.copy().await;
        let (store, machine) = open(&url, true).await;
        let mut sync = Box::pin(receive(&machine, Kind::NewSessions, &contact.events));
        let cut = Cut { cached: true, polls, when_woken: false };
        let _ = until(cut, sync.as_mut()).await;
        let closed = timeout(Duration::from_secs(40), store.close()).await;
        closed.expect("close() stands still").unwrap();
        // The account is free.
        let config = PostgresStoreConfig::new(&url, "bob")
            .access(OwnershipSettings { takeover: Takeover::RefuseIfAlive, ..Default::default() });
        let next = PostgresCryptoStore::open_with_config(&config).await.unwrap();
        next.close().await.unwrap();
        drop(sync);
    }
}
