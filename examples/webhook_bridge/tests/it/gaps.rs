//! Gaps of rooms' histories: in order, and counted where something is missing.

use serde_json::{Map, Value, json};

use crate::support::{Call, Reply, World, limited, message, no, room, sync};

fn page(world: &World, room: &str, page: Value) {
    let path = format!("rooms/{room}/messages");
    world
        .homeserver
        .calls
        .rule(move |call| call.is("GET", &path).then(|| Reply::json(200, page.clone())));
}

fn without_token(events: &[Value]) -> Value {
    json!({"timeline": {"limited": true, "events": events}})
}

/// `limited` without `prev_batch`: its pages begin at the newest event, and the room has gone on.
#[tokio::test(flavor = "multi_thread")]
async fn a_gap_from_the_newest_event_keeps_the_order() {
    let world = World::new().await;
    let _bridge = world.ready_bridge(&[]).await;
    let rooms = ["!p:x", "!q:x"];
    for room_id in rooms {
        let first = message(&format!("$1{room_id}"));
        world.homeserver.push(sync(&[(room_id, room(&[first]))]));
    }
    world.webhook.has(&["1!p:x", "1!q:x"]).await;
    let events = |room: &str, numbers: &[u32]| -> Vec<Value> {
        numbers.iter().map(|number| message(&format!("${number}{room}"))).collect()
    };
    page(&world, "!p:x", json!({"start": "a", "end": "b", "chunk": events("!p:x", &[4, 3, 2, 1])}));
    // Here the first page does not even reach what is there already.
    let pages = [events("!q:x", &[5, 4]), events("!q:x", &[3, 2, 1])];
    world.homeserver.calls.rule(move |call| {
        let [newest, older] = &pages;
        call.is("GET", "rooms/!q:x/messages").then(|| match call.query.get("from") {
            None => Reply::json(200, json!({"start": "a", "end": "b", "chunk": newest})),
            Some(_) => Reply::json(200, json!({"start": "b", "chunk": older})),
        })
    });
    for room_id in rooms {
        let behind = without_token(&events(room_id, &[3]));
        world.homeserver.push(sync(&[(room_id, behind)]));
    }
    world.webhook.has(&["2!p:x", "3!p:x", "2!q:x", "3!q:x"]).await;
    for room_id in rooms {
        world.homeserver.push(sync(&[(room_id, room(&events(room_id, &[4, 5])))]));
    }
    world.webhook.has(&["5!p:x", "5!q:x"]).await;
    for room_id in rooms {
        let bodies = world.webhook.bodies().into_iter().filter(|body| body.ends_with(room_id));
        let expected = (1..=5).map(|number| format!("{number}{room_id}"));
        assert!(bodies.eq(expected), "{:?}", world.webhook.bodies());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limited_in_an_odd_form_is_limited() {
    let world = World::new().await;
    let _bridge = world.ready_bridge(&[]).await;
    for (number, odd) in
        [json!("true"), json!(1), json!({}), json!("false"), json!(1e300)].into_iter().enumerate()
    {
        let room_id = format!("!l{number}:x");
        let id = |name: &str| message(&format!("${name}{number}"));
        world.homeserver.push(sync(&[(&room_id, room(&[id("a")]))]));
        page(&world, &room_id, json!({"start": "a", "chunk": [id("b"), id("a")]}));
        let mut bent = limited(&[id("c")]);
        bent["timeline"]["limited"] = odd;
        world.homeserver.push(sync(&[(&room_id, bent)]));
        let c = format!("c{number}");
        world.webhook.has(&[&c]).await;
        let bodies = world.webhook.bodies();
        assert!(bodies.contains(&format!("b{number}")), "{bodies:?}");
    }
}

/// They are no end of a history: what is missing is counted.
#[tokio::test(flavor = "multi_thread")]
async fn pages_that_say_nothing_do_not_fill_a_gap() {
    let world = World::new().await;
    let bridge = world.ready_bridge(&[]).await;
    let pages = [
        json!({}),
        json!({"start": "a", "chunk": null}),
        json!({"chunk": {"a": 1}}),
        json!({"chunk": [], "end": 7}),
        json!({"chunk": [], "end": "\0"}),
    ];
    let mut rooms = Map::new();
    for (number, bent) in pages.iter().enumerate() {
        let room_id = format!("!g{number}:x");
        page(&world, &room_id, bent.clone());
        rooms.insert(room_id, limited(&[message(&format!("${number}"))]));
    }
    world.homeserver.push(json!({"rooms": {"join": rooms}}));
    world.webhook.has(&["0", "1", "2", "3", "4"]).await;
    assert_eq!(bridge.metric("gaps_abandoned_total").await, Some(5.0));
    let asked = |call: &Call| call.is("GET", "rooms/!g0:x/messages");
    assert!(world.homeserver.calls.count(asked) > 1, "a passing fault costs nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_that_fails_while_the_homeserver_works_is_given_up_in_the_end() {
    let world = World::new().await;
    let bridge = world.ready_bridge(&[("BRIDGE_REFUSAL_WAIT", "1")]).await;
    world
        .homeserver
        .calls
        .rule(|call| call.is("GET", "rooms/!p:x/messages").then(|| no(500, "M_UNKNOWN")));
    world.homeserver.calls.rule(|call| {
        call.is("GET", "rooms/!q:x/messages").then(|| Reply::text(200, "<html>sorry</html>"))
    });
    world
        .homeserver
        .push(sync(&[("!p:x", limited(&[message("$p")])), ("!q:x", limited(&[message("$q")]))]));
    world.webhook.has(&["p", "q"]).await;
    assert_eq!(bridge.metric("gaps_abandoned_total").await, Some(2.0));
    assert!(bridge.log().contains("it has failed for"), "{}", bridge.log());
}
