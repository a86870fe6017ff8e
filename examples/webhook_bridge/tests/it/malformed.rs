//! Malformed parts of responses are skipped.

use serde_json::{Value, json};

use crate::support::{Call, Harness, MatrixUser, Reply, message, room, sync};

type Edit = Box<dyn Fn(&mut Value)>;

/// Each sync also contains a message of a well-formed room, which must be delivered.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_malformed_part_of_a_sync_is_skipped() {
    let harness = Harness::new().await;
    let bridge = harness.ready_bridge(&[]).await;
    let malformed: Vec<(&str, Edit)> = vec![
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
    for (number, (pointer, edit)) in malformed.iter().enumerate() {
        let good = format!("$good-{number}");
        let mut answer = sync(&[
            ("!p:x", room(&[message(&good)])),
            ("!bad:x", room(&[message(&format!("$bad-{number}"))])),
        ]);
        answer["rooms"]["leave"] = json!({});
        edit(answer.pointer_mut(pointer).unwrap());
        harness.homeserver.push(answer);
        harness.webhook.until_received(&[&good[1..]]).await;
    }
    harness.homeserver.until_synced().await;
    // The room is joined nevertheless: the content of the invitation is not needed.
    let joined = |calls: &[Call]| calls.iter().any(|call| call.is("POST", "rooms/!i:x/join"));
    harness.homeserver.calls.until("the join", joined).await;
    bridge.ready().await;
}

/// The rooms are JSON that typed parsers reject: the room keys in the same sync must be stored.
#[tokio::test(flavor = "multi_thread")]
async fn room_keys_survive_malformed_rooms() {
    let harness = Harness::new().await;
    let _bridge = harness.ready_bridge(&[]).await;
    let alice = MatrixUser::new(&harness.homeserver, "@alice:x").await;
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
        harness.homeserver.push_text(&format!(
            r#"{{"next_batch": "NEXT", "rooms": {{"join": {rooms}}},
                "to_device": {{"events": {keys}}}}}"#
        ));
        harness.homeserver.push(sync(&[("!r:x", room(&[event]))]));
        harness.webhook.until_received(&[&body]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_malformed_entries_of_pages_and_key_queries_are_skipped() {
    let harness = Harness::new().await;
    harness.homeserver.calls.rule(|call| {
        let features = json!({"org.example": "yes", "org.other": null, "org.good": true});
        let versions = json!({"versions": ["v1.11", 7, "v99"], "unstable_features": features});
        call.is("GET", "versions").then(|| Reply::json(200, versions))
    });
    let _bridge = harness.ready_bridge(&[]).await;
    let alice = MatrixUser::new(&harness.homeserver, "@alice:x").await;
    let alices = {
        let stored = harness.homeserver.stored.lock().unwrap();
        stored.users["@alice:x"].clone()
    };
    harness.homeserver.calls.rule(move |call| {
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
        harness.homeserver.calls.rule(move |call| {
            call.is("GET", "rooms/!p:x/messages").then(|| Reply::json(200, page.clone()))
        });
        let id = format!("$behind-{number}");
        let mut behind = room(&[message(&id)]);
        behind["timeline"]["limited"] = json!(true);
        harness.homeserver.push(sync(&[("!p:x", behind)]));
        harness.webhook.until_received(&[&id[1..]]).await;
    }
    harness.webhook.until_received(&["paged"]).await;
    let mut answer = sync(&[]);
    answer["to_device"] = json!({"events": alice.room_key("!r:x").await});
    let event = alice.encrypt("!r:x", "$secret", "secret").await;
    answer["rooms"]["join"] = json!({"!r:x": room(&[event])});
    harness.homeserver.push(answer);
    harness.webhook.until_received(&["secret"]).await;
    let delivery = harness.webhook.requests.all().pop().unwrap();
    assert_eq!(delivery.message["sender_device"], "PERSON");
}
