//! A slow thing holds up nothing else. What is slow hangs at a latch; the rest arrives meanwhile.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    joins::{hold_joins, joins},
    support::{Call, Person, Reply, World, member, message, plain, room, sync},
};

/// All key queries but those about the bot itself hang.
fn hang_queries(world: &World, latch: &CancellationToken) {
    let latch = latch.clone();
    world.homeserver.calls.rule(move |call| {
        let users = call.body["device_keys"].as_object()?;
        let others = users.keys().any(|user| user != "@bot:example.org");
        (call.is("POST", "keys/query") && others).then(|| Reply::json(500, json!({})).after(&latch))
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn hanging_key_queries_hold_up_only_messages_of_those_they_are_about() {
    let world = World::new().await;
    let _bridge = world.ready_bridge(&[]).await;
    let alice = Person::meet(&world.homeserver, "@alice:x").await;
    let mut first = sync(&[("!r:x", room(&[member("@alice:x")]))]);
    first["to_device"] = json!({"events": alice.room_key("!r:x").await});
    world.homeserver.push(first);
    let event = alice.encrypt("!r:x", "$known", "known").await;
    world.homeserver.push(sync(&[("!r:x", room(&[event]))]));
    world.webhook.has(&["known"]).await;

    let bob = Person::meet(&world.homeserver, "@bob:slow").await;
    let latch = CancellationToken::new();
    hang_queries(&world, &latch);
    let mut second = sync(&[("!q:x", room(&[member("@bob:slow"), member("@carol:slow")]))]);
    second["to_device"] = json!({"events": bob.room_key("!q:x").await});
    world.homeserver.push(second);
    let asked = |calls: &[Call]| {
        calls.iter().any(|call| {
            call.is("POST", "keys/query") && !call.body["device_keys"]["@bob:slow"].is_null()
        })
    };
    let from_bob = bob.encrypt("!q:x", "$bob", "of bob").await;
    world.homeserver.push(sync(&[("!q:x", room(&[from_bob]))]));
    world.homeserver.calls.until("a question about bob", asked).await;
    // The sync goes on, and so do others: unencrypted ones, and known senders in encrypted rooms.
    world.homeserver.push(sync(&[("!p:x", room(&[message("$plain")]))]));
    let event = alice.encrypt("!r:x", "$again", "known again").await;
    world.homeserver.push(sync(&[("!r:x", room(&[event]))]));
    world.webhook.has(&["plain", "known again"]).await;
    assert!(!world.webhook.bodies().contains(&"of bob".to_owned()));

    world.homeserver.calls.no_rules();
    latch.cancel();
    world.webhook.has(&["of bob"]).await;
    let delivery = world.webhook.got.all().pop().unwrap();
    assert_eq!(delivery.message["sender_device"], "PERSON");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_nobody_answers_for_is_delivered_and_said_to_be_so() {
    let world = World::new().await;
    let bridge = world.ready_bridge(&[]).await;
    let bob = Person::meet(&world.homeserver, "@bob:dead").await;
    world.homeserver.calls.rule(|call| {
        let asked = !call.body["device_keys"]["@bob:dead"].is_null();
        (call.is("POST", "keys/query") && asked)
            .then(|| Reply::json(200, json!({"device_keys": {}, "failures": {"dead": {}}})))
    });
    let mut answer = sync(&[]);
    answer["to_device"] = json!({"events": bob.room_key("!r:x").await});
    let event = bob.encrypt("!r:x", "$bob", "of bob").await;
    answer["rooms"]["join"] = json!({"!r:x": room(&[event])});
    world.homeserver.push(answer);
    world.webhook.has(&["of bob"]).await;
    let delivery = world.webhook.got.all().pop().unwrap();
    // His client has put its device into the message with the key.
    assert_eq!(delivery.message["verification"], "unsigned_device");
    assert!(bridge.log().contains("@bob:dead"), "{}", bridge.log());
    let asked = world.homeserver.calls.count(|call| {
        call.is("POST", "keys/query") && !call.body["device_keys"]["@bob:dead"].is_null()
    });
    assert!(asked >= 3, "asked {asked} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_join_holds_up_no_other() {
    let world = World::new().await;
    let _bridge = world.ready_bridge(&[]).await;
    let latch = hold_joins(&world);
    let invite = |ids: &[&str]| -> Value {
        let rooms: serde_json::Map<_, _> =
            ids.iter().map(|id| ((*id).to_owned(), json!({}))).collect();
        json!({"rooms": {"invite": rooms}})
    };
    let hanging: Vec<String> = (0..7).map(|number| format!("!hang{number}:x")).collect();
    world.homeserver.push(invite(&hanging.iter().map(String::as_str).collect::<Vec<_>>()));
    world.homeserver.calls.until_count("seven joins", 7, joins("rooms/!hang")).await;
    world.homeserver.push(invite(&["!good1:x", "!good2:x"]));
    world.homeserver.calls.until_count("the good joins", 2, joins("rooms/!good")).await;
    latch.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_webhook_calls_of_some_rooms_hold_up_no_other() {
    let world = World::new().await;
    let _bridge = world.ready_bridge(&[]).await;
    let latch = CancellationToken::new();
    let hang = latch.clone();
    world.webhook.got.rule(move |delivery| {
        delivery.room.starts_with("!slow").then(|| Reply::text(200, "").after(&hang))
    });
    let many: Vec<_> = (0..30).map(|number| message(&format!("$slow-{number}"))).collect();
    let rooms: Vec<_> =
        (0..3).map(|number| (format!("!slow{number}:x"), room(&many_of(&many, number)))).collect();
    let rooms: Vec<_> = rooms.iter().map(|(id, room)| (id.as_str(), room.clone())).collect();
    world.homeserver.push(sync(&rooms));
    world
        .webhook
        .got
        .until_count("three slow calls", 3, |delivery| delivery.room.starts_with("!slow"))
        .await;
    for number in 0..3 {
        let id = format!("$quick-{number}");
        world.homeserver.push(sync(&[("!p:x", room(&[message(&id)]))]));
        world.webhook.has(&[&id[1..]]).await;
    }
    latch.cancel();
    world.webhook.has(&["0-$slow-29", "1-$slow-29", "2-$slow-29"]).await;
}

fn many_of(events: &[Value], number: usize) -> Vec<Value> {
    let own = |event: &Value| {
        let id = event["event_id"].as_str().unwrap();
        plain(&format!("{id}-{number}"), &format!("{number}-{id}"))
    };
    events.iter().map(own).collect()
}

/// One room has much more to say than fits into a turn: the other comes in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_room_gives_way() {
    let world = World::new().await;
    let _bridge = world.ready_bridge(&[]).await;
    let latch = CancellationToken::new();
    let hang = latch.clone();
    world.webhook.got.rule(move |delivery| {
        (delivery.body == "first").then(|| Reply::text(200, "").after(&hang))
    });
    // All four workers are busy until the latch opens; then the queue is what it is.
    let rooms: Vec<_> = (0..4)
        .map(|number| {
            let mut events = vec![plain(&format!("$first-{number}"), "first")];
            events.extend((0..60).map(|n| plain(&format!("$busy-{number}-{n}"), "busy")));
            (format!("!busy{number}:x"), room(&events))
        })
        .collect();
    let rooms: Vec<_> = rooms.iter().map(|(id, room)| (id.as_str(), room.clone())).collect();
    world.homeserver.push(sync(&rooms));
    world.webhook.got.until_count("four calls", 4, |delivery| delivery.body == "first").await;
    world.homeserver.push(sync(&[("!p:x", room(&[message("$quick")]))]));
    world.homeserver.taken_in().await;
    latch.cancel();
    world.webhook.got.until_count("all", 240, |delivery| delivery.body == "busy").await;
    world.webhook.has(&["quick"]).await;
    let bodies = world.webhook.bodies();
    let quick = bodies.iter().position(|body| body == "quick").unwrap();
    assert!(quick < 60, "it came only as number {quick} of {}", bodies.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_without_an_end_is_given_up_and_starves_no_other() {
    let world = World::new().await;
    let bridge = world.ready_bridge(&[("BRIDGE_GAP_EMPTY_PAGES", "3")]).await;
    let number = AtomicUsize::new(0);
    world.homeserver.calls.rule(move |call| {
        let number = number.fetch_add(1, Relaxed);
        call.is("GET", "rooms/!empty:x/messages")
            .then(|| Reply::json(200, json!({"chunk": [], "end": format!("e{number}")})))
    });
    let latch = CancellationToken::new();
    let hang = latch.clone();
    world.homeserver.calls.rule(move |call| {
        call.is("GET", "rooms/!hang:x/messages")
            .then(|| Reply::json(200, json!({"chunk": [message("$in-the-gap")]})).after(&hang))
    });
    world.homeserver.calls.rule(|call| {
        call.is("GET", "rooms/!r:x/messages")
            .then(|| Reply::json(200, json!({"chunk": [message("$filled")]})))
    });
    let gap = |id: &str| {
        let mut room = room(&[message(id)]);
        room["timeline"]["limited"] = json!(true);
        room
    };
    world.homeserver.push(sync(&[
        ("!empty:x", gap("$behind-empty")),
        ("!hang:x", gap("$behind-hang")),
        ("!r:x", gap("$behind-filled")),
    ]));
    world.webhook.has(&["filled", "behind-filled", "behind-empty"]).await;
    assert!(!world.webhook.bodies().contains(&"behind-hang".to_owned()));
    assert_eq!(bridge.metric("gaps_open").await, Some(1.0));
    let pages = world.homeserver.calls.count(|call| call.is("GET", "rooms/!empty:x/messages"));
    assert_eq!(pages, 3);
    assert_eq!(bridge.metric("gaps_abandoned_total").await, Some(1.0));
    assert!(bridge.log().contains("!empty:x"), "{}", bridge.log());
    latch.cancel();
    world.webhook.has(&["in-the-gap", "behind-hang"]).await;
    assert_eq!(bridge.metric("gaps_open").await, Some(0.0));
}

/// The limit of pages holds across restarts, for pages that are not empty too.
#[tokio::test(flavor = "multi_thread")]
async fn a_gap_that_goes_on_for_ever_is_given_up() {
    let world = World::new().await;
    let mut bridge = world.ready_bridge(&[("BRIDGE_GAP_PAGES", "6")]).await;
    let number = AtomicUsize::new(0);
    let latch = CancellationToken::new();
    let hang = latch.clone();
    world.homeserver.calls.rule(move |call| {
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
    world.homeserver.push(sync(&[("!p:x", behind)]));
    let page = |call: &Call| call.is("GET", "rooms/!p:x/messages");
    world.homeserver.calls.until_count("four pages", 4, page).await;
    bridge.kill().await;
    latch.cancel();
    let _bridge = world.bridge(&[("BRIDGE_GAP_PAGES", "6"), ("BRIDGE_TAKEOVER", "immediate")]);
    world.webhook.has(&["behind"]).await;
    // Three were stored, the fourth was lost with the process, and then three more.
    assert_eq!(world.homeserver.calls.count(page), 7);
}
