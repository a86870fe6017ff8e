//! Invitations: an error of a join affects only that room, and retries are limited.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::{BOT, Call, Harness, Reply, invitation, matrix_error, message, room, sync};

/// Matches joins whose paths start with `prefix`.
pub fn joins(prefix: &'static str) -> impl Fn(&Call) -> bool {
    move |call| call.is("POST", prefix) && call.path.ends_with("/join")
}

/// Joins of rooms whose ids start with `!hang` get a response when the returned latch is opened.
pub fn hold_joins(harness: &Harness) -> CancellationToken {
    let latch = CancellationToken::new();
    let hang = latch.clone();
    harness.homeserver.calls.rule(move |call| {
        call.is("POST", "rooms/!hang").then(|| Reply::json(200, json!({})).after(&hang))
    });
    latch
}

/// The error may come from the room's server: the homeserver forwards it.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_join_does_not_end_the_session() {
    let harness = Harness::new().await;
    let mut bridge = harness.ready_bridge(&[("BRIDGE_RETRY_TIMEOUT", "1")]).await;
    let answers: [fn() -> Reply; 4] = [
        || matrix_error(403, "M_UNKNOWN_TOKEN"),
        || matrix_error(401, "M_UNKNOWN_TOKEN"),
        || matrix_error(401, "M_USER_LOCKED"),
        || Reply::json(401, json!({"errcode": "M_UNKNOWN_TOKEN", "soft_logout": true})),
    ];
    for (number, answer) in answers.into_iter().enumerate() {
        let id = format!("!evil{number}:x");
        let path = format!("rooms/{id}/join");
        harness.homeserver.calls.rule(move |call| call.is("POST", &path).then(answer));
        harness.homeserver.push(invitation(&id));
    }
    bridge
        .until("four invitations to be given up", async |bridge| {
            bridge.metric("invitations_abandoned_total").await == Some(4.0)
        })
        .await;
    assert!(bridge.is_running());
    let log = bridge.log();
    assert_eq!(log.matches("forwarding messages").count(), 1, "a new run was started: {log}");
    assert_eq!(harness.homeserver.calls.count(|call| call.is("POST", "login")), 1);
}

/// The room's servers are unreachable: not a refusal, but permanent.
#[tokio::test(flavor = "multi_thread")]
async fn a_join_that_always_fails_is_abandoned() {
    let harness = Harness::new().await;
    let bridge = harness.ready_bridge(&[("BRIDGE_RETRY_TIMEOUT", "1")]).await;
    let answers: [fn() -> Reply; 3] = [
        || matrix_error(502, "M_UNKNOWN"),
        || Reply::text(504, "<html>"),
        || Reply::text(200, "<html>"),
    ];
    for (number, answer) in answers.into_iter().enumerate() {
        let id = format!("!dead{number}:x");
        let path = format!("rooms/{id}/join");
        harness.homeserver.calls.rule(move |call| call.is("POST", &path).then(answer));
        harness.homeserver.push(invitation(&id));
    }
    bridge
        .until("three invitations to be given up", async |bridge| {
            bridge.metric("invitations_abandoned_total").await == Some(3.0)
        })
        .await;
    assert!(harness.homeserver.calls.count(joins("rooms/!dead")) >= 6, "each is retried");
}

#[tokio::test(flavor = "multi_thread")]
async fn hanging_joins_leave_a_slot_for_a_new_one() {
    let harness = Harness::new().await;
    let _bridge = harness.ready_bridge(&[]).await;
    let latch = hold_joins(&harness);
    let hanging: Map<_, _> = (0..8).map(|number| (format!("!hang{number}:x"), json!({}))).collect();
    harness.homeserver.push(json!({"rooms": {"invite": hanging}}));
    harness.homeserver.calls.until_count("eight joins", 8, joins("rooms/!hang")).await;
    harness.homeserver.push(invitation("!good:x"));
    harness.homeserver.calls.until_count("the good join", 1, joins("rooms/!good")).await;
    latch.cancel();
}

/// The invitation became old while the bridge was down.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_invitation_is_retried_as_long_as_a_new_one() {
    let harness = Harness::new().await;
    let mut bridge = harness.ready_bridge(&[]).await;
    let attempts = AtomicUsize::new(0);
    harness.homeserver.calls.rule(move |call| {
        call.is("POST", "rooms/!i:x/join").then(|| match attempts.fetch_add(1, Relaxed) {
            0 => matrix_error(502, "M_UNKNOWN"),
            1 => matrix_error(403, "M_FORBIDDEN"),
            _ => Reply::json(200, json!({"room_id": "!i:x"})),
        })
    });
    harness.homeserver.push(invitation("!i:x"));
    bridge.until_logged("cannot be accepted yet").await;
    bridge.stop().await;
    let age = "UPDATE webhook_bridge.rooms SET invited_at = now() - interval '11 minutes'
               WHERE membership = 'invited'";
    harness.connection().await.batch_execute(age).await.unwrap();
    let bridge = harness.bridge(&[]);
    bridge.until_logged("joined").await;
}

