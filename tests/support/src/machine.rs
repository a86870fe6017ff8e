//! Real `OlmMachine`s on a store, and the part of a homeserver that relays keys between them.

use std::collections::BTreeMap;

use matrix_sdk_crypto::{
    CryptoStoreError, DecryptionSettings, EncryptionSettings, EncryptionSyncChanges, MegolmError,
    OlmError, OlmMachine, TrustRequirement,
    store::IntoCryptoStore,
    types::{
        DeviceKeys as SignedDeviceKeys,
        requests::{AnyOutgoingRequest, OutgoingRequest, ToDeviceRequest},
    },
};
use ruma::{
    DeviceId, OneTimeKeyAlgorithm, OwnedDeviceId, OwnedTransactionId, OwnedUserId, RoomId, UserId,
    api::client::{
        keys::{claim_keys, get_keys, upload_keys},
        sync::sync_events::DeviceLists,
        to_device::send_event_to_device,
    },
    encryption::{DeviceKeys, OneTimeKey},
    events::AnyToDeviceEvent,
    serde::Raw,
    to_device::DeviceIdOrAllDevices,
};
use serde::Serialize;
use serde_json::{Value, json};

/// Opens the machine of a user's only device.
pub async fn open_machine(user_id: &UserId, store: impl IntoCryptoStore) -> OlmMachine {
    machine_of_device(user_id, "DEVICE", store).await
}

/// Opens a machine.
pub async fn machine_of_device(
    user_id: &UserId,
    device_id: &str,
    store: impl IntoCryptoStore,
) -> OlmMachine {
    try_machine_of_device(user_id, device_id, store).await.unwrap()
}

/// The same for a store that may fail. Only this function depends on upstream's version.
pub async fn try_machine_of_device(
    user_id: &UserId,
    device_id: &str,
    store: impl IntoCryptoStore,
) -> Result<OlmMachine, CryptoStoreError> {
    let device_id = <&DeviceId>::from(device_id);
    #[cfg(not(matrix_sdk_0_19))]
    let machine = OlmMachine::with_store(user_id, device_id, store, None).await;
    #[cfg(matrix_sdk_0_19)]
    let machine = matrix_sdk_crypto::OlmMachineBuilder::new(user_id, device_id)
        .with_crypto_store(store)
        .build()
        .await;
    machine
}

pub const SETTINGS: DecryptionSettings =
    DecryptionSettings { sender_device_trust_requirement: TrustRequirement::Untrusted };

type Keys<T> = BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, T>>;

/// The part of a homeserver that handles keys and to-device messages.
#[derive(Default)]
pub struct Relay {
    devices: Keys<Raw<DeviceKeys>>,
    one_time_keys: Keys<BTreeMap<ruma::OwnedOneTimeKeyId, Raw<OneTimeKey>>>,
    inbox: BTreeMap<OwnedUserId, Vec<Raw<AnyToDeviceEvent>>>,
}

impl Relay {
    /// Serves a machine's outgoing requests until there are none.
    pub async fn serve(&mut self, machine: &OlmMachine) {
        loop {
            let requests = machine.outgoing_requests().await.unwrap();
            if requests.is_empty() {
                return;
            }
            for request in requests {
                if let AnyOutgoingRequest::ToDeviceRequest(request) = request.request() {
                    self.send(machine, request).await;
                } else {
                    let answer = self.respond(machine, &request);
                    answer.mark_as_sent(machine).await.unwrap();
                }
            }
        }
    }

    /// The response to an outgoing request.
    pub fn respond(
        &mut self,
        machine: &OlmMachine,
        request: &OutgoingRequest,
    ) -> HomeserverResponse {
        let id = request.request_id().to_owned();
        match request.request() {
            AnyOutgoingRequest::KeysUpload(request) => {
                HomeserverResponse::Upload(id, self.upload(machine, request))
            }
            AnyOutgoingRequest::KeysQuery(request) => {
                HomeserverResponse::Query(id, self.devices_of(request.device_keys.keys()))
            }
            other => panic!("unexpected request {other:?}"),
        }
    }

