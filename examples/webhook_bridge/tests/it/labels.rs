//! Labels of rooms, and webhooks per label.

use serde_json::{Value, json};

use crate::support::{
    Bridge, Call, Harness, Reply, TempFile, Webhook, labels_file, plain, room, sync,
};

fn invitation(room: &str, inviter: &str) -> Value {
    let events = json!([
        {"type": "m.room.member", "state_key": inviter, "sender": inviter,
         "content": {"membership": "join"}},
        {"type": "m.room.member", "state_key": "@bot:example.org", "sender": inviter,
         "content": {"membership": "invite"}},
    ]);
    json!({"rooms": {"invite": {room: {"invite_state": {"events": events}}}}})
}

fn own_join(room: &str) -> Value {
    json!({"event_id": format!("$join-{room}"), "sender": "@bot:example.org",
        "type": "m.room.member", "state_key": "@bot:example.org", "origin_server_ts": 1,
        "content": {"membership": "join"}})
}

/// A message of this sender; its text is its id without the `$`.
fn message(id: &str, sender: &str) -> Value {
    let mut message = plain(id, &id[1..]);
    message["sender"] = json!(sender);
    message
}

fn label_of(webhook: &Webhook, body: &str) -> Value {
    let all = webhook.requests.all();
    all.iter().find(|delivery| delivery.body == body).unwrap().message["label"].clone()
}

