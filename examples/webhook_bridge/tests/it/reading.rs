//! What is malformed and not needed stops nothing.

use serde_json::{Value, json};

use crate::support::{Call, Person, Reply, World, message, room, sync};

type Bend = Box<dyn Fn(&mut Value)>;

/// Each of these syncs also carries a message of a good room, which must arrive.
#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_part_of_a_sync_costs_that_part_only() {
    let world = World::new().await;
    let bridge = world.ready_bridge(&[]).await;
    let bent: Vec<(&str, Bend)> = vec![
        ("/rooms/join/!bad:x", Box::new(|bad| bad["summary"] = Value::Null)),
        (
            "/rooms/join/!bad:x",
            Box::new(|bad| bad["summary"] = json!({"m.heroes": ["no user id"]})),
        ),
        ("/rooms/join/!bad:x", Box::new(|bad| bad["timeline"] = Value::Null)),
        ("/rooms/join/!bad:x", Box::new(|bad| bad["timeline"]["events"] = json!("none"))),
        ("/rooms/join/!bad:x", Box::new(|bad| bad["timeline"]["limited"] = json!("no"))),
        ("/rooms/join/!bad:x", Box::new(|bad| bad["state"] = json!({"events": {"a": 1}}))),
        ("/rooms/join/!bad:x", Box::new(|bad| bad["ephemeral"] = json!([1]))),
        ("/rooms/join/!bad:x", Box::new(|bad| bad["unread_notifications"] = json!("many"))),
        ("/rooms/join/!bad:x", Box::new(|bad| *bad = json!(7))),
        ("/rooms/join", Box::new(|join| join["no room id"] = room(&[message("$no-id")]))),
        ("/rooms/join", Box::new(|join| join[""] = Value::Null)),
        ("/rooms/join", Box::new(|join| join["!\0:x"] = room(&[message("$nul")]))),
        ("/rooms", Box::new(|rooms| rooms["invite"] = json!({"!i:x": {"invite_state": null}}))),
        ("/rooms", Box::new(|rooms| rooms["invite"] = Value::Null)),
        ("/rooms", Box::new(|rooms| rooms["leave"] = json!([]))),
        ("/rooms", Box::new(|rooms| rooms["leave"] = json!({"!l:x": null}))),
        ("/rooms", Box::new(|rooms| rooms["knock"] = json!("knock"))),
        ("", Box::new(|sync| sync["device_one_time_keys_count"] = Value::Null)),
        (
            "",
            Box::new(|sync| {
                sync["device_one_time_keys_count"] = json!({"signed_curve25519": "fifty", "x": -1});
            }),
        ),
        ("", Box::new(|sync| sync["device_unused_fallback_key_types"] = json!([1, null]))),
        ("", Box::new(|sync| sync["device_lists"] = json!({"changed": ["@a:x", 7, "nobody"]}))),
        ("", Box::new(|sync| sync["device_lists"] = json!([]))),
        ("", Box::new(|sync| sync["to_device"] = json!({"events": [null, 5, {"type": "m.x"}]}))),
        ("", Box::new(|sync| sync["to_device"] = json!([]))),
        ("", Box::new(|sync| sync["presence"] = json!("here"))),
        ("", Box::new(|sync| sync["account_data"] = json!({"events": null}))),
        ("", Box::new(|sync| sync["groups"] = json!(0.5))),
    ];
    for (number, (place, bend)) in bent.iter().enumerate() {
        let good = format!("$good-{number}");
        let mut answer = sync(&[
            ("!p:x", room(&[message(&good)])),
            ("!bad:x", room(&[message(&format!("$bad-{number}"))])),
        ]);
        answer["rooms"]["leave"] = json!({});
        bend(answer.pointer_mut(place).unwrap());
        world.homeserver.push(answer);
        world.webhook.has(&[&good[1..]]).await;
    }
    world.homeserver.taken_in().await;
    // Joined all the same: what the invitation says of the room is not needed.
    let joined = |calls: &[Call]| calls.iter().any(|call| call.is("POST", "rooms/!i:x/join"));
    world.homeserver.calls.until("the join", joined).await;
    bridge.ready().await;
}

