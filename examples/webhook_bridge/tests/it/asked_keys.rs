//! Room keys that the bridge asks of the other devices of its user.

use std::collections::HashSet;

use matrix_sdk_crypto::{OlmMachine, types::requests::AnyOutgoingRequest};
use ruma::{UserId, device_id};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    cross_signing::until_signed,
    late_keys::until_waiting,
    secret_storage::{Storage, publish_identity},
    support::{BOT, Bridge, Call, Harness, MatrixUser, Reply, matrix_error, member, room, sync},
};

fn asks(call: &Call) -> bool {
    call.is("PUT", "sendToDevice/m.room_key_request/")
}

/// Another device of the bot's user, with the user's identity, which signs it.
async fn other_device(harness: &Harness) -> OlmMachine {
    let bot = UserId::parse(BOT).unwrap();
    let other = OlmMachine::new(&bot, device_id!("PHONE")).await;
    publish_identity(harness, &other).await;
    let requests = other.outgoing_requests().await.unwrap();
    let keys = requests.iter().find_map(|request| match request.request() {
        AnyOutgoingRequest::KeysUpload(upload) => upload.device_keys.clone(),
        _ => None,
    });
    let mut keys = serde_json::to_value(keys.unwrap()).unwrap();
    let signed = other.bootstrap_cross_signing(false).await.unwrap().upload_signatures_req;
    let signed = serde_json::to_value(&signed.signed_keys).unwrap();
    for (id, signature) in signed[BOT]["PHONE"]["signatures"][BOT].as_object().unwrap() {
        keys["signatures"][BOT][id] = signature.clone();
    }
    let mut stored = harness.homeserver.stored.lock().unwrap();
    stored.users.insert(BOT.to_owned(), json!({"PHONE": keys}));
    drop(stored);
    other
}

/// Messages of as many sessions, whose keys are not sent.
async fn send_without_keys(harness: &Harness, bridge: &Bridge, count: usize) {
    let alice = MatrixUser::new(&harness.homeserver, "@alice:x").await;
    let mut events = Vec::new();
    for number in 0..count {
        alice.rotate("!r:x").await;
        alice.room_key("!r:x").await;
        events.push(alice.encrypt("!r:x", &format!("${number}"), "no key").await);
    }
    harness.homeserver.push(sync(&[("!r:x", room(&events))]));
    until_waiting(bridge, count as f64).await;
}

/// The bridge has the user's identity only after it has received messages.
#[tokio::test(flavor = "multi_thread")]
async fn the_keys_of_earlier_messages_are_asked_for_once_another_device_is_verified() {
    let harness = Harness::new().await;
    let other = other_device(&harness).await;
    let storage = Storage::new(&harness);
    let bridge = harness.ready_bridge(&[("BRIDGE_RECOVERY_KEY", &storage.recovery_key)]).await;
    bridge.until_logged("its private keys are not in this database").await;
    send_without_keys(&harness, &bridge, 25).await;
    assert_eq!(harness.homeserver.calls.count(asks), 0);
    storage.store_identity(&harness, &other).await;
    harness.homeserver.push(json!({"device_lists": {"changed": [BOT]}}));
    harness.homeserver.calls.until("the requests", |all| sessions(all).len() == 25).await;
}

/// As one does that was away, and gets the request together with the key.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_does_not_answer_is_asked_again() {
    let harness = Harness::new().await;
    let other = other_device(&harness).await;
    let storage = Storage::new(&harness);
    storage.store_identity(&harness, &other).await;
    let settings = [("BRIDGE_RECOVERY_KEY", storage.recovery_key.as_str())];
    let bridge = harness.ready_bridge(&settings).await;
    until_signed(&bridge).await;
    send_without_keys(&harness, &bridge, 1).await;
    let calls = &harness.homeserver.calls;
    calls.until_count("the first request, and another one", 3, asks).await;
    let requests: Vec<_> = calls.all().into_iter().filter(asks).collect();
    let contents: Vec<_> = requests.iter().filter_map(content).collect();
    let actions: Vec<_> = contents.iter().map(|content| content["action"].as_str()).collect();
    assert_eq!(actions[..3], ["request", "request_cancellation", "request"].map(Some));
    assert!(contents.iter().all(|content| content["request_id"] == contents[0]["request_id"]));
    // With the same transaction id the homeserver would not pass it on.
    let transactions: HashSet<_> = requests[..3].iter().map(|call| &call.path).collect();
    assert_eq!(transactions.len(), 3);
}

/// Invented messages make many requests: the devices of other users do not wait for these.
#[tokio::test(flavor = "multi_thread")]
async fn devices_are_queried_before_keys_are_asked_for() {
    let harness = Harness::new().await;
    let other = other_device(&harness).await;
    let storage = Storage::new(&harness);
    storage.store_identity(&harness, &other).await;
    let settings = [("BRIDGE_RECOVERY_KEY", storage.recovery_key.as_str())];
    let mut bridge = harness.ready_bridge(&settings).await;
    until_signed(&bridge).await;
    let queries_bob = |call: &Call| {
        call.is("POST", "keys/query") && call.body["device_keys"].get("@bob:x").is_some()
    };
    let calls = &harness.homeserver.calls;
    calls.rule(move |call| {
        (asks(call) || queries_bob(call)).then(|| matrix_error(500, "M_UNKNOWN"))
    });
    harness.homeserver.push(sync(&[("!r:x", room(&[member("@bob:x")]))]));
    calls.until_count("a query that fails", 1, queries_bob).await;
    send_without_keys(&harness, &bridge, 25).await;
    calls.until_count("a request that fails", 1, asks).await;
    bridge.kill().await;
    calls.clear_rules();
    let latch = CancellationToken::new();
    let held = latch.clone();
    calls.rule(move |call| asks(call).then(|| Reply::json(200, json!({})).after(&held)));
    let (queries, asked, before) = (calls.count(queries_bob), calls.count(asks), calls.all().len());
    let _bridge = harness.bridge(&settings);
    calls.until_count("a request", asked + 1, asks).await;
    let order: Vec<_> =
        calls.all().into_iter().filter(|call| asks(call) || queries_bob(call)).collect();
    assert!(queries_bob(&order[queries + asked]), "{order:?}");
    latch.cancel();
    calls.until("all requests", |all| sessions(&all[before..]).len() == 25).await;
}

/// The sessions that are asked for.
fn sessions(calls: &[Call]) -> HashSet<&str> {
    let session = |call| content(call)?["body"]["session_id"].as_str();
    calls.iter().filter(|call| asks(call)).filter_map(session).collect()
}

fn content(call: &Call) -> Option<&Value> {
    call.body["messages"][BOT].as_object()?.values().next()
}
