//! Metrics and logs.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::support::{Harness, MatrixUser, Reply, message, room, sync};

#[tokio::test(flavor = "multi_thread")]
async fn metrics_time_decryptions_and_deliveries_and_count_retries() {
    let harness = Harness::new().await;
    let bridge = harness.ready_bridge(&[]).await;
    let alice = MatrixUser::new(&harness.homeserver, "@alice:x").await;
    let mut first = json!({"to_device": {"events": alice.room_key("!r:x").await}});
    let secret = alice.encrypt("!r:x", "$secret", "secret").await;
    first["rooms"] = sync(&[("!r:x", room(&[secret]))])["rooms"].clone();
    let fails_once = AtomicBool::new(true);
    harness.webhook.requests.rule(move |_| {
        let fails = fails_once.swap(false, Ordering::SeqCst);
        fails.then(|| Reply::json(503, json!({})))
    });
    harness.homeserver.push(first);
    bridge
        .until("the delivery to be counted", async |bridge| {
            bridge.metric("messages_delivered_total").await == Some(1.0)
        })
        .await;
    assert_eq!(bridge.metric("messages_retried_total").await, Some(1.0));
    assert_eq!(bridge.metric("messages_decrypted_total").await, Some(1.0));
    assert_eq!(bridge.metric("delivery_seconds_count").await, Some(2.0));
    assert_eq!(bridge.metric("delivery_seconds_bucket{le=\"+Inf\"}").await, Some(2.0));
    // Decrypted again for the second request.
    assert_eq!(bridge.metric("decryption_seconds_count").await, Some(2.0));
    let (_, text) = bridge.get("/metrics").await.unwrap();
    assert!(text.contains("\nmatrix_sdk_postgres_commit_seconds_count "), "{text}");
    // Each metric that the README names is exported.
    let readme = include_str!("../../README.md");
    let table =
        readme.split("## Health").nth(1).unwrap().split("The key store's own").next().unwrap();
    let names = table.lines().filter_map(|line| line.strip_prefix("| `")?.split(" |").next());
    let names: Vec<_> =
        names.flat_map(|names| names.split('`')).filter(|name| name.len() > 2).collect();
    assert!(names.len() > 15, "{names:?}");
    for name in names {
        let name = name.split('{').next().unwrap();
        assert!(text.contains(&format!("# TYPE webhook_bridge_{name} ")), "{name}: {text}");
    }
    // Each label that it names is there before its first event: `increase` does not see a first value.
    let (_, reasons) = table.split_once("| `undecryptable_total{reason}` |").unwrap();
    let reasons: Vec<_> = reasons.lines().next().unwrap().split('`').skip(1).step_by(2).collect();
    assert!(reasons.len() > 5, "{reasons:?}");
    let of_reason = |reason: &&str| format!("undecryptable_total{{reason=\"{reason}\"}}");
    let more = ["no_olm", "unverified", "history_not_shared"].map(|code| format!("m.{code}"));
    let codes = more.iter().map(String::as_str).chain(["other"]);
    let of_code = |code| format!("keys_withheld_total{{code=\"{code}\"}}");
    let of_kind = |kind| format!("removals_total{{kind=\"{kind}\"}}");
    let named = reasons.iter().map(of_reason).chain(codes.map(of_code));
    for name in named.chain(["kick", "ban"].map(of_kind)) {
        assert_eq!(bridge.metric(&name).await, Some(0.0), "{name}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_may_require_a_token_and_logs_may_be_json() {
    let harness = Harness::new().await;
    let settings = [("BRIDGE_METRICS_TOKEN", "s3cret"), ("BRIDGE_LOG_FORMAT", "json")];
    let mut bridge = harness.bridge(&settings);
    bridge.ready().await;
    assert_eq!(bridge.get("/metrics").await.unwrap().0, 401);
    let (status, text) = bridge.get_with_token("/metrics", "s3cret").await.unwrap();
    assert!(status == 200 && text.contains("webhook_bridge_owner 1"), "{text}");
    assert_eq!(bridge.stop().await, 0);
    let log = bridge.log();
    assert!(log.lines().count() > 2 && !log.contains("s3cret"), "{log}");
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert!(line["message"].is_string() && line["level"].is_string(), "{line}");
    }
    let mut bridge = harness.bridge(&[("BRIDGE_LOG_FORMAT", "xml")]);
    assert_eq!(bridge.ended().await, 2);
    assert!(bridge.log().contains("BRIDGE_LOG_FORMAT"), "{}", bridge.log());
}

/// A slow query outlasts its scrape: the next scrapes must not start further ones.
#[tokio::test(flavor = "multi_thread")]
async fn scrapes_count_the_messages_one_at_a_time() {
    let harness = Harness::new().await;
    let bridge = harness.ready_bridge(&[]).await;
    let lock = harness.connection().await;
    lock.batch_execute("BEGIN; LOCK TABLE webhook_bridge.gaps IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    let scrapes = (0..4).map(|_| bridge.get("/metrics"));
    for scrape in futures_util::future::join_all(scrapes).await {
        assert_eq!(scrape.unwrap().0, 200);
    }
    let running = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND state = 'active' AND pid <> pg_backend_pid()
          AND query LIKE '%count(*)%' AND query LIKE '%webhook_bridge.gaps%'";
    assert_eq!(harness.number(running).await, 1);
    lock.batch_execute("ROLLBACK").await.unwrap();
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$1")]))]));
    harness.webhook.until_received(&["1"]).await;
    bridge
        .until("counts", async |bridge| bridge.metric("messages_pending").await == Some(0.0))
        .await;
}