/// Text that no parser takes: the keys beside it get through.
#[tokio::test(flavor = "multi_thread")]
async fn keys_get_through_whatever_the_rooms_look_like() {
    let world = World::new().await;
    let _bridge = world.ready_bridge(&[]).await;
    let alice = Person::meet(&world.homeserver, "@alice:x").await;
    let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
    let broken = [
        r#"{"!bad:x": {"timeline": {"events": [{"type": "\ud800"}]}}}"#.to_owned(),
        r#"{"!\ud800:x": {"timeline": {"events": []}}}"#.to_owned(),
        r#"{"!bad:x": {"timeline": {"events": [{"content": {"a": 1e999}}]}}}"#.to_owned(),
        format!(r#"{{"!bad:x": {{"timeline": {{"events": [{{"content": {deep}}}]}}}}}}"#),
        format!(r#"{{"!bad:x": {{"state": {deep}, "timeline": {deep}}}}}"#),
        "null".to_owned(),
    ];
    for (number, rooms) in broken.iter().enumerate() {
        alice.rotate("!r:x").await;
        let keys = json!(alice.room_key("!r:x").await);
        let body = format!("secret {number}");
        let event = alice.encrypt("!r:x", &format!("$secret-{number}"), &body).await;
        world.homeserver.push_text(&format!(
            r#"{{"next_batch": "NEXT", "rooms": {{"join": {rooms}}},
                "to_device": {{"events": {keys}}}}}"#
        ));
        world.homeserver.push(sync(&[("!r:x", room(&[event]))]));
        world.webhook.has(&[&body]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_page_or_key_answer_costs_that_entry_only() {
    let world = World::new().await;
    world.homeserver.calls.rule(|call| {
        let features = json!({"org.example": "yes", "org.other": null, "org.good": true});
        let versions = json!({"versions": ["v1.11", 7, "v99"], "unstable_features": features});
        call.is("GET", "versions").then(|| Reply::json(200, versions))
    });
    let _bridge = world.ready_bridge(&[]).await;
    let alice = Person::meet(&world.homeserver, "@alice:x").await;
    let alices = {
        let stored = world.homeserver.stored.lock().unwrap();
        stored.users["@alice:x"].clone()
    };
    world.homeserver.calls.rule(move |call| {
        let mut devices = alices.clone();
        devices["BROKEN"] = json!({"keys": 1});
        devices["NULL"] = Value::Null;
        let answer = json!({"failures": null, "master_keys": {"@alice:x": null, "x": 1},
            "self_signing_keys": [], "device_keys": {"@null:x": null, "nobody": {},
            "@list:x": [], "@alice:x": devices}});
        call.is("POST", "keys/query").then(|| Reply::json(200, answer))
    });
    for (number, page) in [
        json!({"start": "a", "chunk": null}),
        json!({"chunk": []}),
        json!({"chunk": [null, 7, message("$paged")], "end": null}),
        json!({"start": 1, "chunk": {"a": 1}, "end": 7, "state": "x"}),
    ]
    .into_iter()
    .enumerate()
    {
        world.homeserver.calls.rule(move |call| {
            call.is("GET", "rooms/!p:x/messages").then(|| Reply::json(200, page.clone()))
        });
        let id = format!("$behind-{number}");
        let mut behind = room(&[message(&id)]);
        behind["timeline"]["limited"] = json!(true);
        world.homeserver.push(sync(&[("!p:x", behind)]));
        world.webhook.has(&[&id[1..]]).await;
    }
    world.webhook.has(&["paged"]).await;
    let mut answer = sync(&[]);
    answer["to_device"] = json!({"events": alice.room_key("!r:x").await});
    let event = alice.encrypt("!r:x", "$secret", "secret").await;
    answer["rooms"]["join"] = json!({"!r:x": room(&[event])});
    world.homeserver.push(answer);
    world.webhook.has(&["secret"]).await;
    let delivery = world.webhook.got.all().pop().unwrap();
    assert_eq!(delivery.message["sender_device"], "PERSON");
}
