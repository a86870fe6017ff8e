//! The other users of the scenario. Their stores are in memory and not measured.

use std::sync::OnceLock;

use matrix_sdk_crypto::{
    OlmMachine,
    olm::{Account, ExportedRoomKey, SenderDataType},
    store::MemoryStore,
    types::DeviceKeys,
};
use ruma::{DeviceId, OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde_json::Value;

use crate::{
    fixture::inbound_session,
    machine::{Relay, decrypt, encrypt, open_machine},
};

pub struct Friend {
    pub machine: OlmMachine,
    /// The room in which only this friend sends.
    pub room_id: OwnedRoomId,
}

impl Friend {
    /// Opens a friend's machine and uploads its keys.
    pub async fn new(relay: &mut Relay, number: usize) -> Self {
        let user_id = user(number);
        let machine = open_machine(&user_id, MemoryStore::new()).await;
        relay.serve(&machine).await;
        Self { machine, room_id: room(number) }
    }

    /// Sends the bot the friend's room key, and then messages.
    pub async fn talk(&self, relay: &mut Relay, bot: &UserId, messages: usize) -> Vec<Message> {
        relay.track(&self.machine, &[bot]).await;
        relay.share(&self.machine, &self.room_id, &[bot]).await;
        let mut sent = Vec::new();
        for number in 0..messages {
            let body = format!("message {number} of {}", self.machine.user_id());
            let event = encrypt(&self.machine, &self.room_id, &body).await;
            sent.push(Message { room_id: self.room_id.clone(), event, body });
        }
        sent
    }

    /// Reads what the bot wrote.
    pub async fn read(&self, room_id: &RoomId, event: &Value) -> String {
        decrypt(&self.machine, room_id, event).await
    }
}

/// An encrypted message and its plain text.
pub struct Message {
    pub room_id: OwnedRoomId,
    pub event: Value,
    pub body: String,
}

pub fn user(number: usize) -> OwnedUserId {
    OwnedUserId::try_from(format!("@friend{number}:example.org")).unwrap()
}

pub fn room(number: usize) -> OwnedRoomId {
    OwnedRoomId::try_from(format!("!room{number}:example.org")).unwrap()
}

/// Room keys as another client exports them, for 20 rooms.
pub async fn exported_keys(count: usize) -> Vec<ExportedRoomKey> {
    let account = Account::with_device_id(&user(0), <&DeviceId>::from("EXPORTER"));
    let mut keys = Vec::with_capacity(count);
    for number in 0..count {
        let room_id = room(1_000 + number % 20);
        let session = inbound_session(&account, &room_id, SenderDataType::UnknownDevice);
        keys.push(session.export().await);
    }
    keys
}

/// The members of a big room, with the keys of two devices each. Created once, because that is slow.
pub fn members(count: usize) -> &'static [(OwnedUserId, [DeviceKeys; 2])] {
    static MEMBERS: OnceLock<Vec<(OwnedUserId, [DeviceKeys; 2])>> = OnceLock::new();
    MEMBERS.get_or_init(|| {
        let member = |number| {
            let user_id = OwnedUserId::try_from(format!("@member{number}:example.org")).unwrap();
            let devices = ["ONE", "TWO"].map(|device_id| {
                Account::with_device_id(&user_id, <&DeviceId>::from(device_id)).device_keys()
            });
            (user_id, devices)
        };
        (0..count).map(member).collect()
    })
}
