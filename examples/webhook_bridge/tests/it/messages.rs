//! Messages with odd or malformed fields: delivered, dead-lettered or counted.

use serde_json::json;

use crate::support::{Harness, Reply, message, room, sync};

fn event(id: &str, sender: &str, content: &str, more: &str) -> String {
    format!(
        r#"{{"event_id": "{id}", "sender": "{sender}", "type": "m.room.message",
            "origin_server_ts": 1, "content": {content}{more}}}"#
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn events_with_id_and_sender_are_delivered_or_dead_lettered() {
    let harness = Harness::new().await;
    let bridge = harness.ready_bridge(&[]).await;
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let ok = |body: &str| format!(r#"{{"msgtype": "m.text", "body": "{body}"}}"#);
    let unsigned = |unsigned: &str| format!(r#", "unsigned": {unsigned}"#);
    let alice = "@alice:x";
    let delivered = [
        event("$deep-unsigned", alice, &ok("1"), &unsigned(&format!(r#"{{"a": {deep}}}"#))),
        event("$half-unsigned", alice, &ok("2"), &unsigned(r#"{"prev_content": {"n": "\ud83d"}}"#)),
        event("$huge-unsigned", alice, &ok("3"), &unsigned(r#"{"age": 1e999}"#)),
        event("$two-unsigned", alice, &ok("4"), &format!("{0}{0}", unsigned("{}"))),
        event("$odd-redacts", alice, &ok("5"), r#", "redacts": "\ud83d""#),
        event("$huge-time", alice, &ok("10"), "").replace(r#"ts": 1"#, r#"ts": 1e999"#),
        event("$odd-state", alice, &ok("6"), r#", "state_key": 7"#),
        event("$unicode-sender", "@жук:x", &ok("7"), ""),
        event("$upper-sender", "@Alice:x", &ok("8"), ""),
        event("$unïcode-id", alice, &ok("9"), ""),
    ];
    let dead_lettered = [
        event("$half", alice, r#"{"msgtype": "m.text", "body": "half \ud83d"}"#, ""),
        event("$half-elsewhere", alice, r#"{"body": "x", "m.relates_to": {"key": "\ud83d"}}"#, ""),
        event("$huge", alice, r#"{"msgtype": "m.text", "body": "x", "geo": 1e999}"#, ""),
        event("$deep", alice, &format!(r#"{{"body": "x", "a": {deep}}}"#), ""),
        event("$two-contents", alice, &ok("x"), &format!(r#", "content": {}"#, ok("y"))),
    ];
    let good = message("$good").to_string();
    let events = [&delivered[..], &dead_lettered[..], &[good]].concat().join(",");
    harness.homeserver.push_text(&format!(
        r#"{{"next_batch": "NEXT", "rooms": {{"join": {{"!p:x": {{"timeline": {{"limited": false,
            "prev_batch": "p", "events": [{events}]}}}}}}}}}}"#
    ));
    harness.webhook.until_received(&["good"]).await;
    let known = "SELECT count(*) FROM webhook_bridge.events";
    let all = delivered.len() + dead_lettered.len() + 1;
    assert_eq!(harness.number(known).await, all as i64, "{}", bridge.log());
    assert_eq!(bridge.metric("messages_dead_lettered").await, Some(dead_lettered.len() as f64));
    assert_eq!(harness.webhook.bodies().len(), delivered.len() + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_without_id_or_sender_are_counted_and_logged() {
    let harness = Harness::new().await;
    let bridge = harness.ready_bridge(&[]).await;
    let no_sender = json!({"event_id": "$1", "type": "m.room.message", "content": {"body": "x"}});
    let no_id = json!({"sender": "@alice:x", "type": "m.room.message", "content": {"body": "x"}});
    let no_user = crate::support::plain("$2", "x");
    let mut no_user = no_user;
    no_user["sender"] = json!("alice");
    let events = [no_sender, no_id, no_user, json!(null), json!(7), message("$good")];
    harness.homeserver.push(sync(&[("!odd:x", room(&events))]));
    harness.webhook.until_received(&["good"]).await;
    assert_eq!(bridge.metric("events_malformed_total").await, Some(5.0));
    assert!(bridge.log().contains("!odd:x"), "{}", bridge.log());
}

/// Possible in room versions 1 and 2.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_event_id_in_two_rooms_is_two_events() {
    let harness = Harness::new().await;
    let _bridge = harness.ready_bridge(&[]).await;
    let other = crate::support::plain("$same", "other");
    harness.homeserver.push(sync(&[("!q:x", room(&[other]))]));
    harness.webhook.until_received(&["other"]).await;
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$same"), message("$end")]))]));
    harness.webhook.until_received(&["same", "end"]).await;
}

/// A client asks for a verification in an unencrypted room.
#[tokio::test(flavor = "multi_thread")]
async fn a_verification_request_is_no_message() {
    let harness = Harness::new().await;
    let _bridge = harness.ready_bridge(&[]).await;
    let mut request = message("$request");
    request["content"]["msgtype"] = json!("m.key.verification.request");
    harness.homeserver.push(sync(&[("!p:x", room(&[request, message("$next")]))]));
    harness.webhook.until_received(&["next"]).await;
    assert_eq!(harness.webhook.bodies(), ["next"]);
}

/// The first sync only determines where to begin: its events are not delivered.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_sync_asks_for_one_event_of_each_room() {
    let harness = Harness::new().await;
    let _bridge = harness.ready_bridge(&[]).await;
    let syncs = harness.homeserver.calls.all().into_iter().filter(|call| call.is_sync());
    let limits = syncs.map(|call| {
        let filter: serde_json::Value = serde_json::from_str(&call.query["filter"]).unwrap();
        (call.since().is_some(), filter["room"]["timeline"]["limit"].clone())
    });
    let limits: Vec<_> = limits.collect();
    assert_eq!(limits[0], (false, json!(1)));
    assert!(limits[1..].iter().all(|limit| *limit == (true, json!(100))), "{limits:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_redacted_while_the_bridge_is_down_is_not_delivered() {
    let harness = Harness::new().await;
    let mut bridge = harness.ready_bridge(&[]).await;
    let webhook = &harness.webhook.requests;
    webhook.rule(|delivery| (delivery.body == "secret").then(|| Reply::text(503, "down")));
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$secret")]))]));
    webhook.until_count("an attempt", 1, |delivery| delivery.body == "secret").await;
    assert_eq!(bridge.stop().await, 0);
    webhook.clear_rules();
    let attempts = webhook.count(|delivery| delivery.body == "secret");
    let redaction = json!({"event_id": "$redaction", "sender": "@alice:x", "origin_server_ts": 1,
        "type": "m.room.redaction", "content": {"redacts": "$secret"}});
    harness.homeserver.push(sync(&[("!p:x", room(&[redaction, message("$end")]))]));
    let _bridge = harness.bridge(&[]);
    harness.webhook.until_received(&["end"]).await;
    assert_eq!(webhook.count(|delivery| delivery.body == "secret"), attempts);
}