    fn devices_of<'a>(
        &self,
        users: impl Iterator<Item = &'a OwnedUserId>,
    ) -> get_keys::v3::Response {
        let mut response = get_keys::v3::Response::new();
        for user_id in users {
            if let Some(devices) = self.devices.get(user_id) {
                response.device_keys.insert(user_id.clone(), devices.clone());
            }
        }
        response
    }

    /// Makes the machine fetch the devices of a user that it tracks already.
    pub async fn fetch(&mut self, machine: &OlmMachine, user_id: &UserId) {
        let (id, request) = machine.query_keys_for_users([user_id]);
        let response = self.devices_of(request.device_keys.keys());
        machine.mark_request_as_sent(&id, &response).await.unwrap();
    }

    fn upload(
        &mut self,
        machine: &OlmMachine,
        request: &upload_keys::v3::Request,
    ) -> upload_keys::v3::Response {
        let (user_id, device_id) = (machine.user_id().to_owned(), machine.device_id().to_owned());
        if let Some(keys) = &request.device_keys {
            let devices = self.devices.entry(user_id.clone()).or_default();
            devices.insert(device_id.clone(), keys.clone());
        }
        let keys = self.one_time_keys.entry(user_id).or_default().entry(device_id).or_default();
        keys.extend(request.one_time_keys.clone());
        let count = u32::try_from(keys.len()).unwrap().into();
        upload_keys::v3::Response::new([(OneTimeKeyAlgorithm::SignedCurve25519, count)].into())
    }

    /// Adds a device without a machine.
    pub fn add_device(&mut self, user_id: &UserId, keys: &SignedDeviceKeys) {
        let devices = self.devices.entry(user_id.to_owned()).or_default();
        devices.insert(keys.device_id.clone(), keys.to_raw());
    }

    /// Puts a to-device request into the recipients' inboxes, and marks it as sent.
    pub async fn send(&mut self, machine: &OlmMachine, request: &ToDeviceRequest) {
        self.deliver(machine, request);
        let response = send_event_to_device::v3::Response::new();
        machine.mark_request_as_sent(&request.txn_id, &response).await.unwrap();
    }

    /// Puts a to-device request into the recipients' inboxes.
    pub fn deliver(&mut self, machine: &OlmMachine, request: &ToDeviceRequest) {
        for (user_id, messages) in &request.messages {
            for (device_id, content) in messages {
                assert!(matches!(device_id, DeviceIdOrAllDevices::DeviceId(_)));
                let event = json!({
                    "sender": machine.user_id(),
                    "type": request.event_type,
                    "content": content,
                });
                let event = serde_json::from_value(event).unwrap();
                self.inbox.entry(user_id.clone()).or_default().push(event);
            }
        }
    }

    /// Puts an encrypted to-device message into the recipient's inbox.
    pub fn put(&mut self, sender: &UserId, to: &UserId, content: &impl Serialize) {
        let event = json!({ "sender": sender, "type": "m.room.encrypted", "content": content });
        self.inbox.entry(to.to_owned()).or_default().push(serde_json::from_value(event).unwrap());
    }

    /// The to-device events in a user's inbox.
    pub fn waiting_for(&self, user_id: &UserId) -> Vec<Raw<AnyToDeviceEvent>> {
        self.inbox.get(user_id).cloned().unwrap_or_default()
    }

    /// Empties a user's inbox; the caller delivers the events.
    pub fn take(&mut self, user_id: &UserId) -> Vec<Raw<AnyToDeviceEvent>> {
        self.inbox.remove(user_id).unwrap_or_default()
    }

    /// Delivers the machine's inbox as one sync.
    pub async fn sync(&mut self, machine: &OlmMachine, token: &str) {
        let sync = self.next_sync(machine, token);
        machine.receive_sync_changes(sync.changes(), &SETTINGS).await.unwrap();
        self.serve(machine).await;
    }

    /// Empties the machine's inbox into a sync.
    pub fn next_sync(&mut self, machine: &OlmMachine, token: &str) -> Sync {
        let counts = self.one_time_keys.get(machine.user_id());
        let count = counts.and_then(|keys| keys.get(machine.device_id())).map_or(0, BTreeMap::len);
        let count = u32::try_from(count).unwrap().into();
        Sync {
            to_device_events: self.take(machine.user_id()),
            one_time_keys_counts: [(OneTimeKeyAlgorithm::SignedCurve25519, count)].into(),
            changed_devices: DeviceLists::new(),
            token: token.to_owned(),
        }
    }

    /// Makes the machine track the users and fetch their devices.
    pub async fn track(&mut self, machine: &OlmMachine, users: &[&UserId]) {
        machine.update_tracked_users(users.iter().copied()).await.unwrap();
        self.serve(machine).await;
    }

    /// Shares the room's key with the users' devices, claiming one-time keys first.
    pub async fn share(&mut self, machine: &OlmMachine, room_id: &RoomId, users: &[&UserId]) {
        let missing = machine.get_missing_sessions(users.iter().copied()).await.unwrap();
        if let Some((id, request)) = missing {
            let mut response = claim_keys::v3::Response::new(BTreeMap::new());
            for (user_id, devices) in &request.one_time_keys {
                for device_id in devices.keys() {
                    let keys = self.one_time_keys.get_mut(user_id).unwrap();
                    let key = keys.get_mut(device_id).unwrap().pop_first().unwrap();
                    let devices = response.one_time_keys.entry(user_id.clone()).or_default();
                    devices.insert(device_id.clone(), [key].into());
                }
            }
            machine.mark_request_as_sent(&id, &response).await.unwrap();
        }
        self.share_directly(machine, room_id, users).await;
    }

    /// The same without claiming one-time keys.
    pub async fn share_directly(
        &mut self,
        machine: &OlmMachine,
        room_id: &RoomId,
        users: &[&UserId],
    ) {
        let settings = EncryptionSettings::default();
        let requests =
            machine.share_room_key(room_id, users.iter().copied(), settings).await.unwrap();
        for request in requests {
            self.send(machine, &request).await;
        }
    }
}

