//! A homeserver that was restored from a backup, or replaced: nothing twice, nothing lost.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde_json::{Value, json};

use crate::support::{Call, Reply, World, limited, message, no, room, sync};

/// Refuse each position until a sync without one was asked for.
fn lose_positions(world: &World, refusal: fn() -> Reply) {
    let asked_without = AtomicBool::new(false);
    world.homeserver.calls.rule(move |call| {
        if call.is_sync() && call.since().is_none() {
            asked_without.store(true, Relaxed);
        }
        (call.is_sync() && !asked_without.load(Relaxed)).then(refusal)
    });
}

fn page(world: &World, chunk: Vec<Value>) {
    world.homeserver.calls.rule(move |call| {
        call.is("GET", "rooms/!p:x/messages")
            .then(|| Reply::json(200, json!({"start": "a", "chunk": chunk})))
    });
}

/// The last event that we saw is gone, and what is still there was delivered long ago.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_old_is_delivered_again() {
    let world = World::new().await;
    let mut bridge = world.ready_bridge(&[]).await;
    world.homeserver.push(sync(&[("!p:x", room(&[message("$old1"), message("$old2")]))]));
    world.webhook.has(&["old1", "old2"]).await;
    bridge.stop().await;
    let age = "UPDATE webhook_bridge.events SET done_at = now() - interval '31 days',
                   received_at = now() - interval '31 days';
               INSERT INTO webhook_bridge.events (account, event_id, room_id, position, state, done_at)
               VALUES ('@bot:example.org', '$alone', '!alone:x', 1, 'failed',
                   now() - interval '91 days')";
    world.connection().await.batch_execute(age).await.unwrap();
    let mut bridge = world.bridge(&[]);
    let parked = "SELECT count(*) FROM webhook_bridge.events WHERE event_id = '$alone'";
    bridge.until("the pruning", async |_| world.number(parked).await == 0).await;
    world.homeserver.push(sync(&[("!p:x", room(&[message("$last")]))]));
    world.webhook.has(&["last"]).await;
    bridge.stop().await;

    world.homeserver.set_initial(sync(&[
        ("!p:x", limited(&[message("$before"), message("$old2"), message("$since")])),
        ("!r:x", limited(&[message("$unseen")])),
    ]));
    lose_positions(&world, || no(400, "M_UNKNOWN_POS"));
    page(&world, vec![message("$old1"), message("$before")]);
    world.homeserver.calls.rule(|call| {
        call.is("GET", "rooms/!r:x/messages").then(|| Reply::json(200, json!({"chunk": []})))
    });
    let _bridge = world.bridge(&[]);
    world.webhook.has(&["since", "unseen"]).await;
    world.homeserver.push(sync(&[("!p:x", room(&[message("$after")]))]));
    world.webhook.has(&["after"]).await;
    let bodies = world.webhook.bodies();
    let of_p: Vec<_> = bodies.iter().filter(|body| *body != "unseen").collect();
    assert_eq!(of_p, ["old1", "old2", "last", "since", "after"]);
}

/// Nor what was before we joined, where nothing that is known is left.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_before_we_joined_is_not_delivered() {
    let world = World::new().await;
    let mut bridge = world.ready_bridge(&[]).await;
    world.homeserver.push(sync(&[("!p:x", room(&[message("$last")]))]));
    world.webhook.has(&["last"]).await;
    bridge.stop().await;
    let join = json!({"event_id": "$join-p", "sender": "@bot:example.org", "type": "m.room.member",
        "state_key": "@bot:example.org", "origin_server_ts": 1, "content": {"membership": "join"}});
    let timeline = [message("$before"), join, message("$since")];
    world.homeserver.set_initial(sync(&[("!p:x", room(&timeline))]));
    lose_positions(&world, || no(400, "M_UNKNOWN_POS"));
    let _bridge = world.bridge(&[]);
    world.webhook.has(&["since"]).await;
    assert_eq!(world.webhook.bodies(), ["last", "since"]);
}

/// A gap was open when the homeserver lost its positions: its tokens are lost too.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_gap_is_filled_all_the_same() {
    let world = World::new().await;
    let mut bridge = world.ready_bridge(&[]).await;
    world.homeserver.push(sync(&[("!p:x", room(&[message("$1")]))]));
    world.webhook.has(&["1"]).await;
    let pages = |call: &Call| call.is("GET", "rooms/!p:x/messages");
    world.homeserver.calls.rule(move |call| pages(call).then(|| no(500, "M_UNKNOWN")));
    world.homeserver.push(sync(&[("!p:x", limited(&[message("$3")]))]));
    world.homeserver.taken_in().await;
    bridge.stop().await;

    let mut newest = limited(&[message("$5")]);
    newest["timeline"]["prev_batch"] = json!("new");
    world.homeserver.set_initial(sync(&[("!p:x", newest)]));
    lose_positions(&world, || no(400, "M_UNKNOWN_POS"));
    world.homeserver.calls.rule(move |call| {
        let from = call.query.get("from").map(String::as_str);
        let all = ["$5", "$4", "$3", "$2", "$1"].map(message);
        let token = call.query.contains_key("to") || from == Some("p");
        pages(call).then(|| match from {
            _ if token => no(400, "M_INVALID_PARAM"),
            Some("new") => Reply::json(200, json!({"start": "a", "chunk": all[1..]})),
            _ => Reply::json(200, json!({"start": "a", "chunk": all})),
        })
    });
    let _bridge = world.bridge(&[]);
    world.webhook.has(&["5"]).await;
    assert_eq!(world.webhook.bodies(), ["1", "2", "3", "4", "5"]);
}

async fn lost_with(refusal: fn() -> Reply) {
    let world = World::new().await;
    let mut bridge = world.ready_bridge(&[]).await;
    world.homeserver.push(sync(&[("!p:x", room(&[message("$1")]))]));
    world.webhook.has(&["1"]).await;
    bridge.stop().await;
    world.homeserver.set_initial(sync(&[("!p:x", room(&[message("$1"), message("$2")]))]));
    lose_positions(&world, refusal);
    let _bridge = world.bridge(&[]);
    world.webhook.has(&["2"]).await;
    assert_eq!(world.webhook.bodies(), ["1", "2"]);
}

/// In whatever words.
#[tokio::test(flavor = "multi_thread")]
async fn a_position_may_be_refused_in_any_words() {
    let refusals: [fn() -> Reply; 7] = [
        || no(404, "M_NOT_FOUND"),
        || no(403, "M_UNKNOWN_POS"),
        || no(410, "M_UNKNOWN_POS"),
        || no(401, "M_UNKNOWN_POS"),
        || no(500, "M_UNKNOWN_POS"),
        || no(422, "M_INVALID_PARAM"),
        || no(400, ""),
    ];
    futures_util::future::join_all(refusals.map(lost_with)).await;
}
