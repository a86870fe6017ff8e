//! Reserved message indices: outbound sessions are stored ahead of their use, and no index is used twice.

mod proof;
mod shared;

use std::collections::BTreeSet;

use futures_util::poll;
use matrix_sdk_crypto::{
    EncryptionSettings, OlmMachine,
    olm::OutboundGroupSession,
    store::{CryptoStore, CryptoStoreError, MemoryStore, types::Changes},
    vodozemac::megolm::MegolmMessage,
};
use matrix_sdk_postgres::{
    Access, OwnershipSettings, PostgresCryptoStore,
    testing::{self, TestDatabase},
};
use ruma::{RoomId, UserId, room_id, user_id};
use serde_json::Value;
use test_support::{
    Mode, connect,
    machine::{Relay, decrypt, encrypt, open_machine, try_encrypt},
    seeded, without_heartbeats,
};
use tokio::sync::oneshot;

const ROTATION: u64 = 10_000;

fn bot() -> &'static UserId {
    user_id!("@bot:example.org")
}

fn alice() -> &'static UserId {
    user_id!("@alice:example.org")
}

fn room() -> &'static RoomId {
    room_id!("!room:example.org")
}

/// A bot that has shared a room key with Alice, and the indices that it has used.
struct Harness {
    database: TestDatabase,
    ownership: OwnershipSettings,
    rotation: u64,
    relay: Relay,
    alice: OlmMachine,
    store: PostgresCryptoStore,
    bot: OlmMachine,
    used: BTreeSet<(String, u32)>,
    sent: usize,
}

impl Harness {
    async fn new(ownership: OwnershipSettings, rotation: u64) -> Self {
        let database = testing::database().unwrap();
        let (mut relay, memory) = (Relay::default(), MemoryStore::new());
        let alice = open_machine(alice(), memory).await;
        relay.serve(&alice).await;
        let (store, bot) = open(&database, &ownership).await;
        relay.serve(&bot).await;
        relay.track(&bot, &[alice.user_id()]).await;
        let (used, sent) = (BTreeSet::new(), 0);
        let mut harness =
            Self { database, ownership, rotation, relay, alice, store, bot, used, sent };
        harness.share().await;
        harness
    }

    /// Shares the room's key if needed, as an application does before each message.
    async fn share(&mut self) {
        let users = [self.alice.user_id()];
        if self.bot.get_missing_sessions(users.into_iter()).await.unwrap().is_some() {
            self.relay.share(&self.bot, room_id!("!other:example.org"), &users).await;
        }
        let settings =
            EncryptionSettings { rotation_period_msgs: self.rotation, ..Default::default() };
        let requests = self.bot.share_room_key(room(), users.into_iter(), settings).await;
        for request in requests.unwrap() {
            self.relay.send(&self.bot, &request).await;
        }
        self.relay.sync(&self.alice, "next").await;
    }

    /// Sends a message; asserts that its index is new and that Alice can decrypt it.
    async fn send(&mut self) {
        self.share().await;
        let body = format!("message {}", self.sent);
        let event = encrypt(&self.bot, room(), &body).await;
        self.received(&event, &body).await;
    }

    async fn received(&mut self, event: &Value, body: &str) {
        self.sent += 1;
        let used = index(event);
        assert!(self.used.insert(used.clone()), "index used twice: {used:?}");
        assert_eq!(decrypt(&self.alice, room(), event).await, body);
    }

    async fn send_many(&mut self, count: usize) {
        for _ in 0..count {
            self.send().await;
        }
    }

    /// Simulates a crash: another owner continues with the stored session.
    async fn restart(&mut self) {
        (self.store, self.bot) = open(&self.database, &self.ownership).await;
    }

    async fn commits(&self) -> u64 {
        self.store.commit_count().await.unwrap()
    }
}

async fn open(
    database: &TestDatabase,
    ownership: &OwnershipSettings,
) -> (PostgresCryptoStore, OlmMachine) {
    let config = Mode::Key.config(&database.url(), "bot").access(ownership.clone());
    let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
    let machine = open_machine(bot(), store.clone()).await;
    (store, machine)
}

/// A read-only store of the account.
async fn reader(database: &TestDatabase) -> PostgresCryptoStore {
    let config = Mode::Key.config(&database.url(), "bot").access(Access::ReadOnly);
    let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
    store.load_account().await.unwrap().unwrap();
    store
}

/// The session as the database has it, where it may be ahead of the one in use.
async fn stored(database: &TestDatabase) -> OutboundGroupSession {
    reader(database).await.get_outbound_group_session(room()).await.unwrap().unwrap()
}

