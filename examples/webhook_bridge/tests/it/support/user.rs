//! A Matrix user that encrypts for the bot, with upstream's `OlmMachine`.

use matrix_sdk_crypto::{
    CollectStrategy, EncryptionSettings, OlmMachine, olm::ExportedRoomKey,
    types::requests::AnyOutgoingRequest,
};
use ruma::{
    OwnedUserId, RoomId, UserId,
    api::client::keys::{claim_keys, get_keys},
    device_id,
};
use serde_json::{Value, json};

use super::{
    homeserver::{BOT, Homeserver},
    record::lock,
};

pub struct MatrixUser {
    pub id: OwnedUserId,
    machine: OlmMachine,
}

impl MatrixUser {
    /// A user with an Olm session with the bot. Its device keys are added to the homeserver.
    pub async fn new(homeserver: &Homeserver, user: &str) -> Self {
        let ready = |bot: &super::homeserver::Stored| {
            !bot.device_keys.is_null() && !bot.one_time_keys.is_empty()
        };
        homeserver.calls.until("the bot's keys", |_| ready(&lock(&homeserver.stored))).await;
        let user = UserId::parse(user).unwrap();
        let machine = OlmMachine::new(&user, device_id!("PERSON")).await;
        let this = Self { id: user, machine };
        this.claim_bot_keys(homeserver).await;
        this
    }

    async fn claim_bot_keys(&self, homeserver: &Homeserver) {
        let bot = UserId::parse(BOT).unwrap();
        self.machine.update_tracked_users([bot.as_ref()]).await.unwrap();
        let requests = self.machine.outgoing_requests().await.unwrap();
        let (device_keys, device, key) = {
            let mut stored = lock(&homeserver.stored);
            for request in &requests {
                if let AnyOutgoingRequest::KeysUpload(upload) = request.request() {
                    let keys = serde_json::to_value(&upload.device_keys).unwrap();
                    stored.users.insert(self.id.to_string(), json!({"PERSON": keys}));
                }
            }
            let device = stored.device_keys["device_id"].as_str().unwrap().to_owned();
            (stored.device_keys.clone(), device, stored.one_time_keys.pop_first().unwrap())
        };
        for request in &requests {
            if let AnyOutgoingRequest::KeysQuery(_) = request.request() {
                let mut answer = get_keys::v3::Response::new();
                let devices = json!({BOT: {&device: device_keys}});
                answer.device_keys = serde_json::from_value(devices).unwrap();
                self.machine.mark_request_as_sent(request.request_id(), &answer).await.unwrap();
            }
        }
        let missing = self.machine.get_missing_sessions([bot.as_ref()].into_iter()).await.unwrap();
        let (id, _) = missing.unwrap();
        let claimed = json!({BOT: {&device: {key.0: key.1}}});
        let answer = claim_keys::v3::Response::new(serde_json::from_value(claimed).unwrap());
        self.machine.mark_request_as_sent(&id, &answer).await.unwrap();
    }

    /// The to-device events that carry the room's key to the bot.
    pub async fn room_key(&self, room: &str) -> Vec<Value> {
        let bot = UserId::parse(BOT).unwrap();
        let room = RoomId::parse(room).unwrap();
        // Only `rotate` rotates: the machine panics when a message exceeds its session's limit.
        let settings =
            EncryptionSettings { rotation_period_msgs: 10_000, ..EncryptionSettings::default() };
        let users = [bot.as_ref()];
        let shared = self.machine.share_room_key(&room, users.into_iter(), settings).await.unwrap();
        let mut events = Vec::new();
        for request in shared {
            for content in request.messages.values().flat_map(|devices| devices.values()) {
                let kind = &request.event_type;
                events.push(json!({"sender": self.id, "type": kind, "content": content}));
            }
            self.machine
                .mark_request_as_sent(
                    &request.txn_id,
                    &ruma::api::client::to_device::send_event_to_device::v3::Response::new(),
                )
                .await
                .unwrap();
        }
        events
    }

    /// An encrypted message event; requires an earlier [`Self::room_key`].
    pub async fn encrypt(&self, room: &str, event_id: &str, body: &str) -> Value {
        let content = json!({"msgtype": "m.text", "body": body});
        self.encrypt_content(room, event_id, "m.room.message", content).await
    }

    pub async fn encrypt_content(
        &self,
        room: &str,
        event_id: &str,
        kind: &str,
        content: Value,
    ) -> Value {
        let content = serde_json::from_value(content).unwrap();
        let room = RoomId::parse(room).unwrap();
        let encrypted = self.machine.encrypt_room_event_raw(&room, kind, &content).await.unwrap();
        json!({"event_id": event_id, "sender": self.id, "type": "m.room.encrypted",
            "origin_server_ts": 1, "content": encrypted.content})
    }

    /// The content of an `m.room_key` event from which only the messages to come can be decrypted.
    // Not used by the soak test.
    #[allow(dead_code)]
    pub async fn rest_of_session(&self, room: &str) -> Value {
        let id = RoomId::parse(room).unwrap();
        let session = self.machine.store().get_outbound_group_session(&id).await.unwrap().unwrap();
        json!({"algorithm": "m.megolm.v1.aes-sha2", "room_id": room,
            "session_id": session.session_id(), "session_key": session.session_key().await.to_base64()})
    }

    /// Export the room keys of this user's messages.
    // Not used by the soak test.
    #[allow(dead_code)]
    pub async fn export_keys(&self) -> Vec<ExportedRoomKey> {
        self.machine.store().export_room_keys(|_| true).await.unwrap()
    }

    /// A to-device event of this type, encrypted for the bot.
    // Not used by the soak test.
    #[allow(dead_code)]
    pub async fn to_bot(&self, kind: &str, content: &Value) -> Value {
        let bot = UserId::parse(BOT).unwrap();
        let devices = self.machine.get_user_devices(&bot, None).await.unwrap();
        let device = devices.devices().next().unwrap();
        let strategy = CollectStrategy::AllDevices;
        let content = device.encrypt_event_raw(kind, content, strategy).await.unwrap();
        json!({"sender": self.id, "type": "m.room.encrypted", "content": content})
    }

    /// Start a new Megolm session with the next message.
    pub async fn rotate(&self, room: &str) {
        self.machine.discard_room_key(&RoomId::parse(room).unwrap()).await.unwrap();
    }
}
