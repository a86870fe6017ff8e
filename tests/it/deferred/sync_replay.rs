//! A sync with the keys of twenty rooms, and a database in its state before the sync, which can be copied.

use std::{future::Future, pin::pin, sync::Arc, task::Poll};

use matrix_sdk_crypto::{
    CollectStrategy, DecryptionSettings, EncryptionSyncChanges, LocalTrust, OlmError, OlmMachine,
    TrustRequirement,
    store::{CryptoStore, MemoryStore},
};
use matrix_sdk_postgres::{PostgresCryptoStore, testing::PostgresServer};
use ruma::{
    DeviceId, OwnedRoomId, OwnedUserId, RoomId, UserId, events::AnyToDeviceEvent, serde::Raw,
    user_id,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use test_support::{
    Mode, connect,
    machine::{Relay, SETTINGS, encrypt, machine_of_device, open_machine},
};

pub const ROOMS: usize = 20;

const OTHER_DEVICE: &str = "OTHER";

pub type Events = Vec<Raw<AnyToDeviceEvent>>;

/// How the keys are received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// From twenty senders, each with its first message.
    NewSessions,
    /// The same; each sender also sends a message that strict trust settings refuse.
    StrictTrust,
    /// The same, over existing sessions.
    KnownSessions,
    /// Forwarded by another own device, in reply to a request for each.
    KeyRequests,
}

impl Kind {
    pub fn settings(self) -> DecryptionSettings {
        let sender_device_trust_requirement = match self {
            Self::StrictTrust | Self::KnownSessions => TrustRequirement::CrossSigned,
            Self::NewSessions | Self::KeyRequests => TrustRequirement::Untrusted,
        };
        DecryptionSettings { sender_device_trust_requirement }
    }
}

/// Bob's database before the sync, the events of the sync, and messages that he must be able to read after it.
pub struct SyncReplay {
    kind: Kind,
    server: PostgresServer,
    pub events: Events,
    messages: Vec<(OwnedRoomId, Value)>,
    copies: usize,
}

pub fn bob() -> &'static UserId {
    user_id!("@bob:example.org")
}

fn room(number: usize) -> OwnedRoomId {
    RoomId::parse(format!("!room{number}:example.org")).unwrap()
}

impl SyncReplay {
    pub async fn new(kind: Kind) -> Self {
        let server = PostgresServer::start().unwrap();
        connect(&server.url()).await.batch_execute("CREATE DATABASE original").await.unwrap();
        let store = Mode::Plain.open(&of_database(&server, "original"), "bob").await;
        let machine = open_machine(bob(), store.clone()).await;
        let mut relay = Relay::default();
        relay.serve(&machine).await;
        let messages = match kind {
            Kind::KeyRequests => forwarded(&mut relay, &machine).await,
            _ => sent(&mut relay, &machine, kind).await,
        };
        drop(machine);
        store.close().await.unwrap();
        Self { kind, server, events: relay.take(bob()), messages, copies: 0 }
    }

    /// Copies the database as it was before the sync; returns the copy's URL.
    pub async fn copy(&mut self) -> String {
        self.copies += 1;
        let name = format!("copy{}", self.copies);
        let sql = format!("CREATE DATABASE {name} TEMPLATE original");
        connect(&self.server.url()).await.batch_execute(&sql).await.unwrap();
        of_database(&self.server, &name)
    }

    /// Replays the sync to a machine that starts from the stored state.
    pub async fn replay(&self, url: &str) {
        let (store, machine) = open(url, true).await;
        receive(&machine, self.kind, &self.events).await.unwrap();
        drop(machine);
        store.close().await.unwrap();
    }

    /// Number of rooms that a machine can read which starts from the stored state.
    pub async fn readable(&self, url: &str) -> usize {
        let (store, machine) = open(url, true).await;
        let mut readable = 0;
        for (room_id, event) in &self.messages {
            let event = serde_json::from_value(event.clone()).unwrap();
            let decrypted = machine.decrypt_room_event(&event, room_id, &SETTINGS).await;
            readable += usize::from(decrypted.is_ok());
        }
        drop(machine);
        store.close().await.unwrap();
        readable
    }
}

fn of_database(server: &PostgresServer, name: &str) -> String {
    let url = server.url().replace("/postgres", &format!("/{name}"));
    url.replace(&format!("/{name}:"), "/postgres:")
}

pub async fn open(url: &str, cached: bool) -> (PostgresCryptoStore, OlmMachine) {
    let store = match cached {
        true => Mode::Plain.open(url, "bob").await,
        false => Mode::Plain.open_uncached(url, "bob").await,
    };
    (store.clone(), open_machine(bob(), store).await)
}

