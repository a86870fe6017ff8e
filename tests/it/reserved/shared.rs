//! Tasks and machines that read a room's outbound session from one open store share one object, and so its message count.

use futures_util::{future::join_all, poll};
use matrix_sdk_crypto::{
    OlmMachine,
    olm::OutboundGroupSession,
    store::{CryptoStore, CryptoStoreError},
};
use matrix_sdk_postgres::{OwnershipSettings, PostgresCryptoStore};
use serde_json::{Value, json};
use test_support::{
    connect,
    machine::{encrypt, open_machine},
};

use super::{Harness, ROTATION, bot, reader, room};

const TASKS: usize = 8;

/// Holds the reads of outbound sessions until it is dropped.
async fn hold_reads(harness: &Harness) -> tokio_postgres::Client {
    let client = connect(&harness.database.url()).await;
    let lock = "BEGIN; LOCK TABLE matrix_sdk.megolm_outbound_sessions";
    client.batch_execute(lock).await.unwrap();
    client
}

/// Each task encrypts with the session that it reads, and all have begun to read before one has it.
async fn send_at_once(harness: &mut Harness, machines: &[OlmMachine]) {
    let held = hold_reads(harness).await;
    let mut tasks = Vec::new();
    for machine in machines.iter().cycle().take(TASKS) {
        let machine = machine.clone();
        let mut message = Box::pin(async move { encrypt(&machine, room(), "at once").await });
        assert!(poll!(&mut message).is_pending());
        tasks.push(tokio::spawn(message));
    }
    held.batch_execute("COMMIT").await.unwrap();
    let events: Vec<Value> = join_all(tasks).await.into_iter().map(Result::unwrap).collect();
    for event in events {
        harness.received(&event, "at once").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_encrypt_first_after_an_opening_use_no_index_twice() {
    let mut harness = Harness::new(OwnershipSettings::default(), ROTATION).await;
    for _ in 0..3 {
        harness.restart().await;
        let machine = harness.bot.clone();
        send_at_once(&mut harness, &[machine]).await;
        harness.send_many(3).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_encrypt_first_after_reopen_use_no_index_twice() {
    let mut harness = Harness::new(OwnershipSettings::default(), ROTATION).await;
    for closes in [true, false, true] {
        if closes {
            harness.store.close().await.unwrap();
        }
        harness.store.reopen().await.unwrap();
        harness.bot = open_machine(bot(), harness.store.clone()).await;
        let machine = harness.bot.clone();
        send_at_once(&mut harness, &[machine]).await;
        harness.send_many(3).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_machines_on_one_store_use_no_index_twice() {
    let mut harness = Harness::new(OwnershipSettings::default(), ROTATION).await;
    for _ in 0..2 {
        // In the first round one of them has made the session, in the second both read it.
        let other = open_machine(bot(), harness.store.clone()).await;
        let machines = [harness.bot.clone(), other];
        send_at_once(&mut harness, &machines).await;
        for machine in machines.iter().cycle().take(40) {
            let event = encrypt(machine, room(), "in turn").await;
            harness.received(&event, "in turn").await;
        }
        harness.restart().await;
    }
    harness.send().await;
}

async fn get(store: &PostgresCryptoStore) -> OutboundGroupSession {
    store.get_outbound_group_session(room()).await.unwrap().unwrap()
}

/// Whether the use of the one moves the other on.
async fn is_same(one: &OutboundGroupSession, other: &OutboundGroupSession) -> bool {
    assert_eq!(one.session_id(), other.session_id());
    let before = other.message_index().await;
    let content = serde_json::from_value(json!({ "msgtype": "m.text", "body": "" })).unwrap();
    one.encrypt("m.room.message", &content).await;
    other.message_index().await != before
}

/// Also by a `reopen()` that has nothing to do: a new machine begins with what is stored.
#[tokio::test]
async fn each_opening_begins_with_what_is_stored() {
    let harness = Harness::new(OwnershipSettings::default(), ROTATION).await;
    let store = &harness.store;
    let first = get(store).await;
    assert!(is_same(&first, &get(store).await).await);
    store.reopen().await.unwrap();
    let second = get(store).await;
    assert!(!is_same(&first, &second).await);
    assert!(is_same(&second, &get(store).await).await);
    store.close().await.unwrap();
    store.reopen().await.unwrap();
    open_machine(bot(), store.clone()).await;
    assert!(!is_same(&second, &get(store).await).await);
}

#[tokio::test]
async fn a_read_of_a_former_opening_is_not_shared() {
    let harness = Harness::new(OwnershipSettings::default(), ROTATION).await;
    let store = harness.store.clone();
    let held = hold_reads(&harness).await;
    let mut late = Box::pin(store.get_outbound_group_session(room()));
    assert!(poll!(&mut late).is_pending());
    store.close().await.unwrap();
    store.reopen().await.unwrap();
    held.batch_execute("COMMIT").await.unwrap();
    let late = late.await;
    if let Ok(late) = late {
        assert!(!is_same(&late.unwrap(), &get(&store).await).await);
    }
}

#[tokio::test]
async fn a_rolled_back_scope_leaves_no_session_behind() {
    let mut harness = Harness::new(OwnershipSettings::default(), ROTATION).await;
    harness.send_many(3).await;
    let machine = harness.bot.clone();
    let rolled_back: Result<(), CryptoStoreError> = harness
        .store
        .atomically(async {
            machine.discard_room_key(room()).await?;
            Err(CryptoStoreError::AccountUnset)
        })
        .await;
    rolled_back.unwrap_err();
    harness.store.reopen().await.unwrap();
    assert!(!get(&harness.store).await.invalidated());
}

/// Its account has an owner, who uses the session meanwhile.
#[tokio::test]
async fn a_read_only_store_returns_what_is_stored() {
    let mut harness = Harness::new(OwnershipSettings::default(), ROTATION).await;
    let reader = reader(&harness.database).await;
    let before = get(&reader).await.message_index().await;
    harness.send_many(3).await;
    assert!(get(&reader).await.message_index().await > before);
}
