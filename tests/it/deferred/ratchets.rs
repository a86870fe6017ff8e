//! No Olm chain index is used twice in any order of encryptions, syncs, interruptions and restarts: the other
//! side decrypts every message.

use matrix_sdk_common::deserialized_responses::ProcessedToDeviceEvent;
use matrix_sdk_crypto::{
    CollectStrategy, DecryptionSettings, EncryptionSyncChanges, OlmMachine, TrustRequirement,
    store::{CryptoStore, MemoryStore},
};
use matrix_sdk_postgres::{PostgresCryptoStore, testing};
use ruma::{DeviceId, RoomId, UserId};
use serde_json::json;
use test_support::{
    figure,
    machine::{Relay, open_machine},
    rounds, seeded,
};

use super::sync_replay::{Cut, Events, bob, open, until};

const PEERS: usize = 3;

struct Scenario {
    url: String,
    store: PostgresCryptoStore,
    machine: OlmMachine,
    peers: Vec<OlmMachine>,
    relay: Relay,
    /// Events that Bob has not received.
    inbox: Events,
    syncs: usize,
    sent: usize,
    rng: fastrand::Rng,
}

impl Scenario {
    async fn new(url: String, rng: fastrand::Rng) -> Self {
        let (store, machine) = open(&url, true).await;
        let mut relay = Relay::default();
        relay.serve(&machine).await;
        let mut peers = Vec::new();
        for number in 0..PEERS {
            let user_id = UserId::parse(format!("@peer{number}:example.org")).unwrap();
            let peer = open_machine(&user_id, MemoryStore::new()).await;
            relay.serve(&peer).await;
            relay.track(&peer, &[bob()]).await;
            let room_id = RoomId::parse(format!("!{number}:example.org")).unwrap();
            relay.share(&peer, &room_id, &[bob()]).await;
            peers.push(peer);
        }
        let users: Vec<&UserId> = peers.iter().map(|peer| peer.user_id()).collect();
        relay.track(&machine, &users).await;
        let inbox = relay.take(bob());
        Self { url, store, machine, peers, relay, inbox, syncs: 0, sent: 0, rng }
    }

    fn cut(&mut self) -> Cut {
        Cut { cached: true, polls: self.rng.usize(1..12), when_woken: self.rng.bool() }
    }

    async fn step(&mut self) {
        match self.rng.u8(0..10) {
            0..3 => self.receive_from_peer().await,
            3..6 => self.send(false).await,
            6 => self.send(true).await,
            7 | 8 => self.sync(false).await,
            _ => self.sync(true).await,
        }
    }

    /// Another process, which starts from the stored state; or the same one, with a reopened store.
    async fn restart(&mut self) {
        (self.store, self.machine) = open(&self.url, true).await;
    }

    async fn receive_from_peer(&mut self) {
        let peer = &self.peers[self.rng.usize(0..PEERS)];
        let device = peer.get_device(bob(), <&DeviceId>::from("DEVICE"), None).await.unwrap();
        let message = device
            .unwrap()
            .encrypt_event_raw("org.example.test", &json!({}), CollectStrategy::AllDevices)
            .await;
        self.relay.put(peer.user_id(), bob(), &message.unwrap());
        self.inbox.extend(self.relay.take(bob()));
    }

    /// Bob encrypts, which may be interrupted. The message is sent, and must be decrypted.
    async fn send(&mut self, is_cut: bool) {
        let cut = if is_cut { self.cut() } else { Cut { polls: usize::MAX, ..self.cut() } };
        let peer = self.rng.usize(0..PEERS);
        let user_id = self.peers[peer].user_id().to_owned();
        let device_id = <&DeviceId>::from("DEVICE");
        let device = self.machine.get_device(&user_id, device_id, None).await.unwrap().unwrap();
        let content = json!({});
        let work =
            device.encrypt_event_raw("org.example.test", &content, CollectStrategy::AllDevices);
        let message = match until(cut, work).await {
            // Bob has no session with this peer yet.
            Some(Err(_)) => return,
            Some(Ok(message)) => message,
            None => return self.restart().await,
        };
        self.relay.put(bob(), &user_id, &message);
        let events = self.relay.take(&user_id);
        let processed = receive(&self.peers[peer], events, "s", TrustRequirement::Untrusted).await;
        for event in processed {
            let is_decrypted = matches!(event, ProcessedToDeviceEvent::Decrypted { .. });
            assert!(is_decrypted, "message {} was not decrypted", self.sent);
        }
        self.sent += 1;
    }

    /// Bob syncs, which may be interrupted; then the events are replayed. Sometimes all of them are refused.
    async fn sync(&mut self, is_cut: bool) {
        self.syncs += 1;
        let token = format!("s{}", self.syncs);
        let cut = if is_cut { self.cut() } else { Cut { polls: usize::MAX, ..self.cut() } };
        let trust = match self.rng.bool() {
            true => TrustRequirement::CrossSigned,
            false => TrustRequirement::Untrusted,
        };
        let work = receive(&self.machine, self.inbox.clone(), &token, trust);
        let Some(processed) = until(cut, work).await else {
            self.restart().await;
            if self.store.next_batch_token().await.unwrap().as_deref() == Some(&*token) {
                self.inbox.clear();
            }
            return;
        };
        for event in processed {
            let is_understood = match &event {
                ProcessedToDeviceEvent::Decrypted { .. } => true,
                ProcessedToDeviceEvent::UnableToDecrypt { utd_info, .. } => {
                    format!("{utd_info:?}").contains("UnverifiedSenderDevice")
                }
                _ => false,
            };
            assert!(is_understood, "Bob cannot decrypt: {event:?}");
        }
        self.inbox.clear();
        if self.rng.bool() {
            self.store.close().await.unwrap();
            self.store.reopen().await.unwrap();
        }
    }
}

async fn receive(
    machine: &OlmMachine,
    events: Events,
    token: &str,
    sender_device_trust_requirement: TrustRequirement,
) -> Vec<ProcessedToDeviceEvent> {
    let (devices, counts) = Default::default();
    let changes = EncryptionSyncChanges {
        to_device_events: events,
        changed_devices: &devices,
        one_time_keys_counts: &counts,
        unused_fallback_keys: None,
        next_batch_token: Some(token.to_owned()),
    };
    let settings = DecryptionSettings { sender_device_trust_requirement };
    machine.receive_sync_changes(changes, &settings).await.unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_bob_are_always_decrypted() {
    let rng = seeded("ratchets");
    let database = testing::database().unwrap();
    let mut scenario = Scenario::new(database.url(), rng).await;
    let steps = rounds(60, 3000);
    for _ in 0..steps {
        scenario.step().await;
    }
    figure("random steps of sending, receiving, cuts and restarts", steps);
    figure("of these messages sent, each decrypted once", scenario.sent);
}
