//! The key backup: a recovery key that is malformed, and a backup with another key.

use serde_json::json;

use crate::support::{Harness, Reply, message, room, sync};

const KEY: &str = "EsTcLW2KPGiFwKEA3As5g5c4BXwkqeeJZJV8Q9fugUMNUE4d";

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_recovery_key_is_refused_and_not_repeated() {
    let harness = Harness::new().await;
    let mut bridge = harness.bridge(&[("BRIDGE_RECOVERY_KEY", "EsTc not a key")]);
    assert_eq!(bridge.ended().await, 2);
    let log = bridge.log();
    assert!(log.contains("BRIDGE_RECOVERY_KEY is not a recovery key"), "{log}");
    assert!(!log.contains("EsTc"), "{log}");
}

/// Nothing is uploaded, and messages are delivered all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_with_another_key_is_left_alone() {
    let harness = Harness::new().await;
    let calls = &harness.homeserver.calls;
    calls.rule(|call| {
        let auth_data = json!({"public_key": "XjhWTCjW7l59pbfx9tlCBQolfnIQWARoKOzjTOPSlWM"});
        let info = json!({"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "count": 0,
            "auth_data": auth_data, "etag": "0", "version": "1"});
        call.is("GET", "room_keys/version").then(|| Reply::json(200, info))
    });
    let bridge = harness.ready_bridge(&[("BRIDGE_RECOVERY_KEY", KEY)]).await;
    bridge.until_logged("has a key backup with another key").await;
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$1")]))]));
    harness.webhook.until_received(&["1"]).await;
    assert_eq!(bridge.metric("key_backup_enabled").await, Some(0.0));
    let uploads =
        |call: &crate::support::Call| call.path.starts_with("room_keys") && call.method != "GET";
    assert_eq!(calls.count(uploads), 0);
}
