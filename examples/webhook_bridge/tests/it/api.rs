//! The API: messages, cursors, limits, attachments.

use std::io::Read;

use matrix_sdk_crypto::AttachmentEncryptor;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::{
    Bridge, Call, Delivery, Harness, MatrixUser, Reply, labels_file, message, plain, room, sync,
};

const TOKEN: &str = "an api token";

fn free_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port().to_string()
}

/// A bridge whose API is on, and its address.
async fn start(harness: &Harness, more: &[(&str, &str)]) -> (Bridge, String) {
    let port = free_port();
    let settings = [
        ("BRIDGE_API_TOKEN", TOKEN),
        ("BRIDGE_API_LISTEN", &port),
        ("BRIDGE_API_RATE_LIMIT", "1000"),
    ];
    let bridge = harness.ready_bridge(&[&settings[..], more].concat()).await;
    (bridge, format!("http://127.0.0.1:{port}/api/v1"))
}

async fn get(url: &str, token: &str) -> (u16, Value) {
    let (status, body) = Bridge::get_url(url, token).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

async fn page(url: &str) -> (Vec<String>, Value) {
    let (status, page) = get(url, TOKEN).await;
    assert_eq!(status, 200, "{page}");
    let bodies = page["messages"].as_array().unwrap().iter();
    (bodies.map(|message| message["body"].as_str().unwrap().to_owned()).collect(), page)
}

async fn send(harness: &Harness, room_id: &str, ids: &[&str]) {
    let events: Vec<_> = ids.iter().map(|id| message(id)).collect();
    harness.homeserver.push(sync(&[(room_id, room(&events))]));
    let bodies: Vec<_> = ids.iter().map(|id| &id[1..]).collect();
    harness.webhook.until_received(&bodies).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_paged_in_both_directions_by_label_and_room() {
    let harness = Harness::new().await;
    let labels = labels_file("[[label]]\nname = \"vip\"\nrooms = [\"!p:x\", \"!q:x\"]");
    let settings = [("BRIDGE_LABELS_FILE", labels.path()), ("BRIDGE_API_MAX_MESSAGES", "3")];
    let (_bridge, api) = start(&harness, &settings).await;
    let (bodies, empty) = page(&format!("{api}/messages/vip")).await;
    assert_eq!((bodies.len(), &empty["after"], &empty["before"]), (0, &Value::Null, &Value::Null));
    send(&harness, "!p:x", &["$1", "$2", "$3", "$4"]).await;
    send(&harness, "!q:x", &["$5"]).await;
    // The first one is beyond the limit of its room.
    assert_eq!(page(&format!("{api}/messages/vip")).await.0, ["2", "3", "4", "5"]);
    assert_eq!(page(&format!("{api}/messages/!p:x")).await.0, ["2", "3", "4"]);
    let (bodies, newest) = page(&format!("{api}/messages/vip?limit=2")).await;
    assert_eq!(bodies, ["4", "5"]);
    assert_eq!(newest["messages"][0]["label"], "vip");
    let before = newest["before"].as_str().unwrap();
    let (bodies, oldest) = page(&format!("{api}/messages/vip?limit=2&before={before}")).await;
    assert_eq!((bodies, &oldest["before"]), (vec!["2".into(), "3".into()], &Value::Null));
    let after = oldest["after"].as_str().unwrap();
    let (bodies, _) = page(&format!("{api}/messages/vip?limit=1&after={after}")).await;
    assert_eq!(bodies, ["4"]);
    let end = newest["after"].as_str().unwrap();
    let (bodies, last) = page(&format!("{api}/messages/vip?after={end}")).await;
    assert_eq!((bodies.len(), &last["after"]), (0, &json!(end)));
    send(&harness, "!q:x", &["$6"]).await;
    assert_eq!(page(&format!("{api}/messages/vip?after={end}")).await.0, ["6"]);
    // Both: what is between them, beginning with the oldest.
    let between = format!("{api}/messages/vip?after={after}&before={end}");
    assert_eq!(page(&between).await.0, ["4"]);
    let (bodies, first) = page(&format!("{api}/messages/vip?after=0&before={end}&limit=2")).await;
    assert_eq!((bodies, &first["after"]), (vec!["2".into(), "3".into()], &json!(after)));
    assert_eq!(first["before"], Value::Null, "nothing is older");
    let (_, later) = page(&format!("{api}/messages/vip?after={after}")).await;
    let before = later["before"].as_str().unwrap();
    assert_eq!(page(&format!("{api}/messages/vip?before={before}")).await.0, ["2", "3"]);
    let (bodies, none) = page(&format!("{api}/messages/vip?after={end}&before={after}")).await;
    assert_eq!((bodies.len(), &none["after"], &none["before"]), (0, &json!(end), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_need_the_token_and_valid_parameters() {
    let harness = Harness::new().await;
    let (bridge, api) = start(&harness, &[]).await;
    let url = |rest: &str| format!("{api}/{rest}");
    for token in ["", "another token", "an api toke"] {
        assert_eq!(get(&url("messages/!p:x"), token).await.0, 401, "{token}");
        assert_eq!(get(&url("attachments/abc"), token).await.0, 401, "{token}");
    }
    for (rest, expected) in [
        ("messages/!p:x?limit=0", 400),
        ("messages/!p:x?limit=101", 400),
        ("messages/!p:x?limit=1&limit=2", 400),
        ("messages/!p:x?after=-1", 400),
        ("messages/!p:x?before=9999999999999999999", 400),
        ("messages/!p:x?page=1", 400),
        ("messages/!%00:x", 400),
        ("messages/%ff", 400),
        ("messages/!unknown:x", 404),
        ("messages/unknown", 404),
        ("attachments/abc", 404),
        ("attachments/%ff", 404),
        ("nothing", 404),
    ] {
        let (status, body) = get(&url(rest), TOKEN).await;
        assert_eq!((status, body["error"].is_string()), (expected, true), "{rest}: {body}");
    }
    let (status, description) = get(&url("openapi.json"), "").await;
    let file: Value = serde_json::from_str(include_str!("../../openapi.json")).unwrap();
    assert_eq!((status, description), (200, file));
    let port = free_port();
    let settings = [("BRIDGE_API_TOKEN", TOKEN), ("BRIDGE_API_LISTEN", port.as_str())];
    let standby = harness.bridge(&settings);
    standby.until_logged("waiting until it is free").await;
    let url = format!("http://127.0.0.1:{port}/api/v1/messages/!p:x");
    assert_eq!(get(&url, TOKEN).await.0, 503);
    assert!(!bridge.log().contains(TOKEN));
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_requests_are_refused_and_told_when_to_come_again() {
    let harness = Harness::new().await;
    let (_bridge, api) = start(&harness, &[("BRIDGE_API_RATE_LIMIT", "1")]).await;
    let url = format!("{api}/messages/!p:x");
    let mut refused = false;
    for _ in 0..50 {
        refused |= get(&url, TOKEN).await.0 == 429;
    }
    assert!(refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_sealed_at_rest_and_deleted_when_redacted_or_switched_off() {
    let harness = Harness::new().await;
    let (mut bridge, api) = start(&harness, &[]).await;
    let alice = MatrixUser::new(&harness.homeserver, "@alice:x").await;
    let mut first = json!({"to_device": {"events": alice.room_key("!r:x").await}});
    let secret = alice.encrypt("!r:x", "$secret", "the secret text").await;
    let other = alice.encrypt("!r:x", "$other", "another text").await;
    first["rooms"] = sync(&[("!r:x", room(&[secret, other]))])["rooms"].clone();
    harness.homeserver.push(first);
    harness.webhook.until_received(&["the secret text", "another text"]).await;
    assert_eq!(page(&format!("{api}/messages/!r:x")).await.0, ["the secret text", "another text"]);
    let readable = "
        SELECT count(*) FROM webhook_bridge.api_messages
        WHERE convert_from(sealed, 'UTF8') LIKE '%secret%'";
    assert_eq!(harness.number(readable).await, 0);
    // A row that was copied to another event is left out.
    let copy = "
        UPDATE webhook_bridge.api_messages SET sealed =
            (SELECT sealed FROM webhook_bridge.api_messages WHERE event_id = '$secret')
        WHERE event_id = '$other'";
    harness.connection().await.batch_execute(copy).await.unwrap();
    assert_eq!(page(&format!("{api}/messages/!r:x")).await.0, ["the secret text"]);
    let redaction = json!({"event_id": "$redaction", "sender": "@alice:x", "origin_server_ts": 1,
        "type": "m.room.redaction", "content": {"redacts": "$secret"}});
    harness.homeserver.push(sync(&[("!r:x", room(&[redaction, plain("$end", "end")]))]));
    harness.webhook.until_received(&["end"]).await;
    assert_eq!(page(&format!("{api}/messages/!r:x")).await.0, ["", "end"]);
    let rows = "SELECT count(*) FROM webhook_bridge.api_messages";
    assert_eq!(harness.number(rows).await, 3);
    assert_eq!(bridge.stop().await, 0);
    // After a restart the key is the same.
    let (mut bridge, api) = start(&harness, &[]).await;
    assert_eq!(page(&format!("{api}/messages/!r:x")).await.0, ["", "end"]);
    assert_eq!(bridge.stop().await, 0);
    let bridge = harness.bridge(&[]);
    bridge.until("the rows to be deleted", async |_| harness.number(rows).await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attachments_are_fetched_with_the_bots_token_and_decrypted() {
    let harness = Harness::new().await;
    let (_bridge, api) = start(&harness, &[("BRIDGE_ATTACHMENTS", "download")]).await;
    let mut plaintext = &b"the content of a file"[..];
    let mut encryptor = AttachmentEncryptor::new(&mut plaintext);
    let mut encrypted = Vec::new();
    encryptor.read_to_end(&mut encrypted).unwrap();
    let mut file = serde_json::to_value(encryptor.finish()).unwrap();
    file["url"] = json!("mxc://example.org/abc");
    let media = encrypted.clone();
    harness.homeserver.calls.rule(move |call| {
        let path = "media/download/example.org/abc";
        call.path.ends_with(path).then(|| Reply::bytes(200, &media))
    });
    let event = |id: &str, file: &Value| {
        let mut event = plain(id, "notes.txt");
        event["content"] = json!({"msgtype": "m.file", "body": id, "filename": "notes.txt",
            "file": file, "info": {"mimetype": "text/plain", "size": 21}});
        event
    };
    let mut changed = file.clone();
    changed["hashes"]["sha256"] = json!("fdSLu/YkRx3Wyh3KQabP3rd6+SFiKg5lsJZQHtkSAYA");
    let events = [event("$good", &file), event("$changed", &changed)];
    harness.homeserver.push(sync(&[("!p:x", room(&events))]));
    harness.webhook.until_received(&["$good", "$changed"]).await;
    let path_of = |body: &str| {
        let all = harness.webhook.requests.all();
        let message = &all.iter().find(|delivery| delivery.body == body).unwrap().message;
        assert_eq!(message["content"]["file"], json!({"url": "mxc://example.org/abc"}));
        message["attachment"]["path"].as_str().unwrap().trim_start_matches("/api/v1").to_owned()
    };
    let good = Bridge::get_url(&format!("{api}{}", path_of("$good")), TOKEN).await.unwrap();
    assert_eq!(good, (200, b"the content of a file".to_vec()));
    let (status, error) = get(&format!("{api}{}", path_of("$changed")), TOKEN).await;
    assert_eq!(status, 502, "{error}");
    assert!(error["error"].as_str().unwrap().contains("decrypted"), "{error}");
    harness.homeserver.calls.clear_rules();
    assert_eq!(get(&format!("{api}{}", path_of("$good")), TOKEN).await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_messages_are_not_served_and_deleted_at_the_next_start() {
    let harness = Harness::new().await;
    let settings = [("BRIDGE_API_MAX_AGE", "3600")];
    let (mut bridge, api) = start(&harness, &settings).await;
    send(&harness, "!p:x", &["$old", "$new"]).await;
    assert_eq!(page(&format!("{api}/messages/!p:x")).await.0, ["old", "new"]);
    let age = "UPDATE webhook_bridge.api_messages SET stored_at = stored_at - interval '61 minutes'
               WHERE event_id = '$old'";
    harness.connection().await.batch_execute(age).await.unwrap();
    assert_eq!(page(&format!("{api}/messages/!p:x")).await.0, ["new"]);
    let rows = "SELECT count(*) FROM webhook_bridge.api_messages";
    assert_eq!(harness.number(rows).await, 2);
    assert_eq!(bridge.stop().await, 0);
    let (bridge, api) = start(&harness, &settings).await;
    bridge.until("the row to be deleted", async |_| harness.number(rows).await == 1).await;
    assert_eq!(page(&format!("{api}/messages/!p:x")).await.0, ["new"]);
}

/// The statements of the guide's section on restoring a backup.
#[tokio::test(flavor = "multi_thread")]
async fn cursors_of_before_a_restore_remain_valid() {
    let harness = Harness::new().await;
    let (_bridge, api) = start(&harness, &[]).await;
    let messages = format!("{api}/messages/!p:x");
    send(&harness, "!p:x", &["$1", "$2", "$3"]).await;
    let cursor = page(&messages).await.1["after"].as_str().unwrap().to_owned();

    let restored = "ALTER TABLE webhook_bridge.api_messages ALTER COLUMN id RESTART WITH 1";
    let guide = include_str!("../../../../docs/bridge.md");
    let (_, guide) = guide.split_once("restore.sh \"$file\"").unwrap();
    let (_, statements) = guide.split_once("--command='").unwrap();
    let (delete, rest) = statements.split_once('\'').unwrap();
    let (set, _) = rest.split_once("--command=\"").unwrap().1.split_once('"').unwrap();
    let connection = harness.connection().await;
    for statement in [restored, delete, set] {
        connection.batch_execute(statement).await.unwrap();
    }
    send(&harness, "!p:x", &["$4"]).await;
    let (bodies, newer) = page(&format!("{messages}?after={cursor}")).await;
    assert_eq!(bodies, ["4"]);
    let cursor = newer["after"].as_str().unwrap();
    send(&harness, "!p:x", &["$5"]).await;
    assert_eq!(page(&format!("{messages}?after={cursor}")).await.0, ["5"]);
}

/// The webhook rejects a message, or is down, for longer than the message is kept: a repeated attempt does
/// not make it the newest one.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_attempt_does_not_store_a_message_again() {
    let harness = Harness::new().await;
    let (mut bridge, api) = start(&harness, &[]).await;
    let webhook = &harness.webhook.requests;
    webhook.rule(|delivery| (delivery.body == "bad").then(|| Reply::text(400, "no")));
    webhook.rule(|delivery| (delivery.body == "down").then(|| Reply::text(503, "no")));
    let rooms = [("!p:x", room(&[message("$bad")])), ("!q:x", room(&[message("$down")]))];
    harness.homeserver.push(sync(&rooms));
    harness.webhook.until_received(&["bad", "down"]).await;
    assert_eq!(page(&format!("{api}/messages/!p:x")).await.0, ["bad"]);
    let prune = "DELETE FROM webhook_bridge.api_messages";
    harness.connection().await.batch_execute(prune).await.unwrap();
    webhook.until_count("another attempt", 2, |delivery| delivery.body == "bad").await;
    webhook.until_count("another attempt", 2, |delivery| delivery.body == "down").await;
    let rows = "SELECT count(*) FROM webhook_bridge.api_messages";
    assert_eq!(harness.number(rows).await, 0);
    assert_eq!(bridge.stop().await, 0);
    let dead_letter = "
        UPDATE webhook_bridge.events SET state = 'failed', rejections = 5, retry_at = NULL,
            failure = 'rejected', done_at = now() WHERE event_id = '$bad'";
    harness.connection().await.batch_execute(dead_letter).await.unwrap();
    let attempts = webhook.count(|delivery| delivery.body == "bad");
    let (_bridge, _) = start(&harness, &[]).await;
    let is_bad = |delivery: &Delivery| delivery.body == "bad";
    webhook.until_count("the attempt of the next start", attempts + 1, is_bad).await;
    assert_eq!(harness.number(rows).await, 0);
}

/// Two clients that read nothing hold both downloads.
#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_others_hold_up_is_refused_for_a_time() {
    let harness = Harness::new().await;
    let (_bridge, api) = start(&harness, &[("BRIDGE_ATTACHMENTS", "download")]).await;
    let latch = CancellationToken::new();
    let held = latch.clone();
    let is_download = |call: &Call| call.path.contains("media/download");
    let media = move |call: &Call| is_download(call).then(|| Reply::bytes(200, b"x").after(&held));
    harness.homeserver.calls.rule(media);
    let mut file = plain("$file", "file");
    file["content"] = json!({"msgtype": "m.file", "body": "file", "url": "mxc://example.org/abc"});
    harness.homeserver.push(sync(&[("!p:x", room(&[file]))]));
    harness.webhook.until_received(&["file"]).await;
    let message = harness.webhook.requests.all().remove(0).message;
    let path = message["attachment"]["path"].as_str().unwrap();
    let url = format!("{api}{}", path.trim_start_matches("/api/v1"));
    let first = [url.clone(), url.clone()]
        .map(|url| tokio::spawn(async move { Bridge::get_url(&url, TOKEN).await }));
    harness.homeserver.calls.until_count("two downloads", 2, is_download).await;
    let (status, error) = get(&url, TOKEN).await;
    assert_eq!(status, 503, "{error}");
    latch.cancel();
    for first in first {
        assert_eq!(first.await.unwrap().unwrap(), (200, b"x".to_vec()));
    }
    assert_eq!(Bridge::get_url(&url, TOKEN).await.unwrap().0, 200);
}
