//! What is written and read: registers of one or more keys, which are always written together. A
//! value is the name of its write.

use std::sync::OnceLock;

use matrix_sdk_crypto::{
    DeviceData,
    olm::{Account, InboundGroupSession, OlmMessageHash, SenderDataType},
    store::{
        CryptoStore,
        types::{Changes, DeviceChanges},
    },
};
use matrix_sdk_postgres::PostgresCryptoStore;
use ruma::{RoomId, UserId, device_id, room_id, user_id};
use serde_json::Value;

use super::outcome::Failure;
use test_support::values;

/// A lone custom value; a pair of them, written `atomically`; and one `save_changes`.
pub const REGISTERS: [&str; 6] = ["lone-0", "lone-1", "pair-0", "pair-1", "save-0", "save-1"];

/// The keys of a register. An account has one sync token only.
pub fn keys(register: &str) -> &'static [&'static str] {
    match register {
        "save-0" => &["device", "session", "token"],
        "save-1" => &["device", "session"],
        _ if register.starts_with("pair") => &["a", "b"],
        _ => &["a"],
    }
}

/// In how many rows of the tables that are traced a write is found.
pub fn traced_rows(register: &str) -> usize {
    if register.starts_with("pair") { 2 } else { 1 }
}

/// A name, as it is stored: so that it can be found again.
pub fn text(name: &str) -> String {
    format!("<{name}>")
}

/// The name in what is stored.
pub fn name_in(text: &str) -> String {
    let inner = text.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
    inner.map_or_else(|| text.to_owned(), |(name, _)| name.to_owned())
}

pub async fn set(
    store: &PostgresCryptoStore,
    register: &str,
    key: &str,
    op: &str,
) -> Result<(), Failure> {
    let value = text(op).into_bytes();
    Ok(store.set_custom_value(&format!("{register}-{key}"), value).await?)
}

pub async fn save(store: &PostgresCryptoStore, register: &str, op: &str) -> Result<(), Failure> {
    let mut changes = Changes {
        // Its own row, so that the write can be found later.
        message_hashes: vec![OlmMessageHash { sender_key: text(op), hash: "hash".to_owned() }],
        inbound_group_sessions: vec![session(op, room(register))],
        devices: DeviceChanges { changed: vec![device(op, user(register))], ..Default::default() },
        ..Default::default()
    };
    if keys(register).contains(&"token") {
        changes.next_batch_token = Some(text(op));
    }
    Ok(store.save_changes(changes).await?)
}

pub async fn read(
    store: &PostgresCryptoStore,
    register: &str,
    key: &str,
) -> Result<Option<String>, Failure> {
    let found = match key {
        "device" => {
            let device = store.get_device(user(register), device_id!("DEVICE")).await?;
            device.map(|device| device.display_name().unwrap_or_default().to_owned())
        }
        "session" => {
            let id = &template_session().1;
            let session = store.get_inbound_group_session(room(register), id).await?;
            let value = |value: Value| value["history_visibility"].as_str().unwrap().to_owned();
            match session {
                Some(session) => {
                    let pickle = session.pickle().await;
                    Some(value(serde_json::to_value(pickle).unwrap()))
                }
                None => None,
            }
        }
        "token" => store.next_batch_token().await?,
        key => {
            let value = store.get_custom_value(&format!("{register}-{key}")).await?;
            value.map(|value| String::from_utf8(value).unwrap())
        }
    };
    Ok(found.map(|text| name_in(&text)))
}

fn user(register: &str) -> &'static UserId {
    if register == "save-0" { user_id!("@zero:example.org") } else { user_id!("@one:example.org") }
}

fn room(register: &str) -> &'static RoomId {
    if register == "save-0" { room_id!("!zero:example.org") } else { room_id!("!one:example.org") }
}

fn account() -> Account {
    Account::with_device_id(user_id!("@template:example.org"), device_id!("DEVICE"))
}

/// A device that carries the name. It is made once, for a key takes long to make.
fn device(op: &str, user: &UserId) -> DeviceData {
    static TEMPLATE: OnceLock<Value> = OnceLock::new();
    let make = || serde_json::to_value(DeviceData::from_account(&account())).unwrap();
    let mut device = TEMPLATE.get_or_init(make).clone();
    let keys = device["device_keys"].as_object_mut().unwrap();
    keys.insert("user_id".to_owned(), user.as_str().into());
    keys.insert("unsigned".to_owned(), serde_json::json!({ "device_display_name": text(op) }));
    serde_json::from_value(device).unwrap()
}

/// A room key that carries the name. All processes write the same one.
fn session(op: &str, room: &RoomId) -> InboundGroupSession {
    let mut pickle = template_session().0.clone();
    pickle["room_id"] = room.as_str().into();
    pickle["history_visibility"] = text(op).into();
    InboundGroupSession::from_pickle(serde_json::from_value(pickle).unwrap()).unwrap()
}

/// The pickle that all rooms' keys are made from, and its session's id.
static SESSION: OnceLock<(Value, String)> = OnceLock::new();

fn template_session() -> &'static (Value, String) {
    SESSION.get().expect("the processes' session")
}

/// Processes of one workload write the same session: the parent makes it.
pub async fn session_of_all() -> Value {
    if SESSION.get().is_none() {
        let (ratchet, kind) = (values::megolm_ratchet(), SenderDataType::UnknownDevice);
        let session = values::room_key(&account(), room("save-0"), &ratchet, kind);
        let pickle = serde_json::to_value(session.pickle().await).unwrap();
        let _ = SESSION.set((pickle, session.session_id().to_owned()));
    }
    template_session().0.clone()
}

/// And its children take it.
pub fn take_session(pickle: Value) {
    let session = InboundGroupSession::from_pickle(serde_json::from_value(pickle.clone()).unwrap());
    let _ = SESSION.set((pickle, session.unwrap().session_id().to_owned()));
}