async fn members(harness: &Harness, of: &'static str, members: &'static [&'static str]) {
    harness.homeserver.calls.rule(move |call| {
        let member = |user: &&str| {
            json!({"type": "m.room.member", "state_key": user, "sender": user,
                "content": {"membership": "join"}})
        };
        let chunk: Vec<_> = members.iter().map(member).collect();
        (call.method == "GET" && call.path == format!("rooms/{of}/members"))
            .then(|| Reply::json(200, json!({"chunk": chunk})))
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn rooms_are_labelled_by_id_inviter_and_ghost_and_stay_so_after_a_restart() {
    let harness = Harness::new().await;
    let labels = labels_file(
        r#"
        [[label]]
        name = "instagram"
        ghosts = ["@instagram_"]

        [[label]]
        name = "messenger"
        inviters = ["@metabot:example.org"]

        [[label]]
        name = "vip"
        rooms = ["!vip:x"]
        "#,
    );
    let settings = [("BRIDGE_LABELS_FILE", labels.path())];
    members(&harness, "!ghost:x", &["@alice:x", "@instagram_7:example.org"]).await;
    members(&harness, "!none:x", &["@alice:x"]).await;
    let mut bridge = harness.bridge(&settings);
    bridge.ready().await;
    harness.homeserver.push(invitation("!invited:x", "@metabot:example.org"));
    harness.homeserver.push(sync(&[
        ("!vip:x", room(&[own_join("1"), message("$vip", "@alice:x")])),
        ("!invited:x", room(&[own_join("2"), message("$invited", "@alice:x")])),
        // The ghost is a member, but has not spoken.
        ("!ghost:x", room(&[own_join("3"), message("$ghost", "@alice:x")])),
        ("!late:x", room(&[own_join("4"), message("$late", "@instagram_8:example.org")])),
        ("!none:x", room(&[own_join("5"), message("$none", "@instagram_7:evil")])),
    ]));
    let bodies = ["vip", "invited", "ghost", "late", "none"];
    harness.webhook.until_received(&bodies).await;
    let labelled = || bodies.map(|body| label_of(&harness.webhook, body));
    let expected =
        [json!("vip"), json!("messenger"), json!("instagram"), json!("instagram"), Value::Null];
    assert_eq!(labelled(), expected);
    assert_eq!(bridge.stop().await, 0);
    let bridge = harness.bridge(&settings);
    bridge.ready().await;
    harness.homeserver.push(sync(&[
        ("!invited:x", room(&[message("$again-invited", "@alice:x")])),
        ("!late:x", room(&[message("$again-late", "@alice:x")])),
    ]));
    harness.webhook.until_received(&["again-invited", "again-late"]).await;
    assert_eq!(label_of(&harness.webhook, "again-invited"), "messenger");
    assert_eq!(label_of(&harness.webhook, "again-late"), "instagram");
}

/// The rules are those of the process, so its next run has nothing to check.
#[tokio::test(flavor = "multi_thread")]
async fn members_are_fetched_again_once_per_process() {
    let harness = Harness::new().await;
    let labels = labels_file("[[label]]\nname = \"instagram\"\nghosts = [\"@instagram_\"]");
    let bridge = harness.ready_bridge(&[("BRIDGE_LABELS_FILE", labels.path())]).await;
    let members = |call: &Call| call.is("GET", "rooms/") && call.path.ends_with("/members");
    let unknown = "SELECT count(*) FROM webhook_bridge.rooms WHERE NOT members_known";
    bridge.until("the members", async |_| harness.number(unknown).await == 0).await;
    let fetched = harness.homeserver.calls.count(members);
    harness.restart_run(&bridge, || ()).await;
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$1", "@alice:x")]))]));
    harness.webhook.until_received(&["1"]).await;
    bridge.until("the members", async |_| harness.number(unknown).await == 0).await;
    assert_eq!(harness.homeserver.calls.count(members), fetched);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_replacement_of_an_upgraded_room_keeps_the_label_of_its_inviter() {
    let harness = Harness::new().await;
    let labels = labels_file("[[label]]\nname = \"messenger\"\ninviters = [\"@metabot:x\"]");
    let bridge = harness.bridge(&[("BRIDGE_LABELS_FILE", labels.path())]);
    bridge.ready().await;
    harness.homeserver.push(invitation("!old:x", "@metabot:x"));
    let tombstone = json!({"event_id": "$tombstone", "sender": "@alice:x", "state_key": "",
        "type": "m.room.tombstone", "origin_server_ts": 1,
        "content": {"replacement_room": "!new:x"}});
    let events = [own_join("old"), message("$old", "@alice:x"), tombstone];
    harness.homeserver.push(sync(&[("!old:x", room(&events))]));
    let events = [own_join("new"), message("$new", "@alice:x")];
    harness.homeserver.push(sync(&[("!new:x", room(&events))]));
    harness.webhook.until_received(&["old", "new"]).await;
    for body in ["old", "new"] {
        assert_eq!(label_of(&harness.webhook, body), "messenger", "{body}");
    }
}

/// A member who may invite somebody may invite a ghost.
#[tokio::test(flavor = "multi_thread")]
async fn a_ghost_that_is_only_invited_labels_no_room() {
    let harness = Harness::new().await;
    let labels = labels_file("[[label]]\nname = \"instagram\"\nghosts = [\"@instagram_\"]");
    let ghost = |membership: &str| {
        json!({"event_id": format!("$ghost-{membership}"), "sender": "@mallory:x",
            "type": "m.room.member", "state_key": "@instagram_7:example.org",
            "origin_server_ts": 1, "content": {"membership": membership}})
    };
    let invited = ghost("invite");
    harness.homeserver.calls.rule(move |call| {
        (call.method == "GET" && call.path == "rooms/!listed:x/members")
            .then(|| Reply::json(200, json!({"chunk": [invited]})))
    });
    let bridge = harness.bridge(&[("BRIDGE_LABELS_FILE", labels.path())]);
    bridge.ready().await;
    let told = [own_join("1"), ghost("invite"), message("$told", "@mallory:x")];
    let listed = [own_join("2"), message("$listed", "@mallory:x")];
    harness.homeserver.push(sync(&[("!told:x", room(&told)), ("!listed:x", room(&listed))]));
    harness.webhook.until_received(&["told", "listed"]).await;
    for body in ["told", "listed"] {
        assert_eq!(label_of(&harness.webhook, body), Value::Null, "{body}");
    }
    let joins = [ghost("join"), message("$joined", "@mallory:x")];
    harness.homeserver.push(sync(&[("!told:x", room(&joins))]));
    harness.webhook.until_received(&["joined"]).await;
    assert_eq!(label_of(&harness.webhook, "joined"), "instagram");
}

/// Who invited the bot's user does not depend on its device, and is told only once.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_account_of_the_same_user_keeps_the_inviters() {
    let harness = Harness::new().await;
    let labels = labels_file("[[label]]\nname = \"messenger\"\ninviters = [\"@metabot:x\"]");
    let labels = ("BRIDGE_LABELS_FILE", labels.path());
    let mut bridge = harness.bridge(&[labels, ("STORE_ACCOUNT", "old")]);
    bridge.ready().await;
    harness.homeserver.push(invitation("!invited:x", "@metabot:x"));
    let events = [own_join("1"), message("$1", "@alice:x")];
    harness.homeserver.push(sync(&[("!invited:x", room(&events))]));
    harness.webhook.until_received(&["1"]).await;
    assert_eq!(bridge.stop().await, 0);
    harness.homeserver.set_initial(sync(&[("!invited:x", room(&[own_join("1")]))]));
    let bridge = harness.bridge(&[labels, ("STORE_ACCOUNT", "new")]);
    bridge.ready().await;
    harness.homeserver.push(sync(&[("!invited:x", room(&[message("$2", "@alice:x")]))]));
    harness.webhook.until_received(&["2"]).await;
    assert_eq!(label_of(&harness.webhook, "1"), "messenger");
    assert_eq!(label_of(&harness.webhook, "2"), "messenger");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_has_its_own_webhook_whose_failure_delays_no_other() {
    let harness = Harness::new().await;
    let own = Webhook::start().await;
    let labels = labels_file(&format!(
        "[[label]]\nname = \"vip\"\nrooms = [\"!a:x\", \"!b:x\", \"!c:x\", \"!d:x\", \"!e:x\"]\n\
         webhook_url = \"{}\"\nwebhook_token = \"own\"\n",
        own.url
    ));
    let settings = [("BRIDGE_LABELS_FILE", labels.path()), ("WEBHOOK_TOKEN", "default")];
    let bridge = harness.ready_bridge(&settings).await;
    own.requests.rule(|_| Some(Reply::json(503, json!({}))));
    let rooms = ["!a:x", "!b:x", "!c:x", "!d:x"];
    let failing = rooms.map(|id| (id, room(&[message(&format!("${id}"), "@alice:x")])));
    harness.homeserver.push(sync(&failing));
    bridge.until_logged("failed (503 Service Unavailable); trying again").await;
    // The breaker of the label's webhook is open, that of the default webhook is not.
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$default", "@alice:x")]))]));
    harness.webhook.until_received(&["default"]).await;
    own.requests.clear_rules();
    own.until_received(&rooms).await;
    let authorization = |webhook: &Webhook| webhook.requests.all()[0].header("authorization");
    assert_eq!(authorization(&own).as_deref(), Some("Bearer own"));
    assert_eq!(authorization(&harness.webhook).as_deref(), Some("Bearer default"));
    assert_eq!(harness.webhook.bodies(), ["default"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_are_signed_and_limited_in_time() {
    let harness = Harness::new().await;
    let settings = [("WEBHOOK_SECRET", "a secret"), ("WEBHOOK_TIMEOUT", "1")];
    let bridge = harness.ready_bridge(&settings).await;
    let latch = tokio_util::sync::CancellationToken::new();
    let hang = latch.clone();
    harness.webhook.requests.rule(move |_| Some(Reply::text(200, "").after(&hang)));
    harness.homeserver.push(sync(&[("!p:x", room(&[plain("$1", "1")]))]));
    bridge.until_logged("timed out").await;
    harness.webhook.requests.clear_rules();
    harness.webhook.requests.until_count("the retry", 2, |delivery| delivery.body == "1").await;
    latch.cancel();
    for delivery in harness.webhook.requests.all() {
        let timestamp = delivery.header("x-webhook-bridge-timestamp").unwrap();
        let signed = [timestamp.as_bytes(), b".", &delivery.raw].concat();
        let expected = format!("sha256={}", openssl_hmac("a secret", &signed));
        assert_eq!(delivery.header("x-webhook-bridge-signature-256"), Some(expected));
    }
}

/// An HMAC of an independent implementation.
fn openssl_hmac(secret: &str, signed: &[u8]) -> String {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };
    let mut openssl = Command::new("openssl")
        .args(["dgst", "-sha256", "-r", "-hmac", secret])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    openssl.stdin.take().unwrap().write_all(signed).unwrap();
    let output = openssl.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_and_sent_again_beside_a_running_bridge() {
    let harness = Harness::new().await;
    let bridge = harness.ready_bridge(&[]).await;
    let refused = |body: &str| matches!(body, "bad" | "worse");
    harness
        .webhook
        .requests
        .rule(move |delivery| refused(&delivery.body).then(|| Reply::json(422, json!({}))));
    let events = [plain("$bad", "bad"), plain("$worse", "worse"), plain("$good", "good")];
    harness.homeserver.push(sync(&[("!p:x", room(&events))]));
    harness.webhook.until_received(&["good"]).await;
    let url = harness.database.url();
    let run = async |arguments: &[&str]| {
        Bridge::run(&[("DATABASE_URL", &url), ("MATRIX_USER", "@bot:example.org")], arguments).await
    };
    let (code, listed) = run(&["dead-letters", "list"]).await;
    assert_eq!((code, listed.lines().count()), (0, 2), "{listed}");
    assert!(listed.contains("$bad\t!p:x\t@alice:x\tm.room.message\t"), "{listed}");
    assert!(listed.contains("422"), "{listed}");
    let (_, listed) = run(&["dead-letters", "list", "--json"]).await;
    let first: Value = serde_json::from_str(listed.lines().next().unwrap()).unwrap();
    assert_eq!((&first["event_id"], &first["rejected_by_webhook"]), (&json!("$bad"), &json!(true)));

    harness.webhook.requests.clear_rules();
    let before = harness.webhook.requests.count(|delivery| delivery.body == "bad");
    assert_eq!(run(&["dead-letters", "resend", "$bad"]).await, (0, "1 to be sent again\n".into()));
    // The next sync wakes the delivery.
    harness.homeserver.push(sync(&[("!p:x", room(&[plain("$wake", "wake")]))]));
    let resent = "the dead letter to be sent again";
    let is_bad = |delivery: &crate::support::Delivery| delivery.body == "bad";
    harness.webhook.requests.until_count(resent, before + 1, is_bad).await;
    assert_eq!(run(&["dead-letters", "resend", "$unknown"]).await.0, 1);
    assert_eq!(run(&["dead-letters", "resend", "--all"]).await, (0, "1 to be sent again\n".into()));
    assert_eq!(run(&["dead-letters", "resend"]).await.0, 2);
    bridge
        .until("no dead letter", async |bridge| {
            bridge.metric("messages_dead_lettered").await == Some(0.0)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_makes_the_document_and_may_leave_messages_out() {
    let harness = Harness::new().await;
    let template = TempFile::new(
        "template.json",
        r#"{% if body != "private" %}{"text": {{ body }}, "of": {{ content.missing.field }}{% if
            body == "broken" %},{% endif %}}{% endif %}"#,
    );
    let settings = [("WEBHOOK_TEMPLATE_FILE", template.path())];
    let bridge = harness.ready_bridge(&settings).await;
    let bodies = ["private", "say \"}\"", "broken", "last"];
    let ids = ["$1", "$2", "$3", "$4"];
    let events: Vec<_> = ids.iter().zip(bodies).map(|(id, body)| plain(id, body)).collect();
    harness.homeserver.push(sync(&[("!p:x", room(&events))]));
    harness.webhook.requests.until_count("two documents", 2, |_| true).await;
    let documents: Vec<_> =
        harness.webhook.requests.all().into_iter().map(|delivery| delivery.message).collect();
    let expected = ["say \"}\"", "last"].map(|text| json!({"text": text, "of": null}));
    assert_eq!(documents, expected);
    bridge
        .until("the broken one to be a dead letter", async |bridge| {
            bridge.metric("messages_dead_lettered").await == Some(1.0)
        })
        .await;
    assert!(bridge.log().contains("not JSON"), "{}", bridge.log());
    let malformed = TempFile::new("template.json", "{% if %}");
    let mut bridge = harness.bridge(&[("WEBHOOK_TEMPLATE_FILE", malformed.path())]);
    assert_eq!(bridge.ended().await, 2);
    assert!(bridge.log().contains("WEBHOOK_TEMPLATE_FILE"), "{}", bridge.log());
}
