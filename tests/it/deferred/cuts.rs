//! A sync interrupted at any poll, by dropping its future or by `kill -9`, and replayed.

use std::fs;

use matrix_sdk_crypto::{
    OlmError,
    store::{CryptoStore, CryptoStoreError},
};
use matrix_sdk_postgres::Error;
use serde_json::{Value, json};
use test_support::{
    child_process::{self, ChildProcess},
    directory::Directory,
    figure,
    machine::open_machine,
    process::signal,
    rounds, seeded,
};
use tokio::task::block_in_place;

use super::sync_replay::{Cut, Kind, ROOMS, SyncReplay, bob, open, polls_of, receive, until};

/// The polls to interrupt at: all of them in the long run.
async fn cuts(
    replay: &mut SyncReplay,
    kind: Kind,
    rng: &mut fastrand::Rng,
    few: usize,
) -> Vec<Cut> {
    let mut all = Vec::new();
    for cached in [false, true] {
        let (_store, machine) = open(&replay.copy().await, cached).await;
        let polls = polls_of(receive(&machine, kind, &replay.events)).await;
        let of = |polls| [false, true].map(|when_woken| Cut { cached, polls, when_woken });
        all.extend((1..=polls).flat_map(of));
    }
    println!("{kind:?}: {} possible cuts", all.len());
    rng.choose_multiple(all.iter().copied(), rounds(few, all.len()))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_of_new_sessions_is_lost() {
    nothing_is_lost(Kind::NewSessions).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_is_lost_next_to_messages_refused_by_strict_trust_settings() {
    nothing_is_lost(Kind::StrictTrust).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_of_known_sessions_is_lost_next_to_refused_messages() {
    nothing_is_lost(Kind::KnownSessions).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_requested_key_is_lost() {
    nothing_is_lost(Kind::KeyRequests).await;
}

async fn nothing_is_lost(kind: Kind) {
    let mut rng = seeded(&format!("{kind:?}"));
    let mut replay = SyncReplay::new(kind).await;
    for cut in cuts(&mut replay, kind, &mut rng, 2).await {
        drop_then_replay(&mut replay, kind, cut).await;
    }
    for cut in cuts(&mut replay, kind, &mut rng, 1).await {
        kill_then_replay(&mut replay, kind, cut).await;
    }
    let mut refused = 0;
    for cut in cuts(&mut replay, kind, &mut rng, 2).await {
        refused += usize::from(drop_and_retry(&mut replay, kind, cut).await);
    }
    figure(&format!("machines ({kind:?}) whose writes were refused after a dropped sync"), refused);
}

/// The sync is dropped, and replayed to another machine.
async fn drop_then_replay(replay: &mut SyncReplay, kind: Kind, cut: Cut) {
    let url = replay.copy().await;
    let (store, machine) = open(&url, cut.cached).await;
    let _ = until(cut, receive(&machine, kind, &replay.events)).await;
    drop(machine);
    store.close().await.unwrap();
    replay.replay(&url).await;
    assert_eq!(replay.readable(&url).await, ROOMS, "{kind:?}, {cut:?}");
}

/// The machine whose sync was dropped receives it again, with its memory ahead of the stored state: either no
/// key is lost, or writes are refused. Returns whether they were.
async fn drop_and_retry(replay: &mut SyncReplay, kind: Kind, cut: Cut) -> bool {
    let url = replay.copy().await;
    let (store, machine) = open(&url, cut.cached).await;
    let _ = until(cut, receive(&machine, kind, &replay.events)).await;
    let result = receive(&machine, kind, &replay.events).await;
    drop(machine);
    let is_refused = result.is_err();
    if let Err(error) = result {
        assert!(is_reopen_required(&error), "{kind:?}, {cut:?}: {error:?}");
        store.reopen().await.unwrap();
        let machine = open_machine(bob(), store.clone()).await;
        receive(&machine, kind, &replay.events).await.unwrap();
    }
    store.close().await.unwrap();
    assert_eq!(replay.readable(&url).await, ROOMS, "{kind:?}, {cut:?}");
    is_refused
}

pub fn is_reopen_required(error: &OlmError) -> bool {
    let OlmError::Store(CryptoStoreError::Backend(error)) = error else { return false };
    matches!(error.downcast_ref(), Some(Error::ReopenRequired))
}

/// Runs in the child process: processes the sync in the task's file, and kills itself at the cut.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let Some(file) = child_process::task() else { return };
    let task: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let part = |name: &str| task[name].clone();
    let kind = serde_json::from_value(part("kind")).unwrap();
    let cut: Cut = serde_json::from_value(part("cut")).unwrap();
    let events = serde_json::from_value(part("events")).unwrap();
    let (_store, machine) = open(task["url"].as_str().unwrap(), cut.cached).await;
    if until(cut, receive(&machine, kind, &events)).await.is_none() {
        signal(std::process::id(), "KILL");
    }
    child_process::send("done");
}

/// The process is killed in the sync, which is replayed to another one.
async fn kill_then_replay(replay: &mut SyncReplay, kind: Kind, cut: Cut) {
    let url = replay.copy().await;
    let directory = Directory::new();
    fs::create_dir(&directory.0).unwrap();
    let file = directory.0.join("task");
    let task = json!({ "url": url, "kind": kind, "cut": cut, "events": replay.events });
    fs::write(&file, task.to_string()).unwrap();
    block_in_place(|| {
        let mut child = ChildProcess::start("deferred::cuts::child", file.to_str().unwrap());
        while child.receive().is_some() {}
        child.child.wait().unwrap();
    });
    replay.replay(&url).await;
    assert_eq!(replay.readable(&url).await, ROOMS, "{kind:?}, {cut:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_of_twenty_new_sessions_is_few_commits() {
    let mut replay = SyncReplay::new(Kind::NewSessions).await;
    let (store, machine) = open(&replay.copy().await, true).await;
    let before = store.commit_count().await.unwrap();
    receive(&machine, Kind::NewSessions, &replay.events).await.unwrap();
    let commits = store.commit_count().await.unwrap() - before;
    assert!(commits <= 4, "a sync with {ROOMS} new sessions made {commits} commits");
    figure("commits of a sync with 20 room keys, first contact", commits);
}
