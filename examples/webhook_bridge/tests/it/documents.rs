//! The documents of each kind of message are the samples of the README.

use serde_json::{Value, json};

use crate::support::{Bridge, Harness, MatrixUser, room, sync};

const ROOM: &str = "!OLL25zxinW2O:example.org";
const ALICE: &str = "@alice:example.org";

/// The samples of documents, by their event ids.
pub fn sample(event_id: &str) -> Value {
    let readme = include_str!("../../README.md");
    let blocks = readme.split("```json\n").skip(1).map(|block| block.split("```").next().unwrap());
    let mut samples = blocks.filter_map(|block| serde_json::from_str::<Value>(block).ok());
    let found =
        samples.find(|sample| sample["event_id"] == event_id && sample["content"].is_object());
    found.unwrap_or_else(|| panic!("the README has no sample {event_id}"))
}

/// The content that the sender sent; of attachments, the one with keys.
fn content(event_id: &str) -> Value {
    let event_id = if event_id == "$file" { "$file-with-keys" } else { event_id };
    sample(event_id)["content"].clone()
}

/// Send the events of these samples, and return their documents.
async fn deliver(harness: &Harness, alice: &MatrixUser, ids: &[&str]) -> Vec<Value> {
    let mut events = Vec::new();
    for id in ids {
        let sample = sample(id);
        let kind = sample["type"].as_str().unwrap();
        let mut event = if sample["encrypted"] == true {
            alice.encrypt_content(ROOM, id, kind, content(id)).await
        } else {
            json!({"event_id": id, "sender": ALICE, "type": kind, "content": content(id)})
        };
        event["origin_server_ts"] = sample["timestamp"].clone();
        events.push(event);
    }
    harness.homeserver.push(sync(&[(ROOM, room(&events))]));
    let delivered = |id: &str| {
        let all = harness.webhook.requests.all();
        all.into_iter().find(|delivery| delivery.key == id).map(|delivery| delivery.message)
    };
    let last = *ids.last().unwrap();
    harness.webhook.requests.until_count(last, 1, |delivery| delivery.key == last).await;
    ids.iter().map(|id| delivered(id).unwrap_or_default()).collect()
}

async fn start(harness: &Harness, settings: &[(&str, &str)]) -> (Bridge, MatrixUser) {
    let bridge = harness.ready_bridge(settings).await;
    let alice = MatrixUser::new(&harness.homeserver, ALICE).await;
    let encryption = json!({"event_id": "$encryption", "sender": ALICE, "state_key": "",
        "type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}});
    let mut keys = sync(&[(ROOM, room(&[encryption]))]);
    keys["to_device"] = json!({"events": alice.room_key(ROOM).await});
    harness.homeserver.push(keys);
    (bridge, alice)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_message_has_the_document_of_its_sample() {
    let harness = Harness::new().await;
    let (_bridge, alice) = start(&harness, &[("BRIDGE_REACTIONS", "true")]).await;
    let ids = ["$edit", "$reply", "$thread", "$reaction", "$redaction", "$file", "$plain"];
    let documents = deliver(&harness, &alice, &ids).await;
    for (id, document) in ids.iter().zip(documents) {
        assert_eq!(document, sample(id), "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reactions_are_left_out_and_keys_passed_on_as_configured() {
    let harness = Harness::new().await;
    let (bridge, alice) = start(&harness, &[("BRIDGE_ATTACHMENTS", "keys")]).await;
    let ids = ["$reaction", "$file-with-keys", "$plain"];
    let documents = deliver(&harness, &alice, &ids).await;
    assert_eq!(documents, [Value::Null, sample("$file-with-keys"), sample("$plain")]);
    bridge
        .until("the reaction to be left out", async |bridge| {
            bridge.metric("messages_pending").await == Some(0.0)
        })
        .await;
    let filtered =
        |call: &crate::support::Call| call.is_sync() && call.query["filter"].contains("m.reaction");
    assert_eq!(harness.homeserver.calls.count(filtered), 0);
}

/// A redaction's author and right are checked by homeservers only while its type is readable.
#[tokio::test(flavor = "multi_thread")]
async fn a_ciphertext_cannot_be_what_is_never_encrypted() {
    let harness = Harness::new().await;
    let bridge = harness.ready_bridge(&[]).await;
    let mallory = MatrixUser::new(&harness.homeserver, "@mallory:x").await;
    let mut answer = sync(&[]);
    answer["to_device"] = json!({"events": mallory.room_key("!r:x").await});
    let redaction = json!({"redacts": "$alices", "reason": "forged"});
    let member = json!({"membership": "join"});
    let events = [
        mallory.encrypt_content("!r:x", "$redaction", "m.room.redaction", redaction).await,
        mallory.encrypt_content("!r:x", "$member", "m.room.member", member).await,
        mallory.encrypt_content("!r:x", "$space", "m.space.child", json!({"via": ["x"]})).await,
        mallory.encrypt_content("!r:x", "$custom", "org.example", json!({"body": "custom"})).await,
        mallory.encrypt("!r:x", "$end", "end").await,
    ];
    answer["rooms"]["join"] = json!({"!r:x": room(&events)});
    harness.homeserver.push(answer);
    harness.webhook.until_received(&["end"]).await;
    assert_eq!(harness.webhook.bodies(), ["custom", "end"]);
    assert_eq!(bridge.metric("undecryptable_total{reason=\"malformed\"}").await, Some(3.0));
    assert_eq!(bridge.metric("messages_dead_lettered").await, Some(3.0));
}
