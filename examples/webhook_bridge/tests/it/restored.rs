//! A homeserver that was restored from a backup, or replaced: no duplicates, no losses.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde_json::{Value, json};

use crate::support::{Call, Harness, Reply, limited, matrix_error, message, room, sync};

/// Refuse syncs until one without a position is requested.
fn lose_positions(harness: &Harness, refusal: fn() -> Reply) {
    let synced_without = AtomicBool::new(false);
    harness.homeserver.calls.rule(move |call| {
        if call.is_sync() && call.since().is_none() {
            synced_without.store(true, Relaxed);
        }
        (call.is_sync() && !synced_without.load(Relaxed)).then(refusal)
    });
}

fn page(harness: &Harness, chunk: Vec<Value>) {
    harness.homeserver.calls.rule(move |call| {
        call.is("GET", "rooms/!p:x/messages")
            .then(|| Reply::json(200, json!({"start": "a", "chunk": chunk})))
    });
}

/// The last known event is gone, and the remaining ones were delivered long ago.
#[tokio::test(flavor = "multi_thread")]
async fn old_messages_are_not_delivered_again() {
    let harness = Harness::new().await;
    let mut bridge = harness.ready_bridge(&[]).await;
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$old1"), message("$old2")]))]));
    harness.webhook.until_received(&["old1", "old2"]).await;
    bridge.stop().await;
    let age = "UPDATE webhook_bridge.events SET done_at = now() - interval '31 days',
                   received_at = now() - interval '31 days';
               INSERT INTO webhook_bridge.events (account, event_id, room_id, position, state, done_at)
               VALUES ('@bot:example.org', '$alone', '!alone:x', 1, 'failed',
                   now() - interval '91 days')";
    harness.connection().await.batch_execute(age).await.unwrap();
    let mut bridge = harness.bridge(&[]);
    let dead_letter = "SELECT count(*) FROM webhook_bridge.events WHERE event_id = '$alone'";
    bridge.until("the pruning", async |_| harness.number(dead_letter).await == 0).await;
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$last")]))]));
    harness.webhook.until_received(&["last"]).await;
    bridge.stop().await;

    harness.homeserver.set_initial(sync(&[
        ("!p:x", limited(&[message("$before"), message("$old2"), message("$since")])),
        ("!r:x", limited(&[message("$unseen")])),
    ]));
    lose_positions(&harness, || matrix_error(400, "M_UNKNOWN_POS"));
    page(&harness, vec![message("$old1"), message("$before")]);
    harness.homeserver.calls.rule(|call| {
        call.is("GET", "rooms/!r:x/messages").then(|| Reply::json(200, json!({"chunk": []})))
    });
    let _bridge = harness.bridge(&[]);
    harness.webhook.until_received(&["since", "unseen"]).await;
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$after")]))]));
    harness.webhook.until_received(&["after"]).await;
    let bodies = harness.webhook.bodies();
    let of_p: Vec<_> = bodies.iter().filter(|body| *body != "unseen").collect();
    assert_eq!(of_p, ["old1", "old2", "last", "since", "after"]);
}

/// The timeline contains no known event but the bot's join.
#[tokio::test(flavor = "multi_thread")]
async fn messages_before_the_join_are_not_delivered() {
    let harness = Harness::new().await;
    let mut bridge = harness.ready_bridge(&[]).await;
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$last")]))]));
    harness.webhook.until_received(&["last"]).await;
    bridge.stop().await;
    let join = json!({"event_id": "$join-p", "sender": "@bot:example.org", "type": "m.room.member",
        "state_key": "@bot:example.org", "origin_server_ts": 1, "content": {"membership": "join"}});
    let timeline = [message("$before"), join, message("$since")];
    harness.homeserver.set_initial(sync(&[("!p:x", room(&timeline))]));
    lose_positions(&harness, || matrix_error(400, "M_UNKNOWN_POS"));
    let _bridge = harness.bridge(&[]);
    harness.webhook.until_received(&["since"]).await;
    assert_eq!(harness.webhook.bodies(), ["last", "since"]);
}

/// The homeserver has lost the tokens of a gap that was open.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_gap_is_still_filled() {
    let harness = Harness::new().await;
    let mut bridge = harness.ready_bridge(&[]).await;
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$1")]))]));
    harness.webhook.until_received(&["1"]).await;
    let pages = |call: &Call| call.is("GET", "rooms/!p:x/messages");
    harness.homeserver.calls.rule(move |call| pages(call).then(|| matrix_error(500, "M_UNKNOWN")));
    harness.homeserver.push(sync(&[("!p:x", limited(&[message("$3")]))]));
    harness.homeserver.until_synced().await;
    bridge.stop().await;

    let mut newest = limited(&[message("$5")]);
    newest["timeline"]["prev_batch"] = json!("new");
    harness.homeserver.set_initial(sync(&[("!p:x", newest)]));
    lose_positions(&harness, || matrix_error(400, "M_UNKNOWN_POS"));
    harness.homeserver.calls.rule(move |call| {
        let from = call.query.get("from").map(String::as_str);
        let all = ["$5", "$4", "$3", "$2", "$1"].map(message);
        let token = call.query.contains_key("to") || from == Some("p");
        pages(call).then(|| match from {
            _ if token => matrix_error(400, "M_INVALID_PARAM"),
            Some("new") => Reply::json(200, json!({"start": "a", "chunk": all[1..]})),
            _ => Reply::json(200, json!({"start": "a", "chunk": all})),
        })
    });
    let _bridge = harness.bridge(&[]);
    harness.webhook.until_received(&["5"]).await;
    assert_eq!(harness.webhook.bodies(), ["1", "2", "3", "4", "5"]);
}

async fn lost_with(refusal: fn() -> Reply) {
    let harness = Harness::new().await;
    let mut bridge = harness.ready_bridge(&[]).await;
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$1")]))]));
    harness.webhook.until_received(&["1"]).await;
    bridge.stop().await;
    harness.homeserver.set_initial(sync(&[("!p:x", room(&[message("$1"), message("$2")]))]));
    lose_positions(&harness, refusal);
    let _bridge = harness.bridge(&[]);
    harness.webhook.until_received(&["2"]).await;
    assert_eq!(harness.webhook.bodies(), ["1", "2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_may_be_refused_with_any_error() {
    let refusals: [fn() -> Reply; 7] = [
        || matrix_error(404, "M_NOT_FOUND"),
        || matrix_error(403, "M_UNKNOWN_POS"),
        || matrix_error(410, "M_UNKNOWN_POS"),
        || matrix_error(401, "M_UNKNOWN_POS"),
        || matrix_error(500, "M_UNKNOWN_POS"),
        || matrix_error(422, "M_INVALID_PARAM"),
        || matrix_error(400, ""),
    ];
    futures_util::future::join_all(refusals.map(lost_with)).await;
}