/// The session and the index that a message was encrypted with.
fn index(event: &Value) -> (String, u32) {
    let session_id = event["content"]["session_id"].as_str().unwrap().to_owned();
    let ciphertext = event["content"]["ciphertext"].as_str().unwrap();
    (session_id, MegolmMessage::from_base64(ciphertext).unwrap().message_index())
}

#[tokio::test]
async fn fifty_messages_are_at_most_four_commits() {
    let mut harness = Harness::new(OwnershipSettings::default(), ROTATION).await;
    let before = harness.commits().await;
    harness.send_many(50).await;
    let commits = harness.commits().await - before;
    assert!((1..=4).contains(&commits), "{commits} commits");
}

#[tokio::test]
async fn a_restart_uses_no_index_twice() {
    let mut rng = seeded("reserved indices");
    let mut harness = Harness::new(OwnershipSettings::default(), ROTATION).await;
    for _ in 0..12 {
        harness.send_many(rng.usize(0..45)).await;
        match rng.u8(0..3) {
            0 => harness.restart().await,
            1 => {
                // The former owner still sends with its reserved indices.
                let former = harness.bot.clone();
                harness.restart().await;
                for body in ["late", "later"] {
                    if let Ok(event) = try_encrypt(&former, room(), body).await {
                        harness.received(&event, body).await;
                    }
                }
            }
            _ => {
                harness.store.close().await.unwrap();
                harness.store.reopen().await.unwrap();
                harness.bot = open_machine(bot(), harness.store.clone()).await;
            }
        }
    }
    harness.send().await;
}

/// The SDK panics when it encrypts with a session that it should have rotated.
#[tokio::test]
async fn a_session_is_never_stored_as_expired() {
    for rotation in [1, 2, 20] {
        let mut harness = Harness::new(OwnershipSettings::default(), rotation).await;
        for count in 0..5 {
            harness.share().await;
            harness.restart().await;
            harness.send_many(count).await;
            let counted = stored(&harness.database).await.pickle().await.message_count;
            assert!(counted <= rotation, "{counted} of {rotation}: {count}");
        }
    }
}

#[tokio::test]
async fn a_rotated_session_inherits_no_reservation() {
    let mut harness = Harness::new(OwnershipSettings::default(), ROTATION).await;
    harness.send_many(4).await;
    harness.bot.discard_room_key(room()).await.unwrap();
    harness.send().await;
    harness.restart().await;
    assert_eq!(stored(&harness.database).await.message_index().await, 1);
    harness.send().await;
}

/// A save for another reason, such as a new recipient, stores no index below the reserved ones.
#[tokio::test]
async fn saving_a_shared_session_keeps_its_reservation() {
    let mut harness = Harness::new(OwnershipSettings::default(), ROTATION).await;
    harness.send_many(3).await;
    let bob = open_machine(user_id!("@bob:example.org"), MemoryStore::new()).await;
    harness.relay.serve(&bob).await;
    harness.relay.track(&harness.bot, &[bob.user_id()]).await;
    let users = [alice(), bob.user_id()];
    let (relay, bot) = (&mut harness.relay, &harness.bot);
    relay.share(bot, room_id!("!other:example.org"), &users).await;
    let settings = EncryptionSettings { rotation_period_msgs: ROTATION, ..Default::default() };
    for request in bot.share_room_key(room(), users.into_iter(), settings).await.unwrap() {
        // Not marked as sent, so that the session is saved by the sharing itself.
        relay.deliver(bot, &request);
        assert_eq!(stored(&harness.database).await.message_index().await, 18);
    }
    harness.restart().await;
    harness.send().await;
}

/// A scope's reservation may be rolled back, so no message may use it before the commit.
#[tokio::test]
async fn a_rolled_back_scope_changes_no_reservation() {
    let mut harness = Harness::new(OwnershipSettings::default(), ROTATION).await;
    harness.send_many(3).await;
    let before = harness.commits().await;
    let (store, machine) = (harness.store.clone(), harness.bot.clone());
    let rolled_back: Result<Value, CryptoStoreError> = store
        .atomically(async {
            encrypt(&machine, room(), "never sent").await;
            Err(CryptoStoreError::AccountUnset)
        })
        .await;
    rolled_back.unwrap_err();
    assert_eq!(harness.commits().await, before);
    harness.store.reopen().await.unwrap();
    harness.bot = open_machine(bot(), harness.store.clone()).await;
    harness.send_many(20).await;
    harness.restart().await;
    harness.send().await;
}

