//! A sync that is cut anywhere, by dropping its future or by `kill -9`, and sent again.

use std::fs;

use matrix_sdk_crypto::{
    OlmError,
    store::{CryptoStore, CryptoStoreError},
};
use matrix_sdk_postgres::Error;
use serde_json::{Value, json};
use test_support::{
    again::{self, Again},
    directory::Directory,
    figure,
    machine::open_machine,
    process::signal,
    rounds, seeded,
};
use tokio::task::block_in_place;

use super::contact::{Contact, Cut, Kind, ROOMS, bob, open, polls_of, receive, until};

/// Where to cut: everywhere in the long run.
async fn cuts(contact: &mut Contact, kind: Kind, rng: &mut fastrand::Rng, few: usize) -> Vec<Cut> {
    let mut all = Vec::new();
    for cached in [false, true] {
        let (_store, machine) = open(&contact.copy().await, cached).await;
        let polls = polls_of(receive(&machine, kind, &contact.events)).await;
        let of = |polls| [false, true].map(|when_woken| Cut { cached, polls, when_woken });
        all.extend((1..=polls).flat_map(of));
    }
    println!("{kind:?}: {} places to cut at", all.len());
    rng.choose_multiple(all.iter().copied(), rounds(few, all.len()))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_of_new_sessions_is_lost() {
    nothing_is_lost(Kind::NewSessions).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_is_lost_beside_messages_that_strict_trust_settings_refuse() {
    nothing_is_lost(Kind::StrictTrust).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_of_known_sessions_is_lost_beside_messages_that_are_refused() {
    nothing_is_lost(Kind::KnownSessions).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_that_was_asked_for_is_lost() {
    nothing_is_lost(Kind::KeyRequests).await;
}

async fn nothing_is_lost(kind: Kind) {
    let mut rng = seeded(&format!("{kind:?}"));
    let mut contact = Contact::new(kind).await;
    for cut in cuts(&mut contact, kind, &mut rng, 2).await {
        drop_and_replay(&mut contact, kind, cut).await;
    }
    for cut in cuts(&mut contact, kind, &mut rng, 1).await {
        kill_and_replay(&mut contact, kind, cut).await;
    }
    let mut refused = 0;
    for cut in cuts(&mut contact, kind, &mut rng, 2).await {
        refused += usize::from(drop_and_go_on(&mut contact, kind, cut).await);
    }
    figure(&format!("machines ({kind:?}) that were refused after a dropped sync"), refused);
}

/// The sync is dropped, and sent again to another machine.
async fn drop_and_replay(contact: &mut Contact, kind: Kind, cut: Cut) {
    let url = contact.copy().await;
    let (store, machine) = open(&url, cut.cached).await;
    let _ = until(cut, receive(&machine, kind, &contact.events)).await;
    drop(machine);
    store.close().await.unwrap();
    contact.replay(&url).await;
    assert_eq!(contact.readable(&url).await, ROOMS, "{kind:?}, {cut:?}");
}

/// The machine whose sync was dropped receives it again. Its memory is ahead of what was stored:
/// either all is well, or writes are refused. Returns whether they were.
async fn drop_and_go_on(contact: &mut Contact, kind: Kind, cut: Cut) -> bool {
    let url = contact.copy().await;
    let (store, machine) = open(&url, cut.cached).await;
    let _ = until(cut, receive(&machine, kind, &contact.events)).await;
    let again = receive(&machine, kind, &contact.events).await;
    drop(machine);
    let is_refused = again.is_err();
    if let Err(error) = again {
        assert!(is_reopen_required(&error), "{kind:?}, {cut:?}: {error:?}");
        store.reopen().await.unwrap();
        let machine = open_machine(bob(), store.clone()).await;
        receive(&machine, kind, &contact.events).await.unwrap();
    }
    store.close().await.unwrap();
    assert_eq!(contact.readable(&url).await, ROOMS, "{kind:?}, {cut:?}");
    is_refused
}

pub fn is_reopen_required(error: &OlmError) -> bool {
    let OlmError::Store(CryptoStoreError::Backend(error)) = error else { return false };
    matches!(error.downcast_ref(), Some(Error::ReopenRequired))
}

/// The child's side: works through the sync that a file holds, and kills itself where it is told.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let Some(file) = again::task() else { return };
    let task: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let part = |name: &str| task[name].clone();
    let kind = serde_json::from_value(part("kind")).unwrap();
    let cut: Cut = serde_json::from_value(part("cut")).unwrap();
    let events = serde_json::from_value(part("events")).unwrap();
    let (_store, machine) = open(task["url"].as_str().unwrap(), cut.cached).await;
    if until(cut, receive(&machine, kind, &events)).await.is_none() {
        signal(std::process::id(), "KILL");
    }
    again::say("done");
}

/// The process is killed in the sync, which is sent again to another.
async fn kill_and_replay(contact: &mut Contact, kind: Kind, cut: Cut) {
    let url = contact.copy().await;
    let directory = Directory::new();
    fs::create_dir(&directory.0).unwrap();
    let file = directory.0.join("task");
    let task = json!({ "url": url, "kind": kind, "cut": cut, "events": contact.events });
    fs::write(&file, task.to_string()).unwrap();
    block_in_place(|| {
        let mut child = Again::start("deferred::cuts::child", file.to_str().unwrap());
        while child.hear().is_some() {}
        child.child.wait().unwrap();
    });
    contact.replay(&url).await;
    assert_eq!(contact.readable(&url).await, ROOMS, "{kind:?}, {cut:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_of_twenty_new_sessions_is_few_commits() {
    let mut contact = Contact::new(Kind::NewSessions).await;
    let (store, machine) = open(&contact.copy().await, true).await;
    let before = store.commit_count().await.unwrap();
    receive(&machine, Kind::NewSessions, &contact.events).await.unwrap();
    let commits = store.commit_count().await.unwrap() - before;
    assert!(commits <= 4, "a sync with {ROOMS} new sessions made {commits} commits");
    figure("commits of a sync with 20 room keys, first contact", commits);
}
