//! Messages whose key comes late: held back, imported, or forwarded without a request.

use matrix_sdk_crypto::{
    olm::ExportedRoomKey, store::CryptoStore,
    types::events::forwarded_room_key::ForwardedRoomKeyContent,
};
use serde_json::json;

use crate::support::{Bridge, Harness, MatrixUser, message, room, sync};

pub async fn until_waiting(bridge: &Bridge, count: f64) {
    bridge
        .until("the messages to wait for their key", async |bridge| {
            bridge.metric("messages_waiting_for_key").await == Some(count)
        })
        .await;
}

/// A message of a session whose key has not been sent yet, and another one that arrives behind it.
async fn send_without_key(harness: &Harness, alice: &MatrixUser) -> Vec<serde_json::Value> {
    let key = alice.room_key("!r:x").await;
    let early = alice.encrypt("!r:x", "$early", "early").await;
    harness.homeserver.push(sync(&[("!r:x", room(&[early, message("$behind")]))]));
    harness.webhook.until_received(&["behind"]).await;
    key
}

/// The homeserver holds the key back, and the bridge is restarted and killed meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_waits_for_an_hour_and_over_restarts() {
    let harness = Harness::new().await;
    let mut bridge = harness.ready_bridge(&[]).await;
    let alice = MatrixUser::new(&harness.homeserver, "@alice:x").await;
    let key = send_without_key(&harness, &alice).await;
    for start in 0..4 {
        until_waiting(&bridge, 1.0).await;
        let age = "UPDATE webhook_bridge.events SET received_at = received_at - interval '1 hour'
                   WHERE event_id = '$early'";
        harness.connection().await.batch_execute(age).await.unwrap();
        let meanwhile = format!("$meanwhile-{start}");
        harness.homeserver.push(sync(&[("!r:x", room(&[message(&meanwhile)]))]));
        harness.webhook.until_received(&[&meanwhile[1..]]).await;
        let missing = bridge.metric("undecryptable_total{reason=\"no_key\"}").await;
        assert_eq!(missing, Some(if start == 0 { 1.0 } else { 0.0 }), "counted again");
        if start % 2 == 0 {
            bridge.kill().await;
        } else {
            assert_eq!(bridge.stop().await, 0);
        }
        bridge = harness.bridge(&[]);
        bridge.ready().await;
    }
    until_waiting(&bridge, 1.0).await;
    assert!(!harness.webhook.bodies().contains(&"early".to_owned()));
    harness.homeserver.push(json!({"to_device": {"events": key}}));
    harness.webhook.until_received(&["early"]).await;
    let delivered = harness.webhook.requests.all();
    let early: Vec<_> = delivered.iter().filter(|delivery| delivery.body == "early").collect();
    assert_eq!(early.len(), 1);
    assert_eq!(early[0].message["verification"], "unsigned_device");
}

/// A start decrypts no waiting messages: there may be many, and new ones would wait behind them.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_does_not_try_waiting_messages_again() {
    let harness = Harness::new().await;
    let mut bridge = harness.ready_bridge(&[]).await;
    let alice = MatrixUser::new(&harness.homeserver, "@alice:x").await;
    let key = send_without_key(&harness, &alice).await;
    until_waiting(&bridge, 1.0).await;
    bridge.kill().await;
    let bridge = harness.bridge(&[]);
    bridge.ready().await;
    harness.homeserver.push(sync(&[("!r:x", room(&[message("$new")]))]));
    harness.webhook.until_received(&["new"]).await;
    assert_eq!(bridge.metric("decryption_seconds_count").await, Some(0.0));
    harness.homeserver.push(json!({"to_device": {"events": key}}));
    harness.webhook.until_received(&["early"]).await;
}

/// As `matrix-postgres import-keys` does, with a file that another client has exported.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_key_is_imported_is_delivered() {
    let harness = Harness::new().await;
    let mut bridge = harness.ready_bridge(&[]).await;
    let alice = MatrixUser::new(&harness.homeserver, "@alice:x").await;
    send_without_key(&harness, &alice).await;
    until_waiting(&bridge, 1.0).await;
    assert_eq!(bridge.stop().await, 0);
    import(&harness, alice.export_keys().await).await;
    let _bridge = harness.bridge(&[]);
    harness.webhook.until_received(&["early"]).await;
    let early = harness.webhook.requests.all().pop().unwrap();
    assert_eq!((early.body.as_str(), early.key.as_str()), ("early", "$early"));
    assert_eq!(early.message["verification"], "insecure_source");
}

async fn import(harness: &Harness, keys: Vec<ExportedRoomKey>) {
    let (store, machine) = harness.machine().await;
    let imported = machine.store().import_room_keys(keys, None, |_, _| {}).await.unwrap();
    assert_eq!(imported.imported_count, 1);
    drop(machine);
    store.close().await.unwrap();
}

/// The bot requests no keys, so the sender of a forwarded one may want to choose what the message says, or
/// to be taken for its sender.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_forwarded_without_being_asked_for_is_ignored() {
    let harness = Harness::new().await;
    let bridge = harness.ready_bridge(&[]).await;
    let alice = MatrixUser::new(&harness.homeserver, "@alice:x").await;
    let mallory = MatrixUser::new(&harness.homeserver, "@mallory:x").await;
    let key = send_without_key(&harness, &alice).await;
    until_waiting(&bridge, 1.0).await;
    let exported = alice.export_keys().await.remove(0);
    let mut forwarded = serde_json::to_value(&exported).unwrap();
    forwarded["algorithm"] = json!("m.megolm.v1.aes-sha2");
    forwarded["sender_claimed_ed25519_key"] = forwarded["sender_claimed_keys"]["ed25519"].clone();
    serde_json::from_value::<ForwardedRoomKeyContent>(forwarded.clone()).unwrap();
    let mut answer = sync(&[("!p:x", room(&[message("$marker")]))]);
    let forwarded = mallory.to_bot("m.forwarded_room_key", &forwarded).await;
    answer["to_device"] = json!({"events": [forwarded]});
    harness.homeserver.push(answer);
    harness.webhook.until_received(&["marker"]).await;
    until_waiting(&bridge, 1.0).await;
    assert_eq!(harness.webhook.bodies(), ["behind", "marker"]);
    let sessions = "SELECT count(*) FROM matrix_sdk.megolm_inbound_sessions";
    assert_eq!(harness.number(sessions).await, 0);
    harness.homeserver.push(json!({"to_device": {"events": key}}));
    harness.webhook.until_received(&["early"]).await;
}
