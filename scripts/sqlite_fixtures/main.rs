//! Fills crypto stores with one published version of `matrix-sdk-sqlite`: three Alices, whose files are
//! plain, encrypted with a passphrase and with a key, and a Bob whom each of them talks to. Real machines
//! exchange messages, and are left in the middle of their ratchets. `scripts/sqlite-fixtures` builds and
//! runs it, once for each version; the features tell the versions apart.

use std::{collections::BTreeMap, fs, path::PathBuf, thread::sleep, time::Duration};

#[cfg(not(feature = "any_request"))]
use matrix_sdk_crypto::OutgoingRequests as AnyRequest;
#[cfg(feature = "any_request")]
use matrix_sdk_crypto::types::requests::AnyOutgoingRequest as AnyRequest;
#[cfg(not(feature = "changes_in_types"))]
use matrix_sdk_crypto::store::Changes;
#[cfg(feature = "changes_in_types")]
use matrix_sdk_crypto::store::types::Changes;
#[cfg(feature = "decryption_settings")]
use matrix_sdk_crypto::{DecryptionSettings, TrustRequirement};
use matrix_sdk_crypto::{
    EncryptionSettings, EncryptionSyncChanges, OlmMachine, store::CryptoStore,
};
use matrix_sdk_sqlite::SqliteCryptoStore;
use ruma::{
    DeviceId, RoomId, UserId,
    api::client::{
        keys::{claim_keys, get_keys, upload_keys},
        sync::sync_events::DeviceLists,
        to_device::send_event_to_device,
    },
    device_id,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

pub const PASSPHRASE: &str = "fixture passphrase";
pub const KEY: [u8; 32] = [7; 32];

#[cfg(feature = "decryption_settings")]
const SETTINGS: DecryptionSettings =
    DecryptionSettings { sender_device_trust_requirement: TrustRequirement::Untrusted };

fn from_json<T: DeserializeOwned>(value: &impl Serialize) -> T {
    serde_json::from_value(serde_json::to_value(value).unwrap()).unwrap()
}

/// What a homeserver does with keys and to-device messages, as JSON: the types differ between versions.
#[derive(Default)]
struct Relay {
    devices: BTreeMap<String, Value>,
    one_time_keys: BTreeMap<String, BTreeMap<String, Value>>,
    inbox: BTreeMap<String, Vec<Value>>,
}

impl Relay {
    async fn serve(&mut self, machine: &OlmMachine) {
        loop {
            let requests = machine.outgoing_requests().await.unwrap();
            if requests.is_empty() {
                return;
            }
            for request in requests {
                let id = request.request_id().to_owned();
                match request.request() {
                    AnyRequest::KeysUpload(upload) => {
                        let user = machine.user_id().to_string();
                        if let Some(keys) = &upload.device_keys {
                            self.devices.insert(user.clone(), serde_json::to_value(keys).unwrap());
                        }
                        let new: BTreeMap<String, Value> = from_json(&upload.one_time_keys);
                        let keys = self.one_time_keys.entry(user).or_default();
                        keys.extend(new);
                        let counts = json!({ "signed_curve25519": keys.len() });
                        let counts = serde_json::from_value(counts).unwrap();
                        let response = upload_keys::v3::Response::new(counts);
                        machine.mark_request_as_sent(&id, &response).await.unwrap();
                    }
                    AnyRequest::KeysQuery(query) => {
                        let mut response = get_keys::v3::Response::new();
                        let mut users = BTreeMap::new();
                        for user in query.device_keys.keys() {
                            if let Some(keys) = self.devices.get(user.as_str()) {
                                users.insert(user.to_string(), json!({ "DEVICE": keys }));
                            }
                        }
                        response.device_keys = from_json(&users);
                        machine.mark_request_as_sent(&id, &response).await.unwrap();
                    }
                    AnyRequest::ToDeviceRequest(request) => {
                        let body = json!(request.messages);
                        self.deliver(machine, &request.event_type.to_string(), &body);
                        let response = send_event_to_device::v3::Response::new();
                        machine.mark_request_as_sent(&id, &response).await.unwrap();
                    }
                    _ => panic!("an unexpected request"),
                }
            }
        }
    }

    fn deliver(&mut self, machine: &OlmMachine, event_type: &str, messages: &Value) {
        for (user, devices) in messages.as_object().unwrap() {
            for content in devices.as_object().unwrap().values() {
                let event = json!({
                    "sender": machine.user_id(), "type": event_type, "content": content,
                });
                self.inbox.entry(user.clone()).or_default().push(event);
            }
        }
    }

    async fn share(&mut self, machine: &OlmMachine, room_id: &RoomId, to: &UserId) {
        let missing = machine.get_missing_sessions([to].into_iter()).await.unwrap();
        if let Some((id, request)) = missing {
            let mut users = BTreeMap::new();
            for user in request.one_time_keys.keys() {
                let keys = self.one_time_keys.get_mut(user.as_str()).unwrap();
                let (name, key) = keys.pop_first().unwrap();
                users.insert(user.to_string(), json!({ "DEVICE": { name: key } }));
            }
            let keys = from_json(&users);
            let response = claim_keys::v3::Response::new(keys);
            machine.mark_request_as_sent(&id, &response).await.unwrap();
        }
        let settings = EncryptionSettings::default();
        for request in machine.share_room_key(room_id, [to].into_iter(), settings).await.unwrap() {
            self.deliver(machine, &request.event_type.to_string(), &json!(request.messages));
            let response = send_event_to_device::v3::Response::new();
            machine.mark_request_as_sent(&request.txn_id, &response).await.unwrap();
        }
    }

    async fn sync(&mut self, machine: &OlmMachine, token: &str) {
        let events = self.inbox.remove(machine.user_id().as_str()).unwrap_or_default();
        let events = events.into_iter().map(|event| serde_json::from_value(event).unwrap());
        let counts = serde_json::from_value(json!({ "signed_curve25519": 50 })).unwrap();
        let devices = DeviceLists::new();
        let changes = EncryptionSyncChanges {
            to_device_events: events.collect(),
            changed_devices: &devices,
            one_time_keys_counts: &counts,
            unused_fallback_keys: None,
            next_batch_token: Some(token.to_owned()),
        };
        #[cfg(feature = "sync_settings")]
        machine.receive_sync_changes(changes, &SETTINGS).await.unwrap();
        #[cfg(not(feature = "sync_settings"))]
        machine.receive_sync_changes(changes).await.unwrap();
        self.serve(machine).await;
    }
}

async fn machine(user_id: &UserId, store: SqliteCryptoStore) -> OlmMachine {
    let device_id: &DeviceId = device_id!("DEVICE");
    #[cfg(feature = "builder")]
    return matrix_sdk_crypto::OlmMachineBuilder::new(user_id, device_id)
        .with_crypto_store(store)
        .build()
        .await
        .unwrap();
    #[cfg(all(feature = "custom_account", not(feature = "builder")))]
    return OlmMachine::with_store(user_id, device_id, store, None).await.unwrap();
    #[cfg(not(feature = "custom_account"))]
    return OlmMachine::with_store(user_id, device_id, store).await.unwrap();
}

async fn encrypt(machine: &OlmMachine, room_id: &RoomId, body: &str) -> Value {
    let content = json!({ "msgtype": "m.text", "body": body });
    let content = serde_json::from_value(content).unwrap();
    let encrypted =
        machine.encrypt_room_event_raw(room_id, "m.room.message", &content).await.unwrap();
    #[cfg(feature = "encryption_result")]
    let encrypted = encrypted.content;
    json!({
        "event_id": format!("${}", body.replace(' ', "-")),
        "origin_server_ts": 1,
        "sender": machine.user_id(),
        "type": "m.room.encrypted",
        "content": encrypted,
    })
}

async fn decrypt(machine: &OlmMachine, room_id: &RoomId, event: &Value) {
    let event = serde_json::from_value(event.clone()).unwrap();
    #[cfg(feature = "decryption_settings")]
    machine.decrypt_room_event(&event, room_id, &SETTINGS).await.unwrap();
    #[cfg(not(feature = "decryption_settings"))]
    machine.decrypt_room_event(&event, room_id).await.unwrap();
}

/// What machines seldom save by themselves.
async fn save_more(store: &SqliteCryptoStore, user_id: &UserId, room_id: &RoomId) {
    let request = json!({
        "request_recipient": user_id, "request_id": "a-request", "sent_out": true,
        "info": { "SecretRequest": "m.megolm_backup.v1" },
    });
    let settings = json!({
        "algorithm": "m.megolm.v1.aes-sha2", "only_allow_trusted_devices": true,
        "session_rotation_period": { "secs": 600, "nanos": 0 },
        "session_rotation_period_messages": 50, "encrypt_state_events": false,
    });
    let key: Vec<u8> = (0..32).collect();
    let changes = Changes {
        backup_version: Some("1".to_owned()),
        backup_decryption_key: Some(serde_json::from_value(json!(key)).unwrap()),
        key_requests: vec![serde_json::from_value(request).unwrap()],
        room_settings: [(room_id.to_owned(), serde_json::from_value(settings).unwrap())].into(),
        ..Changes::default()
    };
    store.save_changes(changes).await.unwrap();
    store.set_custom_value("my-value", b"a fixture".to_vec()).await.unwrap();
    let sessions = store.get_inbound_group_sessions().await.unwrap();
    let ids = [(sessions[0].room_id(), sessions[0].session_id())];
    #[cfg(feature = "mark_version")]
    store.mark_inbound_group_sessions_as_backed_up("1", &ids).await.unwrap();
    #[cfg(not(feature = "mark_version"))]
    store.mark_inbound_group_sessions_as_backed_up(&ids).await.unwrap();
}

/// Two people talk, and are interrupted. Tells what is on its way.
async fn talk(relay: &mut Relay, alice: &OlmMachine, bob: &OlmMachine, room_id: &RoomId) -> Value {
    let (alice_id, bob_id) = (alice.user_id(), bob.user_id());
    relay.serve(alice).await;
    relay.serve(bob).await;
    for (machine, other) in [(alice, bob_id), (bob, alice_id)] {
        machine.update_tracked_users([other].into_iter()).await.unwrap();
        relay.serve(machine).await;
    }
    relay.share(alice, room_id, bob_id).await;
    relay.sync(bob, "b1").await;
    relay.share(bob, room_id, alice_id).await;
    let withheld = json!({
        "sender": bob_id, "type": "m.room_key.withheld", "content": {
            "algorithm": "m.megolm.v1.aes-sha2", "code": "m.unverified", "reason": "a fixture",
            "room_id": room_id, "session_id": "a-session-that-was-withheld",
            "sender_key": bob.identity_keys().curve25519.to_base64(),
        },
    });
    relay.inbox.entry(alice_id.to_string()).or_default().push(withheld);
    relay.sync(alice, "a1").await;
    for number in 0..3 {
        let event = encrypt(alice, room_id, &format!("read by Bob {number}")).await;
        decrypt(bob, room_id, &event).await;
        let event = encrypt(bob, room_id, &format!("read by Alice {number}")).await;
        decrypt(alice, room_id, &event).await;
    }
    // A second exchange: the Olm session has been answered.
    let second = RoomId::parse("!second:example.org").unwrap();
    relay.share(alice, &second, bob_id).await;
    relay.sync(bob, "b2").await;
    let to_bob = encrypt(alice, room_id, "from Alice, on its way").await;
    let to_alice = encrypt(bob, room_id, "from Bob, on its way").await;
    // Bob's next room key is on its way, too.
    let third = RoomId::parse("!third:example.org").unwrap();
    relay.share(bob, &third, alice_id).await;
    let in_third = encrypt(bob, &third, "from Bob, with a new key").await;
    let to_device = relay.inbox.remove(alice_id.as_str()).unwrap();
    json!({
        "user_id": alice_id, "room_id": room_id, "to_bob": to_bob, "to_alice": to_alice,
        "to_device": to_device, "third": third, "in_third": in_third,
        "ed25519": alice.identity_keys().ed25519.to_base64(),
        "rooms": [room_id, second],
    })
}

async fn run(directory: PathBuf) {
    let open = |name: &str| directory.join(name);
    let mut stores = Vec::new();
    stores.push(("plain", SqliteCryptoStore::open(open("plain"), None).await.unwrap()));
    let store = SqliteCryptoStore::open(open("passphrase"), Some(PASSPHRASE)).await.unwrap();
    stores.push(("passphrase", store));
    #[cfg(feature = "open_with_key")]
    stores.push(("key", SqliteCryptoStore::open_with_key(open("key"), Some(&KEY)).await.unwrap()));
    let bob_id = UserId::parse("@bob:example.org").unwrap();
    let bob_store = SqliteCryptoStore::open(open("bob"), None).await.unwrap();
    let bob = machine(&bob_id, bob_store).await;
    let mut relay = Relay::default();
    let mut expected = BTreeMap::new();
    for (name, store) in stores {
        let user_id = UserId::parse(format!("@alice-{name}:example.org")).unwrap();
        let room_id = RoomId::parse(format!("!{name}:example.org")).unwrap();
        let alice = machine(&user_id, store.clone()).await;
        let _ = alice.bootstrap_cross_signing(true).await.unwrap();
        let mut said = talk(&mut relay, &alice, &bob, &room_id).await;
        save_more(&store, &user_id, &room_id).await;
        said["inbound"] = json!(store.get_inbound_group_sessions().await.unwrap().len());
        expected.insert(name.to_owned(), said);
    }
    expected.insert("bob".to_owned(), json!({ "user_id": bob_id }));
    let text = serde_json::to_string(&expected).unwrap();
    fs::write(directory.join("expected.json"), text).unwrap();
}

/// The last connection moves what is in the WAL file into the database's, and deletes it.
fn wait_until_closed(directory: &PathBuf) {
    for _ in 0..300 {
        let folders = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let is_open = |path: &PathBuf| path.join("matrix-sdk-crypto.sqlite3-wal").exists();
        if !folders.filter(|path| path.is_dir()).any(|path| is_open(&path)) {
            return;
        }
        sleep(Duration::from_millis(100));
    }
    panic!("a file is still open");
}

fn main() {
    let directory = PathBuf::from(std::env::args().nth(1).expect("give a directory"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run(directory.clone()));
    // Connections are closed on threads of their own.
    wait_until_closed(&directory);
}
