//! Bridges that encrypt for their ghosts with the device of their bot (`BRIDGE_TRUSTED_BRIDGES`).

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    documents::sample,
    support::{BOT, Bridge, Call, Harness, MatrixUser, Reply, message, room, sync},
};

const SETTING: (&str, &str) =
    ("BRIDGE_TRUSTED_BRIDGES", "@metabot:x=@meta_*:x, @otherbot:x=@other_*:x");
const MISMATCHED: &str = "undecryptable_total{reason=\"mismatched_sender\"}";

/// A message that this user's device encrypted, under the name of another user.
async fn under_name(owner: &MatrixUser, sender: &str, event_id: &str) -> Value {
    let mut event = owner.encrypt("!r:x", event_id, &event_id[1..]).await;
    event["sender"] = json!(sender);
    event
}

/// Send these events in the encrypted room, followed by a message, and wait until that is delivered.
async fn send(harness: &Harness, keys_of: &[&MatrixUser], events: &[Value], last: &str) {
    let mut keys = Vec::new();
    for owner in keys_of {
        keys.extend(owner.room_key("!r:x").await);
    }
    let mut answer = sync(&[("!r:x", room(&[events, &[message(last)]].concat()))]);
    answer["to_device"] = json!({"events": keys});
    harness.homeserver.push(answer);
    harness.webhook.until_received(&[&last[1..]]).await;
}

fn documents(harness: &Harness) -> Vec<Value> {
    harness.webhook.requests.all().into_iter().map(|delivery| delivery.message).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bots_device_speaks_for_its_ghosts_and_for_nobody_else() {
    let harness = Harness::new().await;
    let bridge = harness.ready_bridge(&[SETTING]).await;
    let metabot = MatrixUser::new(&harness.homeserver, "@metabot:x").await;
    let otherbot = MatrixUser::new(&harness.homeserver, "@otherbot:x").await;
    let mallory = MatrixUser::new(&harness.homeserver, "@mallory:x").await;
    // An ordinary user whose name is that of a ghost.
    let person = MatrixUser::new(&harness.homeserver, "@meta_person:x").await;
    let all = [&metabot, &otherbot, &mallory, &person];
    send(&harness, &all, &[], "$begin").await;
    let events = [
        under_name(&metabot, "@meta_1:x", "$ghost").await,
        under_name(&metabot, "@metabot:x", "$bot").await,
        under_name(&person, "@meta_person:x", "$person").await,
        under_name(&otherbot, "@other_1:x", "$other").await,
        // All of these are forged.
        under_name(&otherbot, "@meta_1:x", "$another-bridge").await,
        under_name(&metabot, "@alice:x", "$no-ghost").await,
        under_name(&metabot, "@meta_1:evil", "$foreign-server").await,
        under_name(&metabot, "@meta_:x", "$no-name").await,
        under_name(&mallory, "@meta_1:x", "$mallory").await,
        under_name(&mallory, "@metabot:x", "$as-the-bot").await,
        under_name(&person, "@meta_1:x", "$person-as-a-ghost").await,
        under_name(&person, "@metabot:x", "$person-as-the-bot").await,
    ];
    send(&harness, &[], &events, "$end").await;
    assert_eq!(harness.webhook.bodies(), ["begin", "ghost", "bot", "person", "other", "end"]);
    let documents = documents(&harness);
    let mut expected = sample("$ghost");
    expected["room_id"] = json!("!r:x");
    expected["sender"] = json!("@meta_1:x");
    expected["timestamp"] = json!(1);
    expected["body"] = json!("ghost");
    expected["content"]["body"] = json!("ghost");
    expected["sent_by_device_of"] = json!("@metabot:x");
    assert_eq!(documents[1], expected);
    for own in &documents[2..4] {
        assert!(own.get("sent_by_device_of").is_none(), "{own}");
        assert_eq!(own["verification"], "unsigned_device");
    }
    assert_eq!(documents[4]["sent_by_device_of"], "@otherbot:x");
    assert_eq!(bridge.metric(MISMATCHED).await, Some(8.0));
    assert_eq!(bridge.metric("messages_dead_lettered").await, Some(8.0));
}

/// What was refused before the setting was made is sent on command.
#[tokio::test(flavor = "multi_thread")]
async fn a_ghost_is_refused_by_default_and_its_dead_letters_can_be_sent_later() {
    let harness = Harness::new().await;
    let mut bridge = harness.ready_bridge(&[]).await;
    let metabot = MatrixUser::new(&harness.homeserver, "@metabot:x").await;
    send(&harness, &[&metabot], &[], "$begin").await;
    let events = [
        under_name(&metabot, "@meta_1:x", "$ghost").await,
        under_name(&metabot, "@alice:x", "$forged").await,
    ];
    send(&harness, &[], &events, "$end").await;
    assert_eq!(harness.webhook.bodies(), ["begin", "end"]);
    assert_eq!(bridge.metric(MISMATCHED).await, Some(2.0));
    assert!(bridge.log().contains("BRIDGE_TRUSTED_BRIDGES"), "{}", bridge.log());
    bridge.stop().await;

    let bridge = harness.bridge(&[SETTING]);
    bridge.ready().await;
    let settings = [("DATABASE_URL", harness.database.url()), ("MATRIX_USER", BOT.to_owned())];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    let (code, _) = Bridge::run(&settings, &["dead-letters", "resend", "--all"]).await;
    assert_eq!(code, 0);
    harness.homeserver.push(sync(&[]));
    harness.webhook.until_received(&["ghost"]).await;
    bridge
        .until("the forged message to be refused again", async |bridge| {
            bridge.metric(MISMATCHED).await == Some(1.0)
        })
        .await;
    assert_eq!(harness.webhook.bodies(), ["begin", "end", "ghost"]);
}

/// Before its devices are known, no device can be said to be the bot's.
#[tokio::test(flavor = "multi_thread")]
async fn a_ghosts_message_waits_for_the_devices_of_its_bot() {
    let harness = Harness::new().await;
    let _bridge = harness.ready_bridge(&[SETTING]).await;
    let metabot = MatrixUser::new(&harness.homeserver, "@metabot:x").await;
    let latch = CancellationToken::new();
    let server = harness.homeserver.clone();
    let held_back = latch.clone();
    let is_query = |call: &Call| {
        call.is("POST", "keys/query") && call.body["device_keys"].get("@metabot:x").is_some()
    };
    let weak = std::sync::Arc::downgrade(&server);
    server.calls.rule(move |call| {
        let users = weak.upgrade()?.stored.lock().unwrap().users.clone();
        let devices = json!({"device_keys": users, "failures": {}});
        is_query(call).then(|| Reply::json(200, devices).after(&held_back))
    });
    let mut answer = sync(&[]);
    answer["to_device"] = json!({"events": metabot.room_key("!r:x").await});
    let ghost = under_name(&metabot, "@meta_1:x", "$ghost").await;
    answer["rooms"]["join"] = json!({"!r:x": room(&[ghost, message("$behind")]),
        "!p:x": room(&[message("$elsewhere")])});
    harness.homeserver.push(answer);
    harness.webhook.until_received(&["elsewhere"]).await;
    server.calls.until_count("a query of the bot's devices", 1, is_query).await;
    assert_eq!(harness.webhook.bodies(), ["elsewhere"]);
    latch.cancel();
    harness.webhook.until_received(&["ghost", "behind"]).await;
    assert_eq!(harness.webhook.bodies(), ["elsewhere", "ghost", "behind"]);
    assert_eq!(documents(&harness)[1]["sent_by_device_of"], "@metabot:x");
}
