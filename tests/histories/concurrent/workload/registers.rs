//! Registers of one or more keys, which are always written together. A value is the name of its write.

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

/// `lone`: one custom value; `pair`: two of them, written within `atomically`; `save`: one `save_changes`.
pub const REGISTERS: [&str; 6] = ["lone-0", "lone-1", "pair-0", "pair-1", "save-0", "save-1"];

/// The keys of a register. Only one has the sync token, since an account has only one.
pub fn keys(register: &str) -> &'static [&'static str] {
    match register {
        "save-0" => &["device", "session", "token"],
        "save-1" => &["device", "session"],
        _ if register.starts_with("pair") => &["a", "b"],
        _ => &["a"],
    }
}

/// Number of rows that a write of the register has in the traced tables.
pub fn traced_rows(register: &str) -> usize {
    if register.starts_with("pair") { 2 } else { 1 }
}

/// A name with delimiters, so that it can be found in a row.
pub fn encode(name: &str) -> String {
    format!("<{name}>")
}

/// The name in a stored text.
pub fn decode(text: &str) -> String {
    let inner = text.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
    inner.map_or_else(|| text.to_owned(), |(name, _)| name.to_owned())
}

pub async fn set(
    store: &PostgresCryptoStore,
    register: &str,
    key: &str,
    op: &str,
) -> Result<(), Failure> {
    let value = encode(op).into_bytes();
    Ok(store.set_custom_value(&format!("{register}-{key}"), value).await?)
}

pub async fn save(store: &PostgresCryptoStore, register: &str, op: &str) -> Result<(), Failure> {
    let mut changes = Changes {
        // A row of its own, so that the write can be found in the traces.
        message_hashes: vec![OlmMessageHash { sender_key: encode(op), hash: "hash".to_owned() }],
        inbound_group_sessions: vec![session(op, room(register))],
        devices: DeviceChanges { changed: vec![device(op, user(register))], ..Default::default() },
        ..Default::default()
    };
    if keys(register).contains(&"token") {
        changes.next_batch_token = Some(encode(op));
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
    Ok(found.map(|text| decode(&text)))
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

/// A device that contains the name. Copied from a template, because creating keys is slow.
fn device(op: &str, user: &UserId) -> DeviceData {
    static TEMPLATE: OnceLock<Value> = OnceLock::new();
    let make = || serde_json::to_value(DeviceData::from_account(&account())).unwrap();
    let mut device = TEMPLATE.get_or_init(make).clone();
    let keys = device["device_keys"].as_object_mut().unwrap();
    keys.insert("user_id".to_owned(), user.as_str().into());
    keys.insert("unsigned".to_owned(), serde_json::json!({ "device_display_name": encode(op) }));
    serde_json::from_value(device).unwrap()
}

/// A room key that contains the name. All processes write the same session.
fn session(op: &str, room: &RoomId) -> InboundGroupSession {
    let mut pickle = template_session().0.clone();
    pickle["room_id"] = room.as_str().into();
    pickle["history_visibility"] = encode(op).into();
    InboundGroupSession::from_pickle(serde_json::from_value(pickle).unwrap()).unwrap()
}

/// The pickle from which the keys of all rooms are made, and its session id.
static SESSION: OnceLock<(Value, String)> = OnceLock::new();

fn template_session() -> &'static (Value, String) {
    SESSION.get().expect("the shared session is not set")
}

/// Creates the session that all processes write; called in the parent.
pub async fn shared_session() -> Value {
    if SESSION.get().is_none() {
        let (ratchet, kind) = (values::megolm_ratchet(), SenderDataType::UnknownDevice);
        let session = values::room_key(&account(), room("save-0"), &ratchet, kind);
        let pickle = serde_json::to_value(session.pickle().await).unwrap();
        let _ = SESSION.set((pickle, session.session_id().to_owned()));
    }
    template_session().0.clone()
}

/// Sets that session; called in the children.
pub fn set_shared_session(pickle: Value) {
    let session = InboundGroupSession::from_pickle(serde_json::from_value(pickle.clone()).unwrap());
    let _ = SESSION.set((pickle, session.unwrap().session_id().to_owned()));
}
