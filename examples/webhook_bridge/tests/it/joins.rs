//! Invitations: what a join is answered says nothing but of that room, and comes to an end.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use serde_json::{Map, json};
use tokio_util::sync::CancellationToken;

use crate::support::{Call, Reply, World, invitation, message, no, room, sync};

/// Joins of rooms whose paths begin so.
pub fn joins(prefix: &'static str) -> impl Fn(&Call) -> bool {
    move |call| call.is("POST", prefix) && call.path.ends_with("/join")
}

/// Joins of rooms whose ids begin with `!hang` are answered when the latch is lifted.
pub fn hold_joins(world: &World) -> CancellationToken {
    let latch = CancellationToken::new();
    let hang = latch.clone();
    world.homeserver.calls.rule(move |call| {
        call.is("POST", "rooms/!hang").then(|| Reply::json(200, json!({})).after(&hang))
    });
    latch
}

/// A homeserver passes on what a server of the room has answered.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_join_is_answered_says_nothing_about_our_token() {
    let world = World::new().await;
    let mut bridge = world.ready_bridge(&[("BRIDGE_REFUSAL_WAIT", "1")]).await;
    let answers: [fn() -> Reply; 4] = [
        || no(403, "M_UNKNOWN_TOKEN"),
        || no(401, "M_UNKNOWN_TOKEN"),
        || no(401, "M_USER_LOCKED"),
        || Reply::json(401, json!({"errcode": "M_UNKNOWN_TOKEN", "soft_logout": true})),
    ];
    for (number, answer) in answers.into_iter().enumerate() {
        let id = format!("!evil{number}:x");
        let path = format!("rooms/{id}/join");
        world.homeserver.calls.rule(move |call| call.is("POST", &path).then(answer));
        world.homeserver.push(invitation(&id));
    }
    bridge
        .until("four invitations to be given up", async |bridge| {
            bridge.metric("invitations_abandoned_total").await == Some(4.0)
        })
        .await;
    assert!(bridge.is_running());
    let log = bridge.log();
    assert_eq!(log.matches("forwarding messages").count(), 1, "it began anew: {log}");
    assert_eq!(world.homeserver.calls.count(|call| call.is("POST", "login")), 1);
}

/// Its servers are gone: that is no refusal, and does not pass.
#[tokio::test(flavor = "multi_thread")]
async fn a_join_that_always_fails_is_given_up_while_the_homeserver_works() {
    let world = World::new().await;
    let bridge = world.ready_bridge(&[("BRIDGE_REFUSAL_WAIT", "1")]).await;
    let answers: [fn() -> Reply; 3] =
        [|| no(502, "M_UNKNOWN"), || Reply::text(504, "<html>"), || Reply::text(200, "<html>")];
    for (number, answer) in answers.into_iter().enumerate() {
        let id = format!("!dead{number}:x");
        let path = format!("rooms/{id}/join");
        world.homeserver.calls.rule(move |call| call.is("POST", &path).then(answer));
        world.homeserver.push(invitation(&id));
    }
    bridge
        .until("three invitations to be given up", async |bridge| {
            bridge.metric("invitations_abandoned_total").await == Some(3.0)
        })
        .await;
    assert!(world.homeserver.calls.count(joins("rooms/!dead")) >= 6, "each is tried again");
}

#[tokio::test(flavor = "multi_thread")]
async fn hanging_joins_leave_a_place_for_a_new_one() {
    let world = World::new().await;
    let _bridge = world.ready_bridge(&[]).await;
    let latch = hold_joins(&world);
    let hanging: Map<_, _> = (0..8).map(|number| (format!("!hang{number}:x"), json!({}))).collect();
    world.homeserver.push(json!({"rooms": {"invite": hanging}}));
    world.homeserver.calls.until_count("eight joins", 8, joins("rooms/!hang")).await;
    world.homeserver.push(invitation("!good:x"));
    world.homeserver.calls.until_count("the good join", 1, joins("rooms/!good")).await;
    latch.cancel();
}

/// Nobody was there to accept it, and then came a no that passes.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_invitation_is_tried_as_long_as_a_new_one() {
    let world = World::new().await;
    let mut bridge = world.ready_bridge(&[]).await;
    let asked = AtomicUsize::new(0);
    world.homeserver.calls.rule(move |call| {
        call.is("POST", "rooms/!i:x/join").then(|| match asked.fetch_add(1, Relaxed) {
            0 => no(502, "M_UNKNOWN"),
            1 => no(403, "M_FORBIDDEN"),
            _ => Reply::json(200, json!({"room_id": "!i:x"})),
        })
    });
    world.homeserver.push(invitation("!i:x"));
    bridge.says("cannot be accepted yet").await;
    bridge.stop().await;
    let age = "UPDATE webhook_bridge.rooms SET invited_at = now() - interval '11 minutes'
               WHERE membership = 'invited'";
    world.connection().await.batch_execute(age).await.unwrap();
    let bridge = world.bridge(&[]);
    bridge.says("joined").await;
}

/// What says no more than that it was done may say nothing at all; a page of something else does not
/// say that.
#[tokio::test(flavor = "multi_thread")]
async fn a_join_is_done_whatever_its_answer_says() {
    let world = World::new().await;
    let bridge = world.ready_bridge(&[]).await;
    let bodies = ["", "null", "[]", "\"ok\"", "7"];
    for (number, body) in bodies.into_iter().enumerate() {
        let id = format!("!i{number}:x");
        let path = format!("rooms/{id}/join");
        world
            .homeserver
            .calls
            .rule(move |call| call.is("POST", &path).then(|| Reply::text(200, body)));
        world.homeserver.push(invitation(&id));
    }
    bridge
        .until("all to be joined", async |bridge| {
            bridge.log().matches(" joined ").count() == bodies.len()
        })
        .await;
    assert_eq!(world.homeserver.calls.count(joins("rooms/!i")), bodies.len());
}

/// A worker that lags invites to a room that the same answer shows as joined.
#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_to_a_room_that_we_are_in_is_passed_over() {
    let world = World::new().await;
    let _bridge = world.ready_bridge(&[]).await;
    let mut answer = sync(&[("!p:x", room(&[message("$1")]))]);
    answer["rooms"]["invite"] = json!({"!p:x": {}, "!other:x": {}});
    world.homeserver.push(answer);
    world.webhook.has(&["1"]).await;
    world.homeserver.calls.until_count("the other join", 1, joins("rooms/!other")).await;
    world.homeserver.push(json!({"rooms": {"leave": {"!p:x": room(&[message("$last")])}}}));
    world.webhook.has(&["last"]).await;
    assert_eq!(world.homeserver.calls.count(joins("rooms/!p:x")), 0);
}
