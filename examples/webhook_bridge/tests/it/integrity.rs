//! Rollback detection, replays, corrupt rows, and pruning.

use serde_json::{Value, json};

use crate::support::{Bridge, Call, Harness, MatrixUser, Reply, message, room, sync};

fn is_read(call: &Call) -> bool {
    call.is("GET", "user/") && call.path.contains("/account_data/")
}

fn is_write(call: &Call) -> bool {
    call.is("PUT", "user/") && call.path.contains("/account_data/")
}

/// Set the commit count of the checkpoint.
fn set_commits(harness: &Harness, commits: u64) {
    let mut stored = harness.homeserver.stored.lock().unwrap();
    let checkpoint = stored.account_data.values_mut().next().unwrap();
    checkpoint["commits"] = json!(commits);
}

fn commits(harness: &Harness) -> Value {
    let stored = harness.homeserver.stored.lock().unwrap();
    stored.account_data.values().next().unwrap()["commits"].clone()
}

/// A stopped bridge whose checkpoint has more commits than its database.
async fn rolled_back() -> Harness {
    let harness = Harness::new().await;
    let mut bridge = harness.ready_bridge(&[]).await;
    assert_eq!(bridge.stop().await, 0);
    set_commits(&harness, 1_000_000);
    harness
}

async fn refused(mut bridge: Bridge) {
    assert_eq!(bridge.ended().await, 9, "{}", bridge.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_checkpoint_is_retried_and_never_overwritten() {
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
        let harness = rolled_back().await;
        let reads = harness.homeserver.calls.count(is_read);
        let writes = harness.homeserver.calls.count(is_write);
        let syncs = harness.homeserver.calls.count(Call::is_sync);
        harness.homeserver.calls.rule(move |call| is_read(call).then(failure));
        // Still so after the retry timeout.
        let mut bridge = harness.bridge(&[("BRIDGE_RETRY_TIMEOUT", "1")]);
        harness.homeserver.calls.until_count("three reads", reads + 3, is_read).await;
        assert!(bridge.is_running() && bridge.log().contains("waiting to read the checkpoint"));
        assert!(matches!(bridge.get("/readyz").await, Some((503, _))));
        assert_eq!(bridge.stop().await, 0);
        assert_eq!(harness.homeserver.calls.count(Call::is_sync), syncs, "it synced");
        assert_eq!(harness.homeserver.calls.count(is_write), writes);
        assert_eq!(commits(&harness), 1_000_000);
        // Once the checkpoint can be read, the rollback is detected.
        harness.homeserver.calls.clear_rules();
        refused(harness.bridge(&[])).await;
        assert_eq!(commits(&harness), 1_000_000);
    }
}

/// A homeserver without account data must not stop a bridge that never wrote a checkpoint. A checkpoint
/// that may exist nevertheless is not overwritten.
#[tokio::test(flavor = "multi_thread")]
async fn a_homeserver_without_account_data_is_accepted() {
    let answers: [fn() -> Reply; 2] = [
        || Reply::json(403, json!({"errcode": "M_FORBIDDEN"})),
        // A proxy's 404 does not mean that there is no checkpoint.
        || Reply::text(404, "<html>not found</html>"),
    ];
    for answer in answers {
        let harness = Harness::new().await;
        harness.homeserver.calls.rule(move |call| is_read(call).then(answer));
        let mut bridge = harness.bridge(&[("BRIDGE_RETRY_TIMEOUT", "1")]);
        bridge.ready().await;
        assert!(bridge.log().contains("will not be detected"), "{}", bridge.log());
        assert_eq!(bridge.stop().await, 0);
        assert_eq!(harness.homeserver.calls.count(is_write), 0);
    }
}

/// Some homeservers convert numbers to floats.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_may_be_a_float() {
    let harness = Harness::new().await;
    let mut bridge = harness.ready_bridge(&[]).await;
    assert_eq!(bridge.stop().await, 0);
    let count = commits(&harness).as_f64().unwrap();
    harness.homeserver.stored.lock().unwrap().account_data.values_mut().next().unwrap()["commits"] =
        json!(count);
    let mut bridge = harness.bridge(&[]);
    bridge.ready().await;
    assert_eq!(bridge.stop().await, 0);
    harness.homeserver.stored.lock().unwrap().account_data.values_mut().next().unwrap()["commits"] =
        json!(1e6);
    refused(harness.bridge(&[])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_checkpoint_check_can_be_skipped() {
    let harness = Harness::new().await;
    let mut bridge = harness.ready_bridge(&[]).await;
    assert_eq!(bridge.stop().await, 0);
    harness.homeserver.stored.lock().unwrap().account_data.clear();
    let mut bridge = harness.bridge(&[("BRIDGE_SKIP_CHECKPOINT", "true")]);
    bridge.ready().await;
    assert_eq!(bridge.stop().await, 0);
    assert!(commits(&harness).as_u64().unwrap() > 0);
    let bridge = harness.bridge(&[]);
    bridge.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_is_dead_lettered_also_after_a_restart() {
    let harness = Harness::new().await;
    let mut bridge = harness.ready_bridge(&[]).await;
    let alice = MatrixUser::new(&harness.homeserver, "@alice:x").await;
    let mut answer = sync(&[]);
    answer["to_device"] = json!({"events": alice.room_key("!r:x").await});
    let event = alice.encrypt("!r:x", "$once", "once").await;
    let again = |id: &str| {
        let mut again = event.clone();
        again["event_id"] = json!(id);
        // Neither field is part of the ciphertext.
        again["origin_server_ts"] = json!(999);
        again
    };
    answer["rooms"]["join"] = json!({"!r:x": room(&[event.clone(), again("$twice")])});
    harness.homeserver.push(answer);
    harness.webhook.until_received(&["once"]).await;
    bridge
        .until("the replay to be dead-lettered", async |bridge| {
            bridge.metric("undecryptable_total{reason=\"replay\"}").await == Some(1.0)
        })
        .await;
    assert!(bridge.log().contains("replay"), "{}", bridge.log());
    bridge.kill().await;
    let bridge = harness.bridge(&[("BRIDGE_TAKEOVER", "immediate")]);
    bridge.ready().await;
    let another = alice.encrypt("!r:x", "$next", "next").await;
    harness.homeserver.push(sync(&[("!r:x", room(&[again("$thrice"), another]))]));
    harness.webhook.until_received(&["next"]).await;
    // The original event may be sent again: it is not a replay.
    harness.homeserver.push(sync(&[("!r:x", room(std::slice::from_ref(&event)))]));
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$end")]))]));
    harness.webhook.until_received(&["end"]).await;
    assert_eq!(harness.webhook.bodies(), ["once", "next", "end"]);
    let keys: Vec<_> =
        harness.webhook.requests.all().into_iter().map(|delivery| delivery.key).collect();
    assert_eq!(keys, ["$once", "$next", "$end"]);
    let dead_lettered = "SELECT count(*) FROM webhook_bridge.events
                  WHERE state = 'failed' AND failure LIKE 'replay%'";
    assert_eq!(harness.number(dead_lettered).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_room_key_affects_its_messages_only() {
    let harness = Harness::new().await;
    let mut bridge = harness.ready_bridge(&[]).await;
    let alice = MatrixUser::new(&harness.homeserver, "@alice:x").await;
    let mut answer = sync(&[]);
    answer["to_device"] = json!({"events": alice.room_key("!r:x").await});
    answer["rooms"]["join"] =
        json!({"!r:x": room(&[alice.encrypt("!r:x", "$good", "good").await])});
    harness.homeserver.push(answer);
    harness.webhook.until_received(&["good"]).await;
    bridge.stop().await;
    let columns = "SELECT count(*) FROM information_schema.columns
                   WHERE table_schema = 'matrix_sdk' AND table_name = 'megolm_inbound_sessions'
                     AND column_name = 'data'";
    assert_eq!(harness.number(columns).await, 1);
    let corrupt = "UPDATE matrix_sdk.megolm_inbound_sessions SET data = '\\x00ff'";
    harness.connection().await.batch_execute(corrupt).await.unwrap();
    let bridge = harness.bridge(&[]);
    bridge.ready().await;
    let poisoned = alice.encrypt("!r:x", "$poisoned", "poisoned").await;
    alice.rotate("!r:x").await;
    let mut answer = sync(&[]);
    answer["to_device"] = json!({"events": alice.room_key("!r:x").await});
    let behind = alice.encrypt("!r:x", "$behind", "behind").await;
    answer["rooms"]["join"] = json!({"!r:x": room(&[poisoned, behind]),
        "!p:x": room(&[message("$elsewhere")])});
    harness.homeserver.push(answer);
    harness.webhook.until_received(&["elsewhere", "behind"]).await;
    assert!(!harness.webhook.bodies().contains(&"poisoned".to_owned()));
    assert_eq!(bridge.metric("undecryptable_total{reason=\"corrupt_key\"}").await, Some(1.0));
    assert_eq!(bridge.metric("messages_dead_lettered").await, Some(1.0));
}

/// A sender's corrupt rows fail neither decryption of other messages, nor outgoing requests, nor the
/// processing of responses.
#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_device_affects_its_messages_only() {
    let harness = Harness::new().await;
    let plain = [("STORE_PASSPHRASE", ""), ("--plain", "")];
    let mut bridge = harness.ready_bridge(&plain).await;
    let alice = MatrixUser::new(&harness.homeserver, "@alice:x").await;
    let mut answer = sync(&[]);
    answer["to_device"] = json!({"events": alice.room_key("!r:x").await});
    answer["rooms"]["join"] =
        json!({"!r:x": room(&[alice.encrypt("!r:x", "$good", "good").await])});
    harness.homeserver.push(answer);
    harness.webhook.until_received(&["good"]).await;
    bridge.stop().await;
    let corrupt = "UPDATE matrix_sdk.devices SET data = '\\x00ff'
                       WHERE user_id = convert_to('@alice:x', 'UTF8');
                   UPDATE matrix_sdk.olm_sessions SET data = '\\x00ff'";
    harness.connection().await.batch_execute(corrupt).await.unwrap();
    let mut bridge = harness.bridge(&plain);
    bridge.ready().await;
    let poisoned = alice.encrypt("!r:x", "$poisoned", "poisoned").await;
    let mut answer = sync(&[
        ("!r:x", room(&[poisoned, message("$behind")])),
        ("!p:x", room(&[message("$elsewhere")])),
    ]);
    answer["device_lists"] = json!({"changed": ["@alice:x"]});
    answer["to_device"] = json!({"events": alice.room_key("!q:x").await});
    harness.homeserver.push(answer);
    harness.webhook.until_received(&["elsewhere", "behind"]).await;
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$end")]))]));
    harness.webhook.until_received(&["end"]).await;
    assert!(bridge.is_running());
}

/// Redacted events without content, and timestamps in odd forms.
#[tokio::test(flavor = "multi_thread")]
async fn events_with_odd_fields_are_never_dead_lettered() {
    let harness = Harness::new().await;
    let bridge = harness.ready_bridge(&[]).await;
    let alice = MatrixUser::new(&harness.homeserver, "@alice:x").await;
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
    harness.homeserver.push(answer);
    harness
        .webhook
        .until_received(&["time 0", "time 1", "time 2", "time 3", "time 4", "plain"])
        .await;
    assert_eq!(harness.webhook.requests.all().len(), 6);
    assert_eq!(harness.webhook.requests.all()[5].message["timestamp"], 17);
    assert_eq!(bridge.metric("messages_dead_lettered").await, Some(0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn old_events_are_pruned() {
    let harness = Harness::new().await;
    let mut bridge = harness.ready_bridge(&[]).await;
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$old"), message("$new")]))]));
    harness.webhook.until_received(&["old", "new"]).await;
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
    harness.connection().await.batch_execute(age).await.unwrap();
    let bridge = harness.bridge(&[]);
    bridge.ready().await;
    bridge
        .until("old events to be gone", async |_| {
            harness.number("SELECT count(*) FROM webhook_bridge.events").await == 201
        })
        .await;
    let left = "SELECT count(*) FROM webhook_bridge.events WHERE event_id IN ('$new', 'failed-89')";
    assert_eq!(harness.number(left).await, 2);
}