pub async fn receive(machine: &OlmMachine, kind: Kind, events: &Events) -> Result<(), OlmError> {
    let (devices, counts) = Default::default();
    let changes = EncryptionSyncChanges {
        to_device_events: events.clone(),
        changed_devices: &devices,
        one_time_keys_counts: &counts,
        unused_fallback_keys: None,
        next_batch_token: Some("s1".to_owned()),
    };
    machine.receive_sync_changes(changes, &kind.settings()).await.map(drop)
}

/// Twenty senders share the key of a room each.
async fn sent(relay: &mut Relay, machine: &OlmMachine, kind: Kind) -> Vec<(OwnedRoomId, Value)> {
    let mut senders = Vec::new();
    for number in 0..ROOMS {
        let user_id: OwnedUserId = format!("@sender{number}:example.org").parse().unwrap();
        let sender = open_machine(&user_id, MemoryStore::new()).await;
        relay.serve(&sender).await;
        relay.track(&sender, &[bob()]).await;
        senders.push(sender);
    }
    if kind == Kind::KnownSessions {
        for (number, sender) in senders.iter().enumerate() {
            relay.share(sender, &room(ROOMS + number), &[bob()]).await;
        }
        relay.sync(machine, "s0").await;
        // Bob replies, so that each following message begins a new chain.
        let users: Vec<&UserId> = senders.iter().map(OlmMachine::user_id).collect();
        relay.track(machine, &users).await;
        relay.share(machine, &room(2 * ROOMS), &users).await;
        for sender in &senders {
            relay.sync(sender, "s0").await;
        }
    }
    let mut messages = Vec::new();
    for (number, sender) in senders.iter().enumerate() {
        let room_id = room(number);
        relay.share(sender, &room_id, &[bob()]).await;
        messages.push((room_id.clone(), encrypt(sender, &room_id, "hello").await));
        if kind != Kind::NewSessions {
            send_refused(relay, sender).await;
        }
    }
    messages
}

/// Sends a message that is accepted from verified devices only.
async fn send_refused(relay: &mut Relay, sender: &OlmMachine) {
    let device = sender.get_device(bob(), <&DeviceId>::from("DEVICE"), None).await.unwrap();
    let encrypted = device
        .unwrap()
        .encrypt_event_raw("org.example.refused", &json!({}), CollectStrategy::AllDevices)
        .await;
    relay.put(sender.user_id(), bob(), &encrypted.unwrap());
}

/// Another device of Bob forwards the keys that he has requested.
async fn forwarded(relay: &mut Relay, machine: &OlmMachine) -> Vec<(OwnedRoomId, Value)> {
    let memory = Arc::new(MemoryStore::new());
    let other = machine_of_device(bob(), OTHER_DEVICE, memory.clone()).await;
    relay.serve(&other).await;
    for device in [machine, &other] {
        relay.fetch(device, bob()).await;
    }
    let trusted = machine.get_device(bob(), <&DeviceId>::from(OTHER_DEVICE), None).await.unwrap();
    trusted.unwrap().set_local_trust(LocalTrust::Verified).await.unwrap();
    // Creates an Olm session with the first device, and discards the messages.
    relay.share(&other, &room(ROOMS), &[bob()]).await;
    relay.take(bob());
    let requester =
        other.get_device(bob(), <&DeviceId>::from("DEVICE"), None).await.unwrap().unwrap();
    let mut messages = Vec::new();
    for number in 0..ROOMS {
        let room_id = room(number);
        relay.share(&other, &room_id, &[]).await;
        let event = encrypt(&other, &room_id, "hello").await;
        let raw = serde_json::from_value(event.clone()).unwrap();
        machine.request_room_key(&raw, &room_id).await.unwrap();
        let session_id = event["content"]["session_id"].as_str().unwrap();
        let key = memory.get_inbound_group_session(&room_id, session_id).await.unwrap().unwrap();
        let (_, encrypted) = requester.encrypt_room_key_for_forwarding(key, None).await.unwrap();
        relay.put(bob(), bob(), &encrypted);
        messages.push((room_id, event));
    }
    messages
}

/// Where a future is interrupted.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Cut {
    /// Without its cache the store sends more queries, so that the future is polled more often.
    pub cached: bool,
    /// After this number of polls.
    pub polls: usize,
    /// Only once the task was woken again after the last poll.
    pub when_woken: bool,
}

/// Polls a future until the cut; `None` if that was before its end.
pub async fn until<T>(cut: Cut, future: impl Future<Output = T>) -> Option<T> {
    let (mut future, mut polls) = (pin!(future), 0);
    std::future::poll_fn(move |context| {
        if polls == cut.polls {
            return Poll::Ready(None);
        }
        polls += 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if polls == cut.polls && !cut.when_woken => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Number of polls until the future's end.
pub async fn polls_of<T>(future: impl Future<Output = T>) -> usize {
    let (mut future, mut polls) = (pin!(future), 0);
    std::future::poll_fn(move |context| {
        polls += 1;
        future.as_mut().poll(context).map(|_| polls)
    })
    .await
}