/// The body of a successful join is not needed, so any JSON or an empty body is accepted.
#[tokio::test(flavor = "multi_thread")]
async fn a_join_succeeds_whatever_its_response_body() {
    let harness = Harness::new().await;
    let bridge = harness.ready_bridge(&[]).await;
    let bodies = ["", "null", "[]", "\"ok\"", "7"];
    for (number, body) in bodies.into_iter().enumerate() {
        let id = format!("!i{number}:x");
        let path = format!("rooms/{id}/join");
        harness
            .homeserver
            .calls
            .rule(move |call| call.is("POST", &path).then(|| Reply::text(200, body)));
        harness.homeserver.push(invitation(&id));
    }
    bridge
        .until("all to be joined", async |bridge| {
            bridge.log().matches(" joined ").count() == bodies.len()
        })
        .await;
    assert_eq!(harness.homeserver.calls.count(joins("rooms/!i")), bodies.len());
}

/// A lagging homeserver worker reports a room as invited and joined in one response.
#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_to_a_joined_room_is_ignored() {
    let harness = Harness::new().await;
    let _bridge = harness.ready_bridge(&[]).await;
    let mut answer = sync(&[("!p:x", room(&[message("$1")]))]);
    answer["rooms"]["invite"] = json!({"!p:x": {}, "!other:x": {}});
    harness.homeserver.push(answer);
    harness.webhook.until_received(&["1"]).await;
    harness.homeserver.calls.until_count("the other join", 1, joins("rooms/!other")).await;
    harness.homeserver.push(json!({"rooms": {"leave": {"!p:x": room(&[message("$last")])}}}));
    harness.webhook.until_received(&["last"]).await;
    assert_eq!(harness.homeserver.calls.count(joins("rooms/!p:x")), 0);
}

/// An invitation of the bot by this user.
fn invited_by(room: &str, inviter: &str) -> Value {
    let event = json!({"type": "m.room.member", "sender": inviter, "state_key": BOT,
        "content": {"membership": "invite"}});
    json!({"rooms": {"invite": {room: {"invite_state": {"events": [event]}}}}})
}

/// Also an invitation whose inviter is unknown.
#[tokio::test(flavor = "multi_thread")]
async fn invitations_from_others_than_the_allowed_are_declined() {
    let harness = Harness::new().await;
    let bridge = harness.ready_bridge(&[("BRIDGE_INVITE_ALLOW", "@alice:x *.y")]).await;
    let calls = &harness.homeserver.calls;
    calls.rule(|call| call.path.ends_with("/leave").then(|| Reply::json(200, json!({}))));
    for (room, inviter) in [("!1:x", "@alice:x"), ("!2:x", "@eve:x"), ("!3:x", "@eve:z.y")] {
        harness.homeserver.push(invited_by(room, inviter));
    }
    harness.homeserver.push(invitation("!4:x"));
    for path in ["rooms/!1:x/join", "rooms/!2:x/leave", "rooms/!3:x/join", "rooms/!4:x/leave"] {
        calls.until_count(path, 1, |call| call.path == path).await;
    }
    assert_eq!(bridge.metric("invitations_declined_total").await, Some(2.0));
    assert_eq!(calls.count(|call| call.path.ends_with("/join")), 2);
}

/// A tombstone in a room's state, after a gap, is followed, through the server of its sender.
#[tokio::test(flavor = "multi_thread")]
async fn the_replacement_of_an_upgraded_room_is_joined_without_an_invitation() {
    let harness = Harness::new().await;
    let _bridge = harness.ready_bridge(&[("BRIDGE_INVITE_ALLOW", "nobody")]).await;
    let tombstone = json!({"event_id": "$t", "type": "m.room.tombstone", "sender": "@a:up.org",
        "state_key": "", "origin_server_ts": 1, "content": {"replacement_room": "!new:x"}});
    let mut upgraded = room(&[message("$1")]);
    upgraded["state"] = json!({"events": [tombstone]});
    harness.homeserver.push(sync(&[("!r:x", upgraded)]));
    let is_join = |call: &Call| call.is("POST", "join/!new:x");
    harness.homeserver.calls.until_count("the join", 1, is_join).await;
    let calls = harness.homeserver.calls.all();
    let join = calls.iter().find(|call| is_join(call)).unwrap();
    assert_eq!(join.query.get("via").map(String::as_str), Some("up.org"));
}

/// One sync has the join, a message and the removal.
#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_room_that_the_bot_is_removed_from_at_once_are_delivered() {
    let harness = Harness::new().await;
    let bridge = harness.ready_bridge(&[]).await;
    let membership = |id: &str, sender: &str, membership: &str| {
        json!({"event_id": id, "sender": sender, "type": "m.room.member", "state_key": BOT,
            "origin_server_ts": 1, "content": {"membership": membership}})
    };
    let (join, kick) = (membership("$join", BOT, "join"), membership("$kick", "@alice:x", "leave"));
    let left = room(&[message("$before"), join, message("$last"), kick.clone()]);
    let never_joined = room(&[message("$never"), kick]);
    let left = json!({"!left:x": left, "!never:x": never_joined});
    harness.homeserver.push(json!({"rooms": {"leave": left}}));
    harness.webhook.until_received(&["last"]).await;
    assert_eq!(bridge.metric("removals_total{kind=\"kick\"}").await, Some(1.0));
    assert_eq!(harness.webhook.bodies(), ["last"]);
}
