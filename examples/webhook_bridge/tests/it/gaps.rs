//! Gaps in the history of rooms: filled in order, or abandoned and counted.

use serde_json::{Map, Value, json};

use crate::support::{Call, Harness, Reply, limited, matrix_error, message, room, sync};

fn page(harness: &Harness, room: &str, page: Value) {
    let path = format!("rooms/{room}/messages");
    harness
        .homeserver
        .calls
        .rule(move |call| call.is("GET", &path).then(|| Reply::json(200, page.clone())));
}

fn without_token(events: &[Value]) -> Value {
    json!({"timeline": {"limited": true, "events": events}})
}

/// `limited` without `prev_batch`: paging starts at the newest event, when the room has newer events
/// than the sync.
#[tokio::test(flavor = "multi_thread")]
async fn a_gap_from_the_newest_event_keeps_the_order() {
    let harness = Harness::new().await;
    let _bridge = harness.ready_bridge(&[]).await;
    let rooms = ["!p:x", "!q:x"];
    for room_id in rooms {
        let first = message(&format!("$1{room_id}"));
        harness.homeserver.push(sync(&[(room_id, room(&[first]))]));
    }
    harness.webhook.until_received(&["1!p:x", "1!q:x"]).await;
    let events = |room: &str, numbers: &[u32]| -> Vec<Value> {
        numbers.iter().map(|number| message(&format!("${number}{room}"))).collect()
    };
    page(
        &harness,
        "!p:x",
        json!({"start": "a", "end": "b", "chunk": events("!p:x", &[4, 3, 2, 1])}),
    );
    // The first page does not reach the stored events.
    let pages = [events("!q:x", &[5, 4]), events("!q:x", &[3, 2, 1])];
    harness.homeserver.calls.rule(move |call| {
        let [newest, older] = &pages;
        call.is("GET", "rooms/!q:x/messages").then(|| match call.query.get("from") {
            None => Reply::json(200, json!({"start": "a", "end": "b", "chunk": newest})),
            Some(_) => Reply::json(200, json!({"start": "b", "chunk": older})),
        })
    });
    for room_id in rooms {
        let behind = without_token(&events(room_id, &[3]));
        harness.homeserver.push(sync(&[(room_id, behind)]));
    }
    harness.webhook.until_received(&["2!p:x", "3!p:x", "2!q:x", "3!q:x"]).await;
    for room_id in rooms {
        harness.homeserver.push(sync(&[(room_id, room(&events(room_id, &[4, 5])))]));
    }
    harness.webhook.until_received(&["5!p:x", "5!q:x"]).await;
    for room_id in rooms {
        let bodies = harness.webhook.bodies().into_iter().filter(|body| body.ends_with(room_id));
        let expected = (1..=5).map(|number| format!("{number}{room_id}"));
        assert!(bodies.eq(expected), "{:?}", harness.webhook.bodies());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_limited_flag_counts_as_true() {
    let harness = Harness::new().await;
    let _bridge = harness.ready_bridge(&[]).await;
    for (number, odd) in
        [json!("true"), json!(1), json!({}), json!("false"), json!(1e300)].into_iter().enumerate()
    {
        let room_id = format!("!l{number}:x");
        let id = |name: &str| message(&format!("${name}{number}"));
        harness.homeserver.push(sync(&[(&room_id, room(&[id("a")]))]));
        page(&harness, &room_id, json!({"start": "a", "chunk": [id("b"), id("a")]}));
        let mut malformed = limited(&[id("c")]);
        malformed["timeline"]["limited"] = odd;
        harness.homeserver.push(sync(&[(&room_id, malformed)]));
        let c = format!("c{number}");
        harness.webhook.until_received(&[&c]).await;
        let bodies = harness.webhook.bodies();
        assert!(bodies.contains(&format!("b{number}")), "{bodies:?}");
    }
}

/// A malformed page is not the end of the history: the gap is abandoned and counted.
#[tokio::test(flavor = "multi_thread")]
async fn malformed_pages_do_not_close_a_gap() {
    let harness = Harness::new().await;
    let bridge = harness.ready_bridge(&[]).await;
    let pages = [
        json!({}),
        json!({"start": "a", "chunk": null}),
        json!({"chunk": {"a": 1}}),
        json!({"chunk": [], "end": 7}),
        json!({"chunk": [], "end": "\0"}),
    ];
    let mut rooms = Map::new();
    for (number, malformed) in pages.iter().enumerate() {
        let room_id = format!("!g{number}:x");
        page(&harness, &room_id, malformed.clone());
        rooms.insert(room_id, limited(&[message(&format!("${number}"))]));
    }
    harness.homeserver.push(json!({"rooms": {"join": rooms}}));
    harness.webhook.until_received(&["0", "1", "2", "3", "4"]).await;
    assert_eq!(bridge.metric("gaps_abandoned_total").await, Some(5.0));
    let requests = |call: &Call| call.is("GET", "rooms/!g0:x/messages");
    assert!(harness.homeserver.calls.count(requests) > 1, "the page is retried");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_that_always_fails_is_abandoned() {
    let harness = Harness::new().await;
    let bridge = harness.ready_bridge(&[("BRIDGE_RETRY_TIMEOUT", "1")]).await;
    harness
        .homeserver
        .calls
        .rule(|call| call.is("GET", "rooms/!p:x/messages").then(|| matrix_error(500, "M_UNKNOWN")));
    harness.homeserver.calls.rule(|call| {
        call.is("GET", "rooms/!q:x/messages").then(|| Reply::text(200, "<html>sorry</html>"))
    });
    harness
        .homeserver
        .push(sync(&[("!p:x", limited(&[message("$p")])), ("!q:x", limited(&[message("$q")]))]));
    harness.webhook.until_received(&["p", "q"]).await;
    assert_eq!(bridge.metric("gaps_abandoned_total").await, Some(2.0));
    assert!(bridge.log().contains("requests have failed for"), "{}", bridge.log());
}
