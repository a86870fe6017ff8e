//! Senders whose devices change all the time do not block a room for ever.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::{Harness, Homeserver, MatrixUser, Reply, message, room, sync};

const ALICE: &str = "@alice:evil";

fn changed() -> Value {
    json!({"device_lists": {"changed": [ALICE]}})
}

/// Answer each key query for Alice only after a further change of her devices has been synced.
fn change_before_each_answer(homeserver: &Arc<Homeserver>, answer: fn(&Homeserver) -> Value) {
    let server = Arc::downgrade(homeserver);
    homeserver.calls.rule(move |call| {
        if !call.is("POST", "keys/query") || call.body["device_keys"].get(ALICE).is_none() {
            return None;
        }
        let server = server.upgrade()?;
        server.push(changed());
        let latch = CancellationToken::new();
        let reply = Reply::json(200, answer(&server)).after(&latch);
        tokio::spawn(async move {
            server.until_synced().await;
            latch.cancel();
        });
        Some(reply)
    });
}

/// Deliver a message of Alice, followed by one of another user. Returns the first delivery.
async fn deliver_from_alice(answer: fn(&Homeserver) -> Value) -> Value {
    let harness = Harness::new().await;
    let _bridge = harness.ready_bridge(&[]).await;
    let alice = MatrixUser::new(&harness.homeserver, ALICE).await;
    change_before_each_answer(&harness.homeserver, answer);
    let mut first = changed();
    first["to_device"] = json!({"events": alice.room_key("!r:x").await});
    let secret = alice.encrypt("!r:x", "$secret", "secret").await;
    first["rooms"] = sync(&[("!r:x", room(&[secret, message("$behind")]))])["rooms"].clone();
    harness.homeserver.push(first);
    harness.webhook.until_received(&["secret", "behind"]).await;
    harness.webhook.requests.all().remove(0).message
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_unavailable_devices_do_not_block_a_room() {
    deliver_from_alice(|_| json!({"device_keys": {}, "failures": {"evil": {}}})).await;
}

/// A query that is sent after a message was received is recent enough for it.
#[tokio::test(flavor = "multi_thread")]
async fn changes_during_key_queries_do_not_block_a_room() {
    let current_devices = |homeserver: &Homeserver| {
        let users = homeserver.stored.lock().unwrap().users.clone();
        json!({"device_keys": users, "failures": {}})
    };
    assert_eq!(deliver_from_alice(current_devices).await["sender_device"], "PERSON");
}
