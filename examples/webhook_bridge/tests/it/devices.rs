//! Senders whose devices change all the time hold up nobody for ever.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::{Homeserver, Person, Reply, World, message, room, sync};

const ALICE: &str = "@alice:evil";

fn changed() -> Value {
    json!({"device_lists": {"changed": [ALICE]}})
}

/// Each question about Alice is answered after the homeserver has said that her devices changed again,
/// and the bridge has taken that in.
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
            server.taken_in().await;
            latch.cancel();
        });
        Some(reply)
    });
}

/// A message of Alice, and behind it one of somebody else. How the first was delivered.
async fn of_alice(answer: fn(&Homeserver) -> Value) -> Value {
    let world = World::new().await;
    let _bridge = world.ready_bridge(&[]).await;
    let alice = Person::meet(&world.homeserver, ALICE).await;
    change_before_each_answer(&world.homeserver, answer);
    let mut first = changed();
    first["to_device"] = json!({"events": alice.room_key("!r:x").await});
    let secret = alice.encrypt("!r:x", "$secret", "secret").await;
    first["rooms"] = sync(&[("!r:x", room(&[secret, message("$behind")]))])["rooms"].clone();
    world.homeserver.push(first);
    world.webhook.has(&["secret", "behind"]).await;
    world.webhook.got.all().remove(0).message
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_one_who_cannot_be_asked_about_hold_up_nobody() {
    of_alice(|_| json!({"device_keys": {}, "failures": {"evil": {}}})).await;
}

/// What is told after a message came is enough for it.
#[tokio::test(flavor = "multi_thread")]
async fn changes_that_overtake_the_answers_hold_up_nobody() {
    let told = |homeserver: &Homeserver| {
        let users = homeserver.stored.lock().unwrap().users.clone();
        json!({"device_keys": users, "failures": {}})
    };
    assert_eq!(of_alice(told).await["sender_device"], "PERSON");
}
