//! A sync that brings the keys of twenty rooms, and a database in which nothing of it has happened.

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

/// How the keys come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Twenty senders, each with its first message.
    NewSessions,
    /// The same; beside its room key each sends something that strict trust settings refuse.
    StrictTrust,
    /// The same, over sessions that are known already.
    KnownSessions,
    /// Forwarded by another device of ours, which was asked for each.
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

/// What Bob has before the sync, what comes, and what he must be able to read afterwards.
pub struct Contact {
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

impl Contact {
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

    /// A copy of the database, in which nothing has happened yet: its URL.
    pub async fn copy(&mut self) -> String {
        self.copies += 1;
        let name = format!("copy{}", self.copies);
        let sql = format!("CREATE DATABASE {name} TEMPLATE original");
        connect(&self.server.url()).await.batch_execute(&sql).await.unwrap();
        of_database(&self.server, &name)
    }

    /// Sends the sync again, to a machine that starts from what was stored.
    pub async fn replay(&self, url: &str) {
        let (store, machine) = open(url, true).await;
        receive(&machine, self.kind, &self.events).await.unwrap();
        drop(machine);
        store.close().await.unwrap();
    }

    /// How many rooms a machine can read that starts from what was stored.
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
        // Bob answers, so that what follows comes over chains of their own.
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

/// Sends what is taken from verified devices only.
async fn send_refused(relay: &mut Relay, sender: &OlmMachine) {
    let device = sender.get_device(bob(), <&DeviceId>::from("DEVICE"), None).await.unwrap();
    let encrypted = device
        .unwrap()
        .encrypt_event_raw("org.example.refused", &json!({}), CollectStrategy::AllDevices)
        .await;
    relay.put(sender.user_id(), bob(), &encrypted.unwrap());
}

/// Another device of Bob's forwards the keys that he has asked for.
async fn forwarded(relay: &mut Relay, machine: &OlmMachine) -> Vec<(OwnedRoomId, Value)> {
    let memory = Arc::new(MemoryStore::new());
    let other = machine_of_device(bob(), OTHER_DEVICE, memory.clone()).await;
    relay.serve(&other).await;
    for device in [machine, &other] {
        relay.fetch(device, bob()).await;
    }
    let trusted = machine.get_device(bob(), <&DeviceId>::from(OTHER_DEVICE), None).await.unwrap();
    trusted.unwrap().set_local_trust(LocalTrust::Verified).await.unwrap();
    // An Olm session with the first device, and nothing else for it.
    relay.share(&other, &room(ROOMS), &[bob()]).await;
    relay.take(bob());
    let asked = other.get_device(bob(), <&DeviceId>::from("DEVICE"), None).await.unwrap().unwrap();
    let mut messages = Vec::new();
    for number in 0..ROOMS {
        let room_id = room(number);
        relay.share(&other, &room_id, &[]).await;
        let event = encrypt(&other, &room_id, "hello").await;
        let raw = serde_json::from_value(event.clone()).unwrap();
        machine.request_room_key(&raw, &room_id).await.unwrap();
        let session_id = event["content"]["session_id"].as_str().unwrap();
        let key = memory.get_inbound_group_session(&room_id, session_id).await.unwrap().unwrap();
        let (_, encrypted) = asked.encrypt_room_key_for_forwarding(key, None).await.unwrap();
        relay.put(bob(), bob(), &encrypted);
        messages.push((room_id, event));
    }
    messages
}

/// Where a future is cut.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Cut {
    /// Without its cache the store asks for more, so that there are more places to cut at.
    pub cached: bool,
    /// After so many polls.
    pub polls: usize,
    /// Only when what the last poll waits for has come.
    pub when_woken: bool,
}

/// Polls a future to where it is cut; `None` when that came before its end.
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

/// How often a future is polled until its end.
pub async fn polls_of<T>(future: impl Future<Output = T>) -> usize {
    let (mut future, mut polls) = (pin!(future), 0);
    std::future::poll_fn(move |context| {
        polls += 1;
        future.as_mut().poll(context).map(|_| polls)
    })
    .await
}