/// A homeserver's response to the request with this id.
pub enum HomeserverResponse {
    Upload(OwnedTransactionId, upload_keys::v3::Response),
    Query(OwnedTransactionId, get_keys::v3::Response),
}

impl HomeserverResponse {
    pub async fn mark_as_sent(&self, machine: &OlmMachine) -> Result<(), OlmError> {
        match self {
            Self::Upload(id, response) => machine.mark_request_as_sent(id, response).await,
            Self::Query(id, response) => machine.mark_request_as_sent(id, response).await,
        }
    }
}

/// The contents of one sync.
pub struct Sync {
    to_device_events: Vec<Raw<AnyToDeviceEvent>>,
    one_time_keys_counts: BTreeMap<OneTimeKeyAlgorithm, ruma::UInt>,
    changed_devices: DeviceLists,
    token: String,
}

impl Sync {
    pub fn changes(&self) -> EncryptionSyncChanges<'_> {
        EncryptionSyncChanges {
            to_device_events: self.to_device_events.clone(),
            changed_devices: &self.changed_devices,
            one_time_keys_counts: &self.one_time_keys_counts,
            unused_fallback_keys: None,
            next_batch_token: Some(self.token.clone()),
        }
    }
}

/// Encrypts a text message, as the event that the room's members receive.
pub async fn encrypt(machine: &OlmMachine, room_id: &RoomId, body: &str) -> Value {
    try_encrypt(machine, room_id, body).await.unwrap()
}

/// The same, where the store may fail.
pub async fn try_encrypt(
    machine: &OlmMachine,
    room_id: &RoomId,
    body: &str,
) -> Result<Value, MegolmError> {
    let content = json!({ "msgtype": "m.text", "body": body });
    let content = serde_json::from_value(content).unwrap();
    let encrypted = machine.encrypt_room_event_raw(room_id, "m.room.message", &content).await?;
    Ok(json!({
        "event_id": format!("${}", ruma::TransactionId::new()),
        "origin_server_ts": 1,
        "sender": machine.user_id(),
        "type": "m.room.encrypted",
        "content": encrypted.content,
    }))
}

/// Decrypts an event and returns its body.
pub async fn decrypt(machine: &OlmMachine, room_id: &RoomId, event: &Value) -> String {
    let event = serde_json::from_value(event.clone()).unwrap();
    let decrypted = machine.decrypt_room_event(&event, room_id, &SETTINGS).await.unwrap();
    let event: Value = decrypted.event.deserialize_as().unwrap();
    event["content"]["body"].as_str().unwrap().to_owned()
}
