//! An account whose owners are real machines, which encrypt: every ciphertext that is sent is noted with
//! its session and its index.

use std::{collections::BTreeMap, time::Instant};

use matrix_sdk_crypto::{
    EncryptionSettings, OlmMachine,
    store::{CryptoStore, MemoryStore},
    types::requests::ToDeviceRequest,
    vodozemac::{
        megolm::MegolmMessage,
        olm::{Message, PreKeyMessage},
    },
};
use matrix_sdk_postgres::PostgresCryptoStore;
use ruma::{
    RoomId, UserId, api::client::to_device::send_event_to_device, device_id, room_id, user_id,
};
use serde_json::{Value, json};

use super::{
    actor::Opened,
    outcome::Failure,
    pause,
    session::{End, hold},
};
use test_support::machine::{Relay, open_machine, try_machine_of_device};

use crate::concurrent::history::{Note, now};

fn room() -> &'static RoomId {
    room_id!("!room:example.org")
}

fn alice() -> &'static UserId {
    user_id!("@alice:example.org")
}

fn bob() -> &'static UserId {
    user_id!("@bob:example.org")
}

/// Creates Alice's machine, which has a session with Bob's.
pub async fn create_machine(store: PostgresCryptoStore) {
    let mut relay = Relay::default();
    let machine = open_machine(alice(), store.clone()).await;
    relay.serve(&machine).await;
    let other = open_machine(bob(), MemoryStore::new()).await;
    relay.serve(&other).await;
    relay.track(&machine, &[bob()]).await;
    relay.share(&machine, room(), &[bob()]).await;
    drop(machine);
    store.close().await.unwrap();
}

/// Builds a machine on the store, and encrypts with it.
pub async fn work(opened: &Opened, rng: &mut fastrand::Rng) -> End {
    let until = hold(rng);
    let failed = |failure: Failure| {
        opened.note_failure(&failure);
        if failure.is_superseded() { End::Superseded } else { End::Failed }
    };
    let machine = try_machine_of_device(alice(), "DEVICE", opened.store.clone()).await;
    let machine = match machine.map_err(Failure::from) {
        Ok(machine) => machine,
        Err(failure) => return failed(failure),
    };
    while Instant::now() < until && !opened.process.has_ended() {
        if let Err(failure) = encrypt(opened, &machine, rng).await {
            return failed(failure);
        }
        pause(rng, 4).await;
    }
    End::Over
}

async fn encrypt(
    opened: &Opened,
    machine: &OlmMachine,
    rng: &mut fastrand::Rng,
) -> Result<(), Failure> {
    let (begun, mut contents) = (now(), Vec::new());
    let in_room = rng.u32(0..3) > 0;
    let work = async {
        if in_room {
            room_message(machine, &mut contents).await
        } else {
            to_device(machine, &mut contents).await
        }
    };
    // What is encrypted within `atomically` is sent after the commit, and otherwise at once.
    let atomically = rng.u32(0..4) == 0;
    let result = if atomically { opened.store.atomically(work).await } else { work.await };
    if result.is_ok() || !atomically {
        contents.iter().for_each(|content| note_sent(opened, begun, content));
    }
    result
}

/// A room message, and the room's key if it is new.
async fn room_message(machine: &OlmMachine, contents: &mut Vec<Value>) -> Result<(), Failure> {
    let settings = EncryptionSettings { rotation_period_msgs: 20, ..Default::default() };
    let requests = machine.share_room_key(room(), [bob()].into_iter(), settings).await?;
    for request in requests {
        contents.extend(contents_of(&request));
        let response = send_event_to_device::v3::Response::new();
        machine.mark_request_as_sent(&request.txn_id, &response).await?;
    }
    let content = json!({ "msgtype": "m.text", "body": "hello" });
    let content = serde_json::from_value(content).unwrap();
    let encrypted = machine.encrypt_room_event_raw(room(), "m.room.message", &content).await?;
    contents.push(serde_json::to_value(&encrypted.content).unwrap());
    Ok(())
}

async fn to_device(machine: &OlmMachine, contents: &mut Vec<Value>) -> Result<(), Failure> {
    let device = machine.get_device(bob(), device_id!("DEVICE"), None).await?;
    let device = device.ok_or_else(|| Failure::Wrong("Bob's device is gone".to_owned()))?;
    let (content, strategy) = (json!({ "hello": "Bob" }), Default::default());
    let encrypted = device.encrypt_event_raw("m.dummy", &content, strategy).await?;
    contents.push(serde_json::to_value(&encrypted).unwrap());
    Ok(())
}

fn contents_of(request: &ToDeviceRequest) -> Vec<Value> {
    let contents = request.messages.values().flat_map(BTreeMap::values);
    contents.map(|content| serde_json::to_value(content).unwrap()).collect()
}

/// Notes a ciphertext: an Olm message by its chain, a Megolm message by its session.
fn note_sent(opened: &Opened, begun: u64, content: &Value) {
    if let Some(messages) = content["ciphertext"].as_object() {
        for message in messages.values() {
            let body = message["body"].as_str().unwrap();
            let message = match message["type"].as_u64() {
                Some(0) => PreKeyMessage::from_base64(body).unwrap().message().clone(),
                _ => Message::from_base64(body).unwrap(),
            };
            let chain = format!("Olm {}", message.ratchet_key().to_base64());
            note(opened, begun, (chain, message.chain_index()), body);
        }
    } else if let Some(body) = content["ciphertext"].as_str() {
        let index = MegolmMessage::from_base64(body).unwrap().message_index();
        let session = format!("Megolm {}", content["session_id"].as_str().unwrap());
        note(opened, begun, (session, index.into()), body);
    }
}

fn note(opened: &Opened, begun: u64, (session, index): (String, u64), body: &str) {
    let (opening, ciphertext) = (opened.name.clone(), body.to_owned());
    opened.note(Note::Sent { begun, opening, session, index, ciphertext });
}