/// A scope that has saved holds the writer lane, so that a message of another task waits for its end.
#[tokio::test]
async fn a_message_waits_for_an_open_scope() {
    let mut harness = Harness::new(OwnershipSettings::default(), ROTATION).await;
    harness.send_many(3).await;
    let before = harness.commits().await;
    let ((saved, is_saved), (end, ended)) = (oneshot::channel(), oneshot::channel());
    let store = harness.store.clone();
    let scope = tokio::spawn(async move {
        let within = async {
            store.set_custom_value("key", b"value".to_vec()).await?;
            saved.send(()).unwrap();
            ended.await.unwrap();
            Ok::<_, CryptoStoreError>(())
        };
        store.atomically(within).await
    });
    is_saved.await.unwrap();
    let machine = harness.bot.clone();
    let mut message = Box::pin(encrypt(&machine, room(), "waits"));
    let client = connect(&harness.database.url()).await;
    for _ in 0..50 {
        assert!(poll!(&mut message).is_pending(), "the message did not wait");
        client.batch_execute("SELECT").await.unwrap();
    }
    end.send(()).unwrap();
    let event = message.await;
    scope.await.unwrap().unwrap();
    assert_eq!(harness.commits().await, before + 1, "the message's index was reserved");
    harness.received(&event, "waits").await;
    harness.restart().await;
    harness.send().await;
}

/// A room's row holds one session: what was committed of another one covers no message any more.
#[tokio::test]
async fn a_session_that_was_replaced_in_its_row_is_stored_again() {
    for count in [3, 40] {
        let mut harness = Harness::new(OwnershipSettings::default(), ROTATION).await;
        let older = harness.store.get_outbound_group_session(room()).await.unwrap().unwrap();
        assert_eq!(older.message_index().await, 0);
        harness.send_many(4).await;
        harness.bot.discard_room_key(room()).await.unwrap();
        harness.send_many(4).await;
        let outbound_group_sessions = vec![older];
        let late = Changes { outbound_group_sessions, ..Default::default() };
        harness.store.save_changes(late).await.unwrap();
        let before = harness.commits().await;
        harness.send_many(3).await;
        assert_eq!(
            harness.commits().await,
            before + 1,
            "the newer session is stored once, at its mark"
        );
        harness.send_many(count - 3).await;
        harness.restart().await;
        harness.send_many(3).await;
    }
}

/// The store returns what was saved last, also if it was saved before.
#[tokio::test]
async fn an_unchanged_session_replaces_the_one_that_replaced_it() {
    let mut harness = Harness::new(OwnershipSettings::default(), ROTATION).await;
    harness.send_many(1).await;
    let older = harness.store.get_outbound_group_session(room()).await.unwrap().unwrap();
    harness.bot.discard_room_key(room()).await.unwrap();
    harness.send_many(1).await;
    let newer = harness.store.get_outbound_group_session(room()).await.unwrap().unwrap();
    for session in [&older, &newer, &older, &older, &newer] {
        let outbound_group_sessions = vec![session.clone()];
        let changes = Changes { outbound_group_sessions, ..Default::default() };
        harness.store.save_changes(changes).await.unwrap();
        let stored = harness.store.get_outbound_group_session(room()).await.unwrap().unwrap();
        assert_eq!(stored.session_id(), session.session_id());
    }
}

/// docs/operations.md, "Cache": what an operator changed beside the owner covers no message any more.
#[tokio::test]
async fn a_session_that_an_operator_deleted_is_stored_again() {
    let mut harness = Harness::new(OwnershipSettings::default(), ROTATION).await;
    harness.send_many(3).await;
    let operator = connect(&harness.database.url()).await;
    let delete = "BEGIN; DELETE FROM matrix_sdk.megolm_outbound_sessions; \
                  UPDATE matrix_sdk.account_lanes SET maintenance = maintenance + 1; COMMIT";
    operator.batch_execute(delete).await.unwrap();
    // The next write detects it.
    harness.store.set_custom_value("key", b"value".to_vec()).await.unwrap();
    assert!(harness.store.get_outbound_group_session(room()).await.unwrap().is_none());
    harness.send().await;
    let stored = harness.store.get_outbound_group_session(room()).await.unwrap();
    assert!(stored.is_some(), "the message was sent with a session that is not stored");
    harness.restart().await;
    harness.send().await;
}

#[tokio::test]
async fn a_superseded_owner_sends_nothing_that_it_had_not_reserved() {
    let mut harness = Harness::new(without_heartbeats(), ROTATION).await;
    harness.send_many(3).await;
    let former = harness.bot.clone();
    harness.restart().await;
    let mut last = None;
    for _ in 0..20 {
        let Ok(event) = try_encrypt(&former, room(), "late").await else { break };
        last = Some(index(&event).1);
    }
    assert_eq!(last, Some(17), "18 indices were reserved");
    harness.send().await;
    assert!(harness.used.iter().all(|(_, index)| *index < 3 || *index >= 18));
}
