//! What tells of a database that was rolled back, and of messages that come again.

use serde_json::{Value, json};

use crate::support::{Bridge, Call, Person, Reply, World, message, room, sync};

fn is_read(call: &Call) -> bool {
    call.is("GET", "user/") && call.path.contains("/account_data/")
}

fn is_write(call: &Call) -> bool {
    call.is("PUT", "user/") && call.path.contains("/account_data/")
}

/// The one checkpoint, and its count of commits set to another.
fn set_commits(world: &World, commits: u64) {
    let mut stored = world.homeserver.stored.lock().unwrap();
    let checkpoint = stored.account_data.values_mut().next().unwrap();
    checkpoint["commits"] = json!(commits);
}

fn commits(world: &World) -> Value {
    let stored = world.homeserver.stored.lock().unwrap();
    stored.account_data.values().next().unwrap()["commits"].clone()
}

/// A bridge that has written its checkpoint and was stopped; the database is rolled back since.
async fn rolled_back() -> World {
    let world = World::new().await;
    let mut bridge = world.ready_bridge(&[]).await;
    assert_eq!(bridge.stop().await, 0);
    set_commits(&world, 1_000_000);
    world
}

async fn refused(mut bridge: Bridge) {
    assert_eq!(bridge.ended().await, 9, "{}", bridge.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_cannot_be_read_is_waited_for_and_never_written_over() {
    let failures: [fn() -> Reply; 8] = [
        || Reply::text(403, "<html>blocked</html>"),
        || Reply::json(403, json!({"errcode": "M_FORBIDDEN"})),
        || Reply::json(401, json!({"errcode": "M_MISSING_TOKEN"})),
        || Reply::json(400, json!({"errcode": "M_INVALID_PARAM"})),
        || Reply::json(404, json!({"errcode": "M_NOT_FOUND"})),
        || Reply::text(404, "not found"),
        || Reply::json(200, json!({"commits": "many"})),
        || Reply::text(500, ""),
    ];
    for failure in failures {
        let world = rolled_back().await;
        let reads = world.homeserver.calls.count(is_read);
        let writes = world.homeserver.calls.count(is_write);
        let syncs = world.homeserver.calls.count(Call::is_sync);
        world.homeserver.calls.rule(move |call| is_read(call).then(failure));
        // Also without the wait that refusals are given.
        let mut bridge = world.bridge(&[("BRIDGE_REFUSAL_WAIT", "1")]);
        world.homeserver.calls.until_count("three reads", reads + 3, is_read).await;
        assert!(bridge.is_running() && bridge.log().contains("waiting to read the checkpoint"));
        assert!(matches!(bridge.get("/readyz").await, Some((503, _))));
        assert_eq!(bridge.stop().await, 0);
        assert_eq!(world.homeserver.calls.count(Call::is_sync), syncs, "it went on");
        assert_eq!(world.homeserver.calls.count(is_write), writes);
        assert_eq!(commits(&world), 1_000_000);
        // Once it can be read, it says what is the matter.
        world.homeserver.calls.no_rules();
        refused(world.bridge(&[])).await;
        assert_eq!(commits(&world), 1_000_000);
    }
}

/// A homeserver that keeps no account data must not stop a bridge that never wrote any; and what may
/// be there all the same is not written over.
#[tokio::test(flavor = "multi_thread")]
async fn a_homeserver_without_account_data_is_put_up_with() {
    let answers: [fn() -> Reply; 2] = [
        || Reply::json(403, json!({"errcode": "M_FORBIDDEN"})),
        // A proxy's, which does not know whether there is one.
        || Reply::text(404, "<html>not found</html>"),
    ];
    for answer in answers {
        let world = World::new().await;
        world.homeserver.calls.rule(move |call| is_read(call).then(answer));
        let mut bridge = world.bridge(&[("BRIDGE_REFUSAL_WAIT", "1")]);
        bridge.ready().await;
        assert!(bridge.log().contains("goes unnoticed"), "{}", bridge.log());
        assert_eq!(bridge.stop().await, 0);
        assert_eq!(world.homeserver.calls.count(is_write), 0);
    }
}

/// Some homeservers write numbers so.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_may_be_a_float() {
    let world = World::new().await;
    let mut bridge = world.ready_bridge(&[]).await;
    assert_eq!(bridge.stop().await, 0);
    let count = commits(&world).as_f64().unwrap();
    world.homeserver.stored.lock().unwrap().account_data.values_mut().next().unwrap()["commits"] =
        json!(count);
    let mut bridge = world.bridge(&[]);
    bridge.ready().await;
    assert_eq!(bridge.stop().await, 0);
    world.homeserver.stored.lock().unwrap().account_data.values_mut().next().unwrap()["commits"] =
        json!(1e6);
    refused(world.bridge(&[])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_may_say_that_the_checkpoint_does_not_matter() {
    let world = World::new().await;
    let mut bridge = world.ready_bridge(&[]).await;
    assert_eq!(bridge.stop().await, 0);
    world.homeserver.stored.lock().unwrap().account_data.clear();
    let mut bridge = world.bridge(&[("BRIDGE_SKIP_CHECKPOINT", "true")]);
    bridge.ready().await;
    assert_eq!(bridge.stop().await, 0);
    assert!(commits(&world).as_u64().unwrap() > 0);
    let bridge = world.bridge(&[]);
    bridge.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_is_parked_also_after_a_restart() {
    let world = World::new().await;
    let mut bridge = world.ready_bridge(&[]).await;
    let alice = Person::meet(&world.homeserver, "@alice:x").await;
    let mut answer = sync(&[]);
    answer["to_device"] = json!({"events": alice.room_key("!r:x").await});
    let event = alice.encrypt("!r:x", "$once", "once").await;
    let again = |id: &str| {
        let mut again = event.clone();
        again["event_id"] = json!(id);
        // Neither is part of what is encrypted.
        again["origin_server_ts"] = json!(999);
        again
    };
    answer["rooms"]["join"] = json!({"!r:x": room(&[event.clone(), again("$twice")])});
    world.homeserver.push(answer);
    world.webhook.has(&["once"]).await;
    bridge
        .until("the replay to be parked", async |bridge| {
            bridge.metric("undecryptable_total{reason=\"replay\"}").await == Some(1.0)
        })
        .await;
    assert!(bridge.log().contains("replay"), "{}", bridge.log());
    bridge.kill().await;
    let bridge = world.bridge(&[("BRIDGE_TAKEOVER", "immediate")]);
    bridge.ready().await;
    let another = alice.encrypt("!r:x", "$next", "next").await;
    world.homeserver.push(sync(&[("!r:x", room(&[again("$thrice"), another]))]));
    world.webhook.has(&["next"]).await;
    // The event itself may come again: it is the same message.
    world.homeserver.push(sync(&[("!r:x", room(std::slice::from_ref(&event)))]));
    world.homeserver.push(sync(&[("!p:x", room(&[message("$end")]))]));
    world.webhook.has(&["end"]).await;
    assert_eq!(world.webhook.bodies(), ["once", "next", "end"]);
    let keys: Vec<_> = world.webhook.got.all().into_iter().map(|delivery| delivery.key).collect();
    assert_eq!(keys, ["$once", "$next", "$end"]);
    let parked = "SELECT count(*) FROM webhook_bridge.events
                  WHERE state = 'failed' AND failure LIKE 'a replay%'";
    assert_eq!(world.number(parked).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_cannot_be_read_costs_its_messages_only() {
    let world = World::new().await;
    let mut bridge = world.ready_bridge(&[]).await;
    let alice = Person::meet(&world.homeserver, "@alice:x").await;
    let mut answer = sync(&[]);
    answer["to_device"] = json!({"events": alice.room_key("!r:x").await});
    answer["rooms"]["join"] =
        json!({"!r:x": room(&[alice.encrypt("!r:x", "$good", "good").await])});
    world.homeserver.push(answer);
    world.webhook.has(&["good"]).await;
    bridge.stop().await;
    let columns = "SELECT count(*) FROM information_schema.columns
                   WHERE table_schema = 'matrix_sdk' AND table_name = 'megolm_inbound_sessions'
                     AND column_name = 'data'";
    assert_eq!(world.number(columns).await, 1);
    let corrupt = "UPDATE matrix_sdk.megolm_inbound_sessions SET data = '\\x00ff'";
    world.connection().await.batch_execute(corrupt).await.unwrap();
    let bridge = world.bridge(&[]);
    bridge.ready().await;
    let poisoned = alice.encrypt("!r:x", "$poisoned", "poisoned").await;
    alice.rotate("!r:x").await;
    let mut answer = sync(&[]);
    answer["to_device"] = json!({"events": alice.room_key("!r:x").await});
    let behind = alice.encrypt("!r:x", "$behind", "behind").await;
    answer["rooms"]["join"] = json!({"!r:x": room(&[poisoned, behind]),
        "!p:x": room(&[message("$elsewhere")])});
    world.homeserver.push(answer);
    world.webhook.has(&["elsewhere", "behind"]).await;
    assert!(!world.webhook.bodies().contains(&"poisoned".to_owned()));
    assert_eq!(bridge.metric("undecryptable_total{reason=\"corrupt_key\"}").await, Some(1.0));
    assert_eq!(bridge.metric("messages_parked").await, Some(1.0));
}

/// Neither does a row about a sender that cannot be read: not in what is decrypted, nor in what is
/// sent or told to the machine.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_cannot_be_read_costs_its_messages_only() {
    let world = World::new().await;
    let plain = [("STORE_PASSPHRASE", ""), ("--plain", "")];
    let mut bridge = world.ready_bridge(&plain).await;
    let alice = Person::meet(&world.homeserver, "@alice:x").await;
    let mut answer = sync(&[]);
    answer["to_device"] = json!({"events": alice.room_key("!r:x").await});
    answer["rooms"]["join"] =
        json!({"!r:x": room(&[alice.encrypt("!r:x", "$good", "good").await])});
    world.homeserver.push(answer);
    world.webhook.has(&["good"]).await;
    bridge.stop().await;
    let corrupt = "UPDATE matrix_sdk.devices SET data = '\\x00ff'
                       WHERE user_id = convert_to('@alice:x', 'UTF8');
                   UPDATE matrix_sdk.olm_sessions SET data = '\\x00ff'";
    world.connection().await.batch_execute(corrupt).await.unwrap();
    let mut bridge = world.bridge(&plain);
    bridge.ready().await;
    let poisoned = alice.encrypt("!r:x", "$poisoned", "poisoned").await;
    let mut answer = sync(&[
        ("!r:x", room(&[poisoned, message("$behind")])),
        ("!p:x", room(&[message("$elsewhere")])),
    ]);
    answer["device_lists"] = json!({"changed": ["@alice:x"]});
    answer["to_device"] = json!({"events": alice.room_key("!q:x").await});
    world.homeserver.push(answer);
    world.webhook.has(&["elsewhere", "behind"]).await;
    world.homeserver.push(sync(&[("!p:x", room(&[message("$end")]))]));
    world.webhook.has(&["end"]).await;
    assert!(bridge.is_running());
}

/// What the homeserver leaves of a redacted message, and what it makes of a time.
#[tokio::test(flavor = "multi_thread")]
async fn odd_events_are_delivered_or_left_out_but_never_parked() {
    let world = World::new().await;
    let bridge = world.ready_bridge(&[]).await;
    let alice = Person::meet(&world.homeserver, "@alice:x").await;
    let mut answer = sync(&[]);
    answer["to_device"] = json!({"events": alice.room_key("!r:x").await});
    let mut events = Vec::new();
    for (number, time) in
        [json!(1.0), json!("2"), json!(1e30), Value::Null, json!({})].iter().enumerate()
    {
        let mut event =
            alice.encrypt("!r:x", &format!("$time-{number}"), &format!("time {number}")).await;
        event["origin_server_ts"] = time.clone();
        event["unsigned"] = json!("young");
        events.push(event);
    }
    for kind in ["m.room.encrypted", "m.room.message", "m.sticker"] {
        events.push(json!({"event_id": format!("$redacted-{kind}"), "sender": "@alice:x",
            "type": kind, "origin_server_ts": 1, "content": {}}));
    }
    let mut plain = message("$plain");
    plain["origin_server_ts"] = json!("17");
    events.push(plain);
    answer["rooms"]["join"] = json!({"!r:x": room(&events)});
    world.homeserver.push(answer);
    world.webhook.has(&["time 0", "time 1", "time 2", "time 3", "time 4", "plain"]).await;
    assert_eq!(world.webhook.got.all().len(), 6);
    assert_eq!(world.webhook.got.all()[5].message["timestamp"], 17);
    assert_eq!(bridge.metric("messages_parked").await, Some(0.0));
}

/// Not only at a start.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_old_is_forgotten() {
    let world = World::new().await;
    let mut bridge = world.ready_bridge(&[]).await;
    world.homeserver.push(sync(&[("!p:x", room(&[message("$old"), message("$new")]))]));
    world.webhook.has(&["old", "new"]).await;
    bridge.stop().await;
    let age = "UPDATE webhook_bridge.events SET done_at = now() - interval '31 days'
               WHERE event_id = '$old';
               INSERT INTO webhook_bridge.events
                   (account, event_id, room_id, position, state, received_at, done_at)
               SELECT account, 'failed-' || age, room_id, 1, 'failed', now(),
                      now() - age * interval '1 day'
               FROM webhook_bridge.events, (VALUES (89), (91)) AS ages (age)
               WHERE event_id = '$new';
               INSERT INTO webhook_bridge.events
                   (account, event_id, room_id, position, state, done_at)
               SELECT account, 'newer-' || number, room_id, 1000 + number, 'delivered', now()
               FROM webhook_bridge.events, generate_series(1, 199) AS number
               WHERE event_id = '$new'";
    world.connection().await.batch_execute(age).await.unwrap();
    let bridge = world.bridge(&[]);
    bridge.ready().await;
    bridge
        .until("old events to be gone", async |_| {
            world.number("SELECT count(*) FROM webhook_bridge.events").await == 201
        })
        .await;
    let left = "SELECT count(*) FROM webhook_bridge.events WHERE event_id IN ('$new', 'failed-89')";
    assert_eq!(world.number(left).await, 2);
}
