//! Error responses of the homeserver: retries, timeouts and permanent errors.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use serde_json::{Value, json};

use crate::support::{
    Bridge, Call, Harness, MatrixUser, Reply, invitation, matrix_error, member, message, plain,
    room, sync,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_position_loses_no_message_and_no_key() {
    for (status, code) in [(400, "M_UNKNOWN_POS"), (400, "M_INVALID_PARAM"), (400, "M_UNKNOWN")] {
        let harness = Harness::new().await;
        let mut bridge = harness.ready_bridge(&[]).await;
        let alice = MatrixUser::new(&harness.homeserver, "@alice:x").await;
        let mut first = sync(&[("!r:x", room(&[member("@alice:x")]))]);
        first["to_device"] = json!({"events": alice.room_key("!r:x").await});
        harness.homeserver.push(first);
        let event = alice.encrypt("!r:x", "$before", "before").await;
        harness.homeserver.push(sync(&[("!r:x", room(&[event]))]));
        harness.homeserver.push(sync(&[("!p:x", room(&[message("$seen")]))]));
        harness.webhook.until_received(&["before", "seen"]).await;
        bridge.stop().await;

        // The homeserver has lost its sync positions; two rooms have new events.
        let while_away = alice.encrypt("!r:x", "$away", "away").await;
        let newest = alice.encrypt("!r:x", "$newest", "newest").await;
        let mut limited = room(&[newest]);
        limited["timeline"]["limited"] = json!(true);
        let whole = room(&[plain("$old", "old"), message("$seen"), message("$unseen")]);
        harness.homeserver.set_initial(sync(&[("!r:x", limited), ("!p:x", whole)]));
        let synced_without = AtomicBool::new(false);
        harness.homeserver.calls.rule(move |call| {
            if call.is_sync() && call.since().is_none() {
                synced_without.store(true, Relaxed);
            }
            (call.is_sync() && !synced_without.load(Relaxed)).then(|| matrix_error(status, code))
        });
        let page = json!({"chunk": [while_away, json!({"event_id": "$before", "sender": "@alice:x",
            "type": "m.room.encrypted", "origin_server_ts": 1, "content": {"a": 1}}),
            plain("$ancient", "ancient")], "end": "further"});
        harness.homeserver.calls.rule(move |call| {
            call.is("GET", "rooms/!r:x/messages").then(|| Reply::json(200, page.clone()))
        });
        let uploads =
            |call: &Call| call.is("POST", "keys/upload") && call.body["device_keys"].is_object();
        let uploaded = harness.homeserver.calls.count(uploads);
        let bridge = harness.bridge(&[]);
        bridge.until_logged("does not know the stored sync position").await;
        harness.webhook.until_received(&["away", "newest", "unseen"]).await;
        let bodies = harness.webhook.bodies();
        assert!(!bodies.contains(&"old".to_owned()) && !bodies.contains(&"ancient".to_owned()));
        assert_eq!(bodies.len(), 5, "{bodies:?}");
        let refused =
            harness.homeserver.calls.count(|call| call.is_sync() && call.since() == Some("s4"));
        assert!(refused >= 3, "{refused} requests");
        // Keys and device are kept.
        assert_eq!(harness.homeserver.calls.count(uploads), uploaded);
        assert_eq!(bridge.metric("sync_positions_lost_total").await, Some(1.0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_join_is_retried_until_it_succeeds() {
    let harness = Harness::new().await;
    let _bridge = harness.ready_bridge(&[]).await;
    for (number, (status, code)) in
        [(403, "M_FORBIDDEN"), (404, "M_NOT_FOUND"), (400, "M_UNKNOWN")].into_iter().enumerate()
    {
        let id = format!("!late{number}:x");
        let path = format!("rooms/{id}/join");
        let tries = AtomicUsize::new(0);
        harness.homeserver.calls.rule(move |call| {
            let first = call.is("POST", &path) && tries.fetch_add(1, Relaxed) < 2;
            first.then(|| matrix_error(status, code))
        });
        harness.homeserver.push(invitation(&id));
    }
    let joins = |call: &Call| call.is("POST", "rooms/!late") && call.path.ends_with("/join");
    harness.homeserver.calls.until_count("three tries of three joins", 9, joins).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_is_abandoned_after_a_withdrawal_or_the_timeout() {
    let harness = Harness::new().await;
    let bridge = harness.ready_bridge(&[("BRIDGE_RETRY_TIMEOUT", "3")]).await;
    harness.homeserver.calls.rule(|call| {
        (call.is("POST", "rooms/!no") && call.path.ends_with("/join"))
            .then(|| matrix_error(403, "M_FORBIDDEN"))
    });
    harness.homeserver.push(invitation("!no-more:x"));
    let joins = |call: &Call| call.is("POST", "rooms/!no-more:x/join");
    harness.homeserver.calls.until_count("a join", 1, joins).await;
    harness.homeserver.push(json!({"rooms": {"leave": {"!no-more:x": {}}}}));
    harness.homeserver.until_synced().await;
    let tried = harness.homeserver.calls.count(joins);
    harness.homeserver.push(invitation("!no-way:x"));
    bridge.until_logged("invitation abandoned").await;
    assert_eq!(bridge.metric("invitations_abandoned_total").await, Some(1.0));
    assert!(harness.homeserver.calls.count(|call| call.is("POST", "rooms/!no-way:x/join")) > 1);
    assert!(harness.homeserver.calls.count(joins) <= tried + 1);
    let left = "SELECT count(*) FROM webhook_bridge.rooms WHERE membership = 'invited'";
    assert_eq!(harness.number(left).await, 0);
}

/// `retry_after_ms` is far longer than the test: no such request is sent again.
#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_honoured_everywhere() {
    let harness = Harness::new().await;
    let _bridge = harness.ready_bridge(&[]).await;
    let is_limited = |call: &Call| {
        call.path.ends_with("/join")
            || call.is("GET", "rooms/!q:x/members")
            || call.is("GET", "rooms/!p:x/messages")
            || call.is("POST", "keys/upload")
    };
    harness.homeserver.calls.rule(move |call| {
        let retry_after = json!({"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 600_000.5});
        is_limited(call).then(|| Reply::json(429, retry_after))
    });
    let before = harness.homeserver.calls.count(is_limited);
    let mut all = invitation("!i:x");
    let mut limited = room(&[message("$1")]);
    limited["timeline"]["limited"] = json!(true);
    let encryption = json!({"event_id": "$e", "sender": "@a:x", "type": "m.room.encryption",
        "state_key": "", "content": {}});
    all["rooms"]["join"] = json!({"!p:x": limited, "!q:x": room(&[encryption])});
    all["device_one_time_keys_count"] = json!({"signed_curve25519": 1});
    harness.homeserver.push(all);
    harness.homeserver.calls.until_count("four requests", before + 4, is_limited).await;
    for number in 0..5 {
        let mut sync = sync(&[("!n:x", room(&[message(&format!("$n-{number}"))]))]);
        sync["device_one_time_keys_count"] = json!({"signed_curve25519": 1});
        harness.homeserver.push(sync);
        harness.webhook.until_received(&[&format!("n-{number}")]).await;
    }
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert_eq!(harness.homeserver.calls.count(is_limited), before + 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_key_upload_is_not_repeated_with_every_sync() {
    let harness = Harness::new().await;
    let _bridge = harness.ready_bridge(&[]).await;
    let uploads = |call: &Call| call.is("POST", "keys/upload");
    harness
        .homeserver
        .calls
        .rule(move |call| uploads(call).then(|| matrix_error(400, "M_INVALID_PARAM")));
    let before = harness.homeserver.calls.count(uploads);
    for number in 0..20 {
        let mut sync = sync(&[("!n:x", room(&[message(&format!("$n-{number}"))]))]);
        sync["device_one_time_keys_count"] = json!({"signed_curve25519": 1});
        harness.homeserver.push(sync);
        harness.webhook.until_received(&[&format!("n-{number}")]).await;
    }
    let tried = harness.homeserver.calls.count(uploads) - before;
    assert!((1..10).contains(&tried), "{tried} uploads in 20 syncs");
}

/// Federation and workers lag: a refusal soon after a join must not lose messages.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_gap_is_retried_and_then_abandoned() {
    let harness = Harness::new().await;
    let bridge = harness.ready_bridge(&[]).await;
    let tries = AtomicUsize::new(0);
    harness.homeserver.calls.rule(move |call| {
        if !call.is("GET", "rooms/!p:x/messages") {
            return None;
        }
        Some(match tries.fetch_add(1, Relaxed) {
            0 | 1 => matrix_error(403, "M_FORBIDDEN"),
            _ => Reply::json(200, json!({"chunk": [message("$in-the-gap")]})),
        })
    });
    harness.homeserver.calls.rule(|call| {
        call.is("GET", "rooms/!q:x/messages").then(|| matrix_error(403, "M_FORBIDDEN"))
    });
    let gap = |id: &str| {
        let mut room = room(&[message(id)]);
        // No token either: paging starts at the newest event.
        room["timeline"] = json!({"limited": true, "events": room["timeline"]["events"]});
        room
    };
    harness.homeserver.push(sync(&[("!p:x", gap("$behind")), ("!q:x", gap("$behind-q"))]));
    harness.webhook.until_received(&["in-the-gap", "behind", "behind-q"]).await;
    assert_eq!(bridge.metric("gaps_abandoned_total").await, Some(1.0));
    let page = |call: &Call| call.path.ends_with("/messages");
    assert!(
        harness
            .homeserver
            .calls
            .all()
            .iter()
            .filter(|call| page(call))
            .all(|call| { !call.query.contains_key("from") })
    );
    let bodies = harness.webhook.bodies();
    let index = |body: &str| bodies.iter().position(|other| other == body);
    assert!(index("in-the-gap") < index("behind"), "{bodies:?}");
}

async fn refused_for_a_while(code: &'static str, body: Value, explanation: &str) {
    let harness = Harness::new().await;
    let mut bridge = harness.ready_bridge(&[]).await;
    harness.homeserver.calls.rule(move |call| {
        let mut body = body.clone();
        body["errcode"] = json!(code);
        call.is_sync().then(|| Reply::json(401, body))
    });
    // Ends the long poll.
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$1")]))]));
    bridge.until_logged(explanation).await;
    let before = harness.homeserver.calls.count(Call::is_sync);
    harness.homeserver.calls.until_count("two more tries", before + 2, Call::is_sync).await;
    assert!(bridge.is_running());
    harness.homeserver.calls.clear_rules();
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$2")]))]));
    harness.webhook.until_received(&["1", "2"]).await;
    assert_eq!(harness.homeserver.calls.count(|call| call.is("POST", "login")), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_account_is_reported_and_retried() {
    refused_for_a_while("M_USER_LOCKED", json!({"soft_logout": true}), "locked").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_token_may_be_a_locked_account() {
    refused_for_a_while("M_UNKNOWN_TOKEN", json!({}), "locked").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_stays_unknown_ends_the_bridge() {
    let harness = Harness::new().await;
    let mut bridge = harness.ready_bridge(&[("BRIDGE_RETRY_TIMEOUT", "2")]).await;
    harness
        .homeserver
        .calls
        .rule(|call| call.is_sync().then(|| matrix_error(401, "M_UNKNOWN_TOKEN")));
    harness.homeserver.push(sync(&[]));
    assert_eq!(bridge.ended().await, 4);
    assert!(bridge.log().contains("STORE_ACCOUNT"), "{}", bridge.log());

    // At startup, when all calls are refused.
    harness.homeserver.calls.rule(|_| Some(matrix_error(401, "M_UNKNOWN_TOKEN")));
    let mut bridge = harness.bridge(&[("BRIDGE_RETRY_TIMEOUT", "2")]);
    assert_eq!(bridge.ended().await, 4);
    assert!(bridge.log().contains("STORE_ACCOUNT"), "{}", bridge.log());
}

/// A URL without a homeserver is logged with its setting, and retried.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_base_url_is_reported() {
    let pages: [fn() -> Reply; 4] = [
        || Reply::text(301, "").header("Location", "https://example.org/"),
        || Reply::text(200, "<html>welcome</html>"),
        || Reply::text(403, "<html>blocked</html>"),
        || Reply::text(404, "not found"),
    ];
    for page in pages {
        let harness = Harness::new().await;
        harness.homeserver.calls.rule(move |_| Some(page()));
        let bridge = harness.bridge(&[]);
        bridge.until_logged("check MATRIX_HOMESERVER").await;
        assert!(matches!(bridge.get("/readyz").await, Some((503, _))));
        harness.homeserver.calls.clear_rules();
        bridge.ready().await;
    }
}

async fn syncs_while_idle(answer: Value) -> usize {
    let harness = Harness::new().await;
    let _bridge = harness.ready_bridge(&[]).await;
    harness.homeserver.calls.rule(move |call| {
        (call.is_sync() && call.since() == Some("s1")).then(|| Reply::json(200, answer.clone()))
    });
    harness.homeserver.push(json!({"next_batch": "s1"}));
    let before = harness.homeserver.calls.count(Call::is_sync);
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    harness.homeserver.calls.count(Call::is_sync) - before
}

#[tokio::test(flavor = "multi_thread")]
async fn immediate_syncs_without_news_cause_no_busy_loop() {
    let answers = [
        json!({"next_batch": "s1", "device_one_time_keys_count": {}}),
        json!({"next_batch": "s1", "rooms": {"join": {"!p:x": {}}}}),
        json!({"next_batch": "s1", "rooms": {"invite": {"!again:x": {}}}}),
        json!({"next_batch": "s1", "rooms": {"join": {"!p:x": room(&[message("$1")])}}}),
    ];
    let syncs = futures_util::future::join_all(answers.map(syncs_while_idle)).await;
    assert!(syncs.iter().all(|syncs| *syncs <= 8), "{syncs:?} syncs in 4 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_requires_a_committed_sync() {
    let unreadable: [fn() -> Reply; 3] = [
        || Reply::text(200, "<html>"),
        || Reply::json(200, json!({"rooms": {}})),
        || Reply::json(200, json!({"next_batch": 7})),
    ];
    for answer in unreadable {
        let harness = Harness::new().await;
        harness.homeserver.calls.rule(move |call| call.is_sync().then(answer));
        let bridge = harness.bridge(&[]);
        harness.homeserver.calls.until_count("three syncs", 3, Call::is_sync).await;
        let (status, text) = bridge.get("/readyz").await.unwrap();
        assert_eq!(status, 503, "{text}");
        assert!(bridge.metric("last_sync_age_seconds").await.unwrap() > 0.0);
    }
    // Synced, but not committed.
    let harness = Harness::new().await;
    let bridge: Bridge = harness.bridge(&[]);
    bridge.ready().await;
    assert!(bridge.metric("last_sync_age_seconds").await.unwrap() < 45.0);
    drop(bridge);
    let refuse = "CREATE FUNCTION public.no() RETURNS trigger LANGUAGE plpgsql
                      AS $$ BEGIN RAISE 'no'; END $$;
                  CREATE TRIGGER no BEFORE UPDATE ON webhook_bridge.sync_positions
                      FOR EACH ROW EXECUTE FUNCTION public.no()";
    harness.connection().await.batch_execute(refuse).await.unwrap();
    let bridge = harness.bridge(&[("BRIDGE_TAKEOVER", "immediate")]);
    let before = harness.homeserver.calls.count(Call::is_sync);
    harness.homeserver.calls.until_count("two syncs", before + 2, Call::is_sync).await;
    let (status, text) = bridge.get("/readyz").await.unwrap();
    assert_eq!(status, 503, "{text}");
}
