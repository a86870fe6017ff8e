//! A no of the homeserver: which pass, which are for good, and what is never forgotten for one.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use serde_json::{Value, json};

use crate::support::{
    Bridge, Call, Person, Reply, World, invitation, member, message, no, plain, room, sync,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_position_costs_no_message_and_no_key() {
    for (status, code) in [(400, "M_UNKNOWN_POS"), (400, "M_INVALID_PARAM"), (400, "M_UNKNOWN")] {
        let world = World::new().await;
        let mut bridge = world.ready_bridge(&[]).await;
        let alice = Person::meet(&world.homeserver, "@alice:x").await;
        let mut first = sync(&[("!r:x", room(&[member("@alice:x")]))]);
        first["to_device"] = json!({"events": alice.room_key("!r:x").await});
        world.homeserver.push(first);
        let event = alice.encrypt("!r:x", "$before", "before").await;
        world.homeserver.push(sync(&[("!r:x", room(&[event]))]));
        world.homeserver.push(sync(&[("!p:x", room(&[message("$seen")]))]));
        world.webhook.has(&["before", "seen"]).await;
        bridge.stop().await;

        // The homeserver comes back without its positions; two rooms have gone on.
        let while_away = alice.encrypt("!r:x", "$away", "away").await;
        let newest = alice.encrypt("!r:x", "$newest", "newest").await;
        let mut limited = room(&[newest]);
        limited["timeline"]["limited"] = json!(true);
        let whole = room(&[plain("$old", "old"), message("$seen"), message("$unseen")]);
        world.homeserver.set_initial(sync(&[("!r:x", limited), ("!p:x", whole)]));
        let asked_without = AtomicBool::new(false);
        world.homeserver.calls.rule(move |call| {
            if call.is_sync() && call.since().is_none() {
                asked_without.store(true, Relaxed);
            }
            (call.is_sync() && !asked_without.load(Relaxed)).then(|| no(status, code))
        });
        let page = json!({"chunk": [while_away, json!({"event_id": "$before", "sender": "@alice:x",
            "type": "m.room.encrypted", "origin_server_ts": 1, "content": {"a": 1}}),
            plain("$ancient", "ancient")], "end": "further"});
        world.homeserver.calls.rule(move |call| {
            call.is("GET", "rooms/!r:x/messages").then(|| Reply::json(200, page.clone()))
        });
        let uploads =
            |call: &Call| call.is("POST", "keys/upload") && call.body["device_keys"].is_object();
        let uploaded = world.homeserver.calls.count(uploads);
        let bridge = world.bridge(&[]);
        bridge.says("does not know our sync position").await;
        world.webhook.has(&["away", "newest", "unseen"]).await;
        let bodies = world.webhook.bodies();
        assert!(!bodies.contains(&"old".to_owned()) && !bodies.contains(&"ancient".to_owned()));
        assert_eq!(bodies.len(), 5, "{bodies:?}");
        let refused =
            world.homeserver.calls.count(|call| call.is_sync() && call.since() == Some("s4"));
        assert!(refused >= 3, "asked {refused} times");
        // Keys and device stay, and whoever may have changed meanwhile is asked about again.
        assert_eq!(world.homeserver.calls.count(uploads), uploaded);
        assert_eq!(bridge.metric("sync_positions_lost_total").await, Some(1.0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_that_is_refused_is_tried_again_until_it_works() {
    let world = World::new().await;
    let _bridge = world.ready_bridge(&[]).await;
    for (number, (status, code)) in
        [(403, "M_FORBIDDEN"), (404, "M_NOT_FOUND"), (400, "M_UNKNOWN")].into_iter().enumerate()
    {
        let id = format!("!late{number}:x");
        let path = format!("rooms/{id}/join");
        let tries = AtomicUsize::new(0);
        world.homeserver.calls.rule(move |call| {
            let first = call.is("POST", &path) && tries.fetch_add(1, Relaxed) < 2;
            first.then(|| no(status, code))
        });
        world.homeserver.push(invitation(&id));
    }
    let joins = |call: &Call| call.is("POST", "rooms/!late") && call.path.ends_with("/join");
    world.homeserver.calls.until_count("three tries of three joins", 9, joins).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_is_given_up_when_it_is_withdrawn_or_its_time_is_over() {
    let world = World::new().await;
    let bridge = world.ready_bridge(&[("BRIDGE_REFUSAL_WAIT", "3")]).await;
    world.homeserver.calls.rule(|call| {
        (call.is("POST", "rooms/!no") && call.path.ends_with("/join"))
            .then(|| no(403, "M_FORBIDDEN"))
    });
    world.homeserver.push(invitation("!no-more:x"));
    let joins = |call: &Call| call.is("POST", "rooms/!no-more:x/join");
    world.homeserver.calls.until_count("a join", 1, joins).await;
    world.homeserver.push(json!({"rooms": {"leave": {"!no-more:x": {}}}}));
    world.homeserver.taken_in().await;
    let tried = world.homeserver.calls.count(joins);
    world.homeserver.push(invitation("!no-way:x"));
    bridge.says("given up").await;
    assert_eq!(bridge.metric("invitations_abandoned_total").await, Some(1.0));
    assert!(world.homeserver.calls.count(|call| call.is("POST", "rooms/!no-way:x/join")) > 1);
    assert!(world.homeserver.calls.count(joins) <= tried + 1);
    let left = "SELECT count(*) FROM webhook_bridge.rooms WHERE membership = 'invited'";
    assert_eq!(world.number(left).await, 0);
}

/// `retry_after_ms` far beyond a test's time: nothing of the kind is asked again.
#[tokio::test(flavor = "multi_thread")]
async fn the_servers_wish_is_honoured_everywhere() {
    let world = World::new().await;
    let _bridge = world.ready_bridge(&[]).await;
    let is_limited = |call: &Call| {
        call.path.ends_with("/join")
            || call.is("GET", "rooms/!q:x/members")
            || call.is("GET", "rooms/!p:x/messages")
            || call.is("POST", "keys/upload")
    };
    world.homeserver.calls.rule(move |call| {
        let wish = json!({"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 600_000.5});
        is_limited(call).then(|| Reply::json(429, wish))
    });
    let before = world.homeserver.calls.count(is_limited);
    let mut all = invitation("!i:x");
    let mut limited = room(&[message("$1")]);
    limited["timeline"]["limited"] = json!(true);
    let encryption = json!({"event_id": "$e", "sender": "@a:x", "type": "m.room.encryption",
        "state_key": "", "content": {}});
    all["rooms"]["join"] = json!({"!p:x": limited, "!q:x": room(&[encryption])});
    all["device_one_time_keys_count"] = json!({"signed_curve25519": 1});
    world.homeserver.push(all);
    world.homeserver.calls.until_count("four requests", before + 4, is_limited).await;
    for number in 0..5 {
        let mut sync = sync(&[("!n:x", room(&[message(&format!("$n-{number}"))]))]);
        sync["device_one_time_keys_count"] = json!({"signed_curve25519": 1});
        world.homeserver.push(sync);
        world.webhook.has(&[&format!("n-{number}")]).await;
    }
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert_eq!(world.homeserver.calls.count(is_limited), before + 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_refused_for_good_are_not_uploaded_with_every_sync() {
    let world = World::new().await;
    let _bridge = world.ready_bridge(&[]).await;
    let uploads = |call: &Call| call.is("POST", "keys/upload");
    world.homeserver.calls.rule(move |call| uploads(call).then(|| no(400, "M_INVALID_PARAM")));
    let before = world.homeserver.calls.count(uploads);
    for number in 0..20 {
        let mut sync = sync(&[("!n:x", room(&[message(&format!("$n-{number}"))]))]);
        sync["device_one_time_keys_count"] = json!({"signed_curve25519": 1});
        world.homeserver.push(sync);
        world.webhook.has(&[&format!("n-{number}")]).await;
    }
    let tried = world.homeserver.calls.count(uploads) - before;
    assert!((1..10).contains(&tried), "{tried} uploads in 20 syncs");
}

/// Federation and workers lag: a no about a room that was just joined is no reason to lose messages.
#[tokio::test(flavor = "multi_thread")]
async fn a_gap_that_is_refused_is_asked_for_again_and_given_up_in_the_end() {
    let world = World::new().await;
    let bridge = world.ready_bridge(&[]).await;
    let tries = AtomicUsize::new(0);
    world.homeserver.calls.rule(move |call| {
        if !call.is("GET", "rooms/!p:x/messages") {
            return None;
        }
        Some(match tries.fetch_add(1, Relaxed) {
            0 | 1 => no(403, "M_FORBIDDEN"),
            _ => Reply::json(200, json!({"chunk": [message("$in-the-gap")]})),
        })
    });
    world
        .homeserver
        .calls
        .rule(|call| call.is("GET", "rooms/!q:x/messages").then(|| no(403, "M_FORBIDDEN")));
    let gap = |id: &str| {
        let mut room = room(&[message(id)]);
        // No token either: it is filled from the newest event on.
        room["timeline"] = json!({"limited": true, "events": room["timeline"]["events"]});
        room
    };
    world.homeserver.push(sync(&[("!p:x", gap("$behind")), ("!q:x", gap("$behind-q"))]));
    world.webhook.has(&["in-the-gap", "behind", "behind-q"]).await;
    assert_eq!(bridge.metric("gaps_abandoned_total").await, Some(1.0));
    let page = |call: &Call| call.path.ends_with("/messages");
    assert!(
        world
            .homeserver
            .calls
            .all()
            .iter()
            .filter(|call| page(call))
            .all(|call| { !call.query.contains_key("from") })
    );
    let bodies = world.webhook.bodies();
    let place = |body: &str| bodies.iter().position(|other| other == body);
    assert!(place("in-the-gap") < place("behind"), "{bodies:?}");
}

async fn refused_for_a_while(code: &'static str, body: Value, guess: &str) {
    let world = World::new().await;
    let mut bridge = world.ready_bridge(&[]).await;
    world.homeserver.calls.rule(move |call| {
        let mut body = body.clone();
        body["errcode"] = json!(code);
        call.is_sync().then(|| Reply::json(401, body))
    });
    // Wakes the sync that waits for news.
    world.homeserver.push(sync(&[("!p:x", room(&[message("$1")]))]));
    bridge.says(guess).await;
    let before = world.homeserver.calls.count(Call::is_sync);
    world.homeserver.calls.until_count("two more tries", before + 2, Call::is_sync).await;
    assert!(bridge.is_running());
    world.homeserver.calls.no_rules();
    world.homeserver.push(sync(&[("!p:x", room(&[message("$2")]))]));
    world.webhook.has(&["1", "2"]).await;
    assert_eq!(world.homeserver.calls.count(|call| call.is("POST", "login")), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_account_is_waited_for_and_named() {
    refused_for_a_while("M_USER_LOCKED", json!({"soft_logout": true}), "locked").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_token_may_be_a_locked_account() {
    refused_for_a_while("M_UNKNOWN_TOKEN", json!({}), "locked").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_stays_unknown_ends_the_bridge() {
    let world = World::new().await;
    let mut bridge = world.ready_bridge(&[("BRIDGE_REFUSAL_WAIT", "2")]).await;
    world.homeserver.calls.rule(|call| call.is_sync().then(|| no(401, "M_UNKNOWN_TOKEN")));
    world.homeserver.push(sync(&[]));
    assert_eq!(bridge.ended().await, 4);
    assert!(bridge.log().contains("STORE_ACCOUNT"), "{}", bridge.log());

    // At a start all calls are refused, the first one, too.
    world.homeserver.calls.rule(|_| Some(no(401, "M_UNKNOWN_TOKEN")));
    let mut bridge = world.bridge(&[("BRIDGE_REFUSAL_WAIT", "2")]);
    assert_eq!(bridge.ended().await, 4);
    assert!(bridge.log().contains("STORE_ACCOUNT"), "{}", bridge.log());
}

/// What is no homeserver is named with its setting, again and again, and a homeserver is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_base_url_is_named() {
    let pages: [fn() -> Reply; 4] = [
        || Reply::text(301, "").header("Location", "https://example.org/"),
        || Reply::text(200, "<html>welcome</html>"),
        || Reply::text(403, "<html>blocked</html>"),
        || Reply::text(404, "not found"),
    ];
    for page in pages {
        let world = World::new().await;
        world.homeserver.calls.rule(move |_| Some(page()));
        let bridge = world.bridge(&[]);
        bridge.says("check MATRIX_HOMESERVER").await;
        assert!(matches!(bridge.get("/readyz").await, Some((503, _))));
        world.homeserver.calls.no_rules();
        bridge.ready().await;
    }
}

async fn asked_while_idle(answer: Value) -> usize {
    let world = World::new().await;
    let _bridge = world.ready_bridge(&[]).await;
    world.homeserver.calls.rule(move |call| {
        (call.is_sync() && call.since() == Some("s1")).then(|| Reply::json(200, answer.clone()))
    });
    world.homeserver.push(json!({"next_batch": "s1"}));
    let before = world.homeserver.calls.count(Call::is_sync);
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    world.homeserver.calls.count(Call::is_sync) - before
}

/// A sync that comes at once with nothing new is not asked for as fast as it comes.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_homeserver_is_not_asked_all_the_time() {
    let answers = [
        json!({"next_batch": "s1", "device_one_time_keys_count": {}}),
        json!({"next_batch": "s1", "rooms": {"join": {"!p:x": {}}}}),
        json!({"next_batch": "s1", "rooms": {"invite": {"!again:x": {}}}}),
        json!({"next_batch": "s1", "rooms": {"join": {"!p:x": room(&[message("$1")])}}}),
    ];
    let asked = futures_util::future::join_all(answers.map(asked_while_idle)).await;
    assert!(asked.iter().all(|asked| *asked <= 8), "{asked:?} syncs in 4 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_means_that_a_sync_was_read_and_committed() {
    let unreadable: [fn() -> Reply; 3] = [
        || Reply::text(200, "<html>"),
        || Reply::json(200, json!({"rooms": {}})),
        || Reply::json(200, json!({"next_batch": 7})),
    ];
    for answer in unreadable {
        let world = World::new().await;
        world.homeserver.calls.rule(move |call| call.is_sync().then(answer));
        let bridge = world.bridge(&[]);
        world.homeserver.calls.until_count("three syncs", 3, Call::is_sync).await;
        let (status, text) = bridge.get("/readyz").await.unwrap();
        assert_eq!(status, 503, "{text}");
        assert!(bridge.metric("seconds_since_sync").await.unwrap() > 0.0);
    }
    // Read, and not committed.
    let world = World::new().await;
    let bridge: Bridge = world.bridge(&[]);
    bridge.ready().await;
    assert!(bridge.metric("seconds_since_sync").await.unwrap() < 45.0);
    drop(bridge);
    let refuse = "CREATE FUNCTION public.no() RETURNS trigger LANGUAGE plpgsql
                      AS $$ BEGIN RAISE 'no'; END $$;
                  CREATE TRIGGER no BEFORE UPDATE ON webhook_bridge.sync_positions
                      FOR EACH ROW EXECUTE FUNCTION public.no()";
    world.connection().await.batch_execute(refuse).await.unwrap();
    let bridge = world.bridge(&[("BRIDGE_TAKEOVER", "immediate")]);
    let before = world.homeserver.calls.count(Call::is_sync);
    world.homeserver.calls.until_count("two syncs", before + 2, Call::is_sync).await;
    let (status, text) = bridge.get("/readyz").await.unwrap();
    assert_eq!(status, 503, "{text}");
}
