//! A slow operation does not delay others. The slow one waits at a latch; the others complete.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    joins::{hold_joins, joins},
    support::{Call, Harness, MatrixUser, Reply, member, message, plain, room, sync},
};

/// All key queries hang except those for the bot itself.
fn hang_queries(harness: &Harness, latch: &CancellationToken) {
    let latch = latch.clone();
    harness.homeserver.calls.rule(move |call| {
        let users = call.body["device_keys"].as_object()?;
        let others = users.keys().any(|user| user != "@bot:example.org");
        (call.is("POST", "keys/query") && others).then(|| Reply::json(500, json!({})).after(&latch))
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn hanging_key_queries_delay_only_messages_of_the_queried_users() {
    let harness = Harness::new().await;
    let _bridge = harness.ready_bridge(&[]).await;
    let alice = MatrixUser::new(&harness.homeserver, "@alice:x").await;
    let mut first = sync(&[("!r:x", room(&[member("@alice:x")]))]);
    first["to_device"] = json!({"events": alice.room_key("!r:x").await});
    harness.homeserver.push(first);
    let event = alice.encrypt("!r:x", "$known", "known").await;
    harness.homeserver.push(sync(&[("!r:x", room(&[event]))]));
    harness.webhook.until_received(&["known"]).await;

    let bob = MatrixUser::new(&harness.homeserver, "@bob:slow").await;
    let latch = CancellationToken::new();
    hang_queries(&harness, &latch);
    let mut second = sync(&[("!q:x", room(&[member("@bob:slow"), member("@carol:slow")]))]);
    second["to_device"] = json!({"events": bob.room_key("!q:x").await});
    harness.homeserver.push(second);
    let queried = |calls: &[Call]| {
        calls.iter().any(|call| {
            call.is("POST", "keys/query") && !call.body["device_keys"]["@bob:slow"].is_null()
        })
    };
    let from_bob = bob.encrypt("!q:x", "$bob", "of bob").await;
    harness.homeserver.push(sync(&[("!q:x", room(&[from_bob]))]));
    harness.homeserver.calls.until("a key query for bob", queried).await;
    // Syncs, unencrypted messages, and messages of known senders continue.
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$plain")]))]));
    let event = alice.encrypt("!r:x", "$again", "known again").await;
    harness.homeserver.push(sync(&[("!r:x", room(&[event]))]));
    harness.webhook.until_received(&["plain", "known again"]).await;
    assert!(!harness.webhook.bodies().contains(&"of bob".to_owned()));

    harness.homeserver.calls.clear_rules();
    latch.cancel();
    harness.webhook.until_received(&["of bob"]).await;
    let delivery = harness.webhook.requests.all().pop().unwrap();
    assert_eq!(delivery.message["sender_device"], "PERSON");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_a_sender_with_unavailable_devices_is_delivered_and_logged() {
    let harness = Harness::new().await;
    let bridge = harness.ready_bridge(&[]).await;
    let bob = MatrixUser::new(&harness.homeserver, "@bob:dead").await;
    harness.homeserver.calls.rule(|call| {
        let concerns_bob = !call.body["device_keys"]["@bob:dead"].is_null();
        (call.is("POST", "keys/query") && concerns_bob)
            .then(|| Reply::json(200, json!({"device_keys": {}, "failures": {"dead": {}}})))
    });
    let mut answer = sync(&[]);
    answer["to_device"] = json!({"events": bob.room_key("!r:x").await});
    let event = bob.encrypt("!r:x", "$bob", "of bob").await;
    answer["rooms"]["join"] = json!({"!r:x": room(&[event])});
    harness.homeserver.push(answer);
    harness.webhook.until_received(&["of bob"]).await;
    let delivery = harness.webhook.requests.all().pop().unwrap();
    // The room key message contains the sender's device keys.
    assert_eq!(delivery.message["verification"], "unsigned_device");
    assert!(bridge.log().contains("@bob:dead"), "{}", bridge.log());
    let queries = harness.homeserver.calls.count(|call| {
        call.is("POST", "keys/query") && !call.body["device_keys"]["@bob:dead"].is_null()
    });
    assert!(queries >= 3, "{queries} queries");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_join_delays_no_other() {
    let harness = Harness::new().await;
    let _bridge = harness.ready_bridge(&[]).await;
    let latch = hold_joins(&harness);
    let invite = |ids: &[&str]| -> Value {
        let rooms: serde_json::Map<_, _> =
            ids.iter().map(|id| ((*id).to_owned(), json!({}))).collect();
        json!({"rooms": {"invite": rooms}})
    };
    let hanging: Vec<String> = (0..7).map(|number| format!("!hang{number}:x")).collect();
    harness.homeserver.push(invite(&hanging.iter().map(String::as_str).collect::<Vec<_>>()));
    harness.homeserver.calls.until_count("seven joins", 7, joins("rooms/!hang")).await;
    harness.homeserver.push(invite(&["!good1:x", "!good2:x"]));
    harness.homeserver.calls.until_count("the good joins", 2, joins("rooms/!good")).await;
    latch.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_webhook_calls_delay_no_other_room() {
    let harness = Harness::new().await;
    let _bridge = harness.ready_bridge(&[]).await;
    let latch = CancellationToken::new();
    let hang = latch.clone();
    harness.webhook.requests.rule(move |delivery| {
        delivery.room.starts_with("!slow").then(|| Reply::text(200, "").after(&hang))
    });
    let many: Vec<_> = (0..30).map(|number| message(&format!("$slow-{number}"))).collect();
    let rooms: Vec<_> =
        (0..3).map(|number| (format!("!slow{number}:x"), room(&many_of(&many, number)))).collect();
    let rooms: Vec<_> = rooms.iter().map(|(id, room)| (id.as_str(), room.clone())).collect();
    harness.homeserver.push(sync(&rooms));
    harness
        .webhook
        .requests
        .until_count("three slow calls", 3, |delivery| delivery.room.starts_with("!slow"))
        .await;
    for number in 0..3 {
        let id = format!("$quick-{number}");
        harness.homeserver.push(sync(&[("!p:x", room(&[message(&id)]))]));
        harness.webhook.until_received(&[&id[1..]]).await;
    }
    latch.cancel();
    harness.webhook.until_received(&["0-$slow-29", "1-$slow-29", "2-$slow-29"]).await;
}

fn many_of(events: &[Value], number: usize) -> Vec<Value> {
    let own = |event: &Value| {
        let id = event["event_id"].as_str().unwrap();
        plain(&format!("{id}-{number}"), &format!("{number}-{id}"))
    };
    events.iter().map(own).collect()
}

/// Rooms with more messages than a batch: another room's message is delivered in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_room_does_not_starve_others() {
    let harness = Harness::new().await;
    let _bridge = harness.ready_bridge(&[]).await;
    let latch = CancellationToken::new();
    let hang = latch.clone();
    harness.webhook.requests.rule(move |delivery| {
        (delivery.body == "first").then(|| Reply::text(200, "").after(&hang))
    });
    // All four slots are busy until the latch opens, so that the queue's content is known.
    let rooms: Vec<_> = (0..4)
        .map(|number| {
            let mut events = vec![plain(&format!("$first-{number}"), "first")];
            events.extend((0..60).map(|n| plain(&format!("$busy-{number}-{n}"), "busy")));
            (format!("!busy{number}:x"), room(&events))
        })
        .collect();
    let rooms: Vec<_> = rooms.iter().map(|(id, room)| (id.as_str(), room.clone())).collect();
    harness.homeserver.push(sync(&rooms));
    harness
        .webhook
        .requests
        .until_count("four calls", 4, |delivery| delivery.body == "first")
        .await;
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$quick")]))]));
    harness.homeserver.until_synced().await;
    latch.cancel();
    harness.webhook.requests.until_count("all", 240, |delivery| delivery.body == "busy").await;
    harness.webhook.until_received(&["quick"]).await;
    let bodies = harness.webhook.bodies();
    let quick = bodies.iter().position(|body| body == "quick").unwrap();
    assert!(quick < 60, "delivered only as number {quick} of {}", bodies.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_gap_is_abandoned_and_starves_no_other() {
    let harness = Harness::new().await;
    let bridge = harness.ready_bridge(&[("BRIDGE_GAP_MAX_EMPTY_PAGES", "3")]).await;
    let number = AtomicUsize::new(0);
    harness.homeserver.calls.rule(move |call| {
        let number = number.fetch_add(1, Relaxed);
        call.is("GET", "rooms/!empty:x/messages")
            .then(|| Reply::json(200, json!({"chunk": [], "end": format!("e{number}")})))
    });
    let latch = CancellationToken::new();
    let hang = latch.clone();
    harness.homeserver.calls.rule(move |call| {
        call.is("GET", "rooms/!hang:x/messages")
            .then(|| Reply::json(200, json!({"chunk": [message("$in-the-gap")]})).after(&hang))
    });
    harness.homeserver.calls.rule(|call| {
        call.is("GET", "rooms/!r:x/messages")
            .then(|| Reply::json(200, json!({"chunk": [message("$filled")]})))
    });
    let gap = |id: &str| {
        let mut room = room(&[message(id)]);
        room["timeline"]["limited"] = json!(true);
        room
    };
    harness.homeserver.push(sync(&[
        ("!empty:x", gap("$behind-empty")),
        ("!hang:x", gap("$behind-hang")),
        ("!r:x", gap("$behind-filled")),
    ]));
    harness.webhook.until_received(&["filled", "behind-filled", "behind-empty"]).await;
    assert!(!harness.webhook.bodies().contains(&"behind-hang".to_owned()));
    assert_eq!(bridge.metric("gaps_open").await, Some(1.0));
    let pages = harness.homeserver.calls.count(|call| call.is("GET", "rooms/!empty:x/messages"));
    assert_eq!(pages, 3);
    assert_eq!(bridge.metric("gaps_abandoned_total").await, Some(1.0));
    assert!(bridge.log().contains("!empty:x"), "{}", bridge.log());
    latch.cancel();
    harness.webhook.until_received(&["in-the-gap", "behind-hang"]).await;
    assert_eq!(bridge.metric("gaps_open").await, Some(0.0));
}

/// The limit applies to pages that are not empty.
#[tokio::test(flavor = "multi_thread")]
async fn the_page_limit_of_a_gap_holds_across_restarts() {
    let harness = Harness::new().await;
    let mut bridge = harness.ready_bridge(&[("BRIDGE_GAP_MAX_PAGES", "6")]).await;
    let number = AtomicUsize::new(0);
    let latch = CancellationToken::new();
    let hang = latch.clone();
    harness.homeserver.calls.rule(move |call| {
        if !call.is("GET", "rooms/!p:x/messages") {
            return None;
        }
        let number = number.fetch_add(1, Relaxed);
        let page =
            json!({"chunk": [message(&format!("$old-{number}"))], "end": format!("e{number}")});
        let reply = Reply::json(200, page);
        Some(if number == 3 { reply.after(&hang) } else { reply })
    });
    let mut behind = room(&[message("$behind")]);
    behind["timeline"]["limited"] = json!(true);
    harness.homeserver.push(sync(&[("!p:x", behind)]));
    let page = |call: &Call| call.is("GET", "rooms/!p:x/messages");
    harness.homeserver.calls.until_count("four pages", 4, page).await;
    bridge.kill().await;
    latch.cancel();
    let _bridge =
        harness.bridge(&[("BRIDGE_GAP_MAX_PAGES", "6"), ("BRIDGE_TAKEOVER", "immediate")]);
    harness.webhook.until_received(&["behind"]).await;
    // Three were stored, the fourth was lost by the kill, then three more were fetched.
    assert_eq!(harness.homeserver.calls.count(page), 7);
}
