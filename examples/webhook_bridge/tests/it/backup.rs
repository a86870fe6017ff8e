//! The key backup: batches, a backup that another client replaces, missing keys.

use std::sync::atomic::{AtomicBool, Ordering};

use matrix_sdk_crypto::store::types::BackupDecryptionKey;
use serde_json::{Value, json};

use crate::support::{Bridge, Call, Harness, MatrixUser, Reply, message, room, sync};

const KEY: &str = "EsTcLW2KPGiFwKEA3As5g5c4BXwkqeeJZJV8Q9fugUMNUE4d";

fn is_upload(call: &Call) -> bool {
    call.is("PUT", "room_keys/keys")
}

fn is_fetch(call: &Call) -> bool {
    call.is("GET", "room_keys/keys")
}

/// The backup's information for another key.
fn of_another_key() -> Value {
    let auth_data = json!({"public_key": "XjhWTCjW7l59pbfx9tlCBQolfnIQWARoKOzjTOPSlWM"});
    json!({"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": auth_data})
}

fn info(key: &BackupDecryptionKey) -> Value {
    serde_json::to_value(key.to_backup_info()).unwrap()
}

async fn until_backed_up(bridge: &Bridge, harness: &Harness, count: usize) {
    bridge
        .until("the keys to be in the backup", async |_| {
            harness.homeserver.stored.lock().unwrap().backup.keys.len() == count
        })
        .await;
}

/// Send the keys of these rooms to the bot.
async fn send_keys(harness: &Harness, alice: &MatrixUser, rooms: &[String]) {
    let mut events = Vec::new();
    for room in rooms {
        events.extend(alice.room_key(room).await);
    }
    harness.homeserver.push(json!({"to_device": {"events": events}}));
}

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
    harness.homeserver.stored.lock().unwrap().backup.replace(of_another_key());
    let bridge = harness.ready_bridge(&[("BRIDGE_RECOVERY_KEY", KEY)]).await;
    bridge.until_logged("has a key backup with another key").await;
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$1")]))]));
    harness.webhook.until_received(&["1"]).await;
    assert_eq!(bridge.metric("key_backup_enabled").await, Some(0.0));
    let uploads = |call: &Call| call.path.starts_with("room_keys") && call.method != "GET";
    assert_eq!(harness.homeserver.calls.count(uploads), 0);
}

/// One upload in between fails; a restart uploads nothing again.
#[tokio::test(flavor = "multi_thread")]
async fn more_keys_than_a_batch_are_all_backed_up_once() {
    let harness = Harness::new().await;
    let (failed, uploads) = (AtomicBool::new(false), AtomicBool::new(false));
    harness.homeserver.calls.rule(move |call| {
        let second = is_upload(call) && uploads.swap(true, Ordering::Relaxed);
        let fails = second && !failed.swap(true, Ordering::Relaxed);
        fails.then(|| Reply::text(502, "<html>bad gateway</html>"))
    });
    let settings = [("BRIDGE_RECOVERY_KEY", KEY)];
    let mut bridge = harness.ready_bridge(&settings).await;
    let alice = MatrixUser::new(&harness.homeserver, "@alice:x").await;
    let rooms: Vec<_> = (0..250).map(|number| format!("!room{number}:x")).collect();
    send_keys(&harness, &alice, &rooms).await;
    until_backed_up(&bridge, &harness, 250).await;
    {
        let stored = harness.homeserver.stored.lock().unwrap();
        assert_eq!(stored.backup.uploads, [100, 100, 50]);
        let key = BackupDecryptionKey::from_base58(KEY).unwrap();
        for ((room, _), backed_up) in &stored.backup.keys {
            let data = serde_json::from_value(backed_up["session_data"].clone()).unwrap();
            key.decrypt_session_data(data).unwrap();
            assert!(rooms.contains(room), "{room}");
        }
    }
    assert_eq!(bridge.stop().await, 0);
    let bridge = harness.bridge(&settings);
    bridge.ready().await;
    send_keys(&harness, &alice, &["!one-more:x".to_owned()]).await;
    until_backed_up(&bridge, &harness, 251).await;
    let stored = harness.homeserver.stored.lock().unwrap();
    assert_eq!(stored.backup.uploads, [100, 100, 50, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_another_client_replaces_is_used_only_with_its_key() {
    let harness = Harness::new().await;
    let mut bridge = harness.ready_bridge(&[("BRIDGE_RECOVERY_KEY", KEY)]).await;
    let alice = MatrixUser::new(&harness.homeserver, "@alice:x").await;
    send_keys(&harness, &alice, &["!1:x".to_owned()]).await;
    until_backed_up(&bridge, &harness, 1).await;

    // With the same key: all keys are uploaded again.
    let same = info(&BackupDecryptionKey::from_base58(KEY).unwrap());
    harness.homeserver.stored.lock().unwrap().backup.replace(same);
    send_keys(&harness, &alice, &["!2:x".to_owned()]).await;
    until_backed_up(&bridge, &harness, 2).await;

    // With another key: none is, and messages are delivered all the same.
    let other = BackupDecryptionKey::new();
    harness.homeserver.stored.lock().unwrap().backup.replace(info(&other));
    send_keys(&harness, &alice, &["!3:x".to_owned()]).await;
    bridge.until_logged("has a key backup with another key").await;
    send_keys(&harness, &alice, &["!r:x".to_owned()]).await;
    let event = alice.encrypt("!r:x", "$still", "still").await;
    harness.homeserver.push(sync(&[("!r:x", room(&[event]))]));
    harness.webhook.until_received(&["still"]).await;
    assert_eq!(bridge.metric("key_backup_enabled").await, Some(0.0));
    assert_eq!(harness.homeserver.stored.lock().unwrap().backup.keys.len(), 0);
    assert_eq!(bridge.stop().await, 0);

    // Once its key is given, it has all keys.
    let bridge = harness.bridge(&[("BRIDGE_RECOVERY_KEY", &other.to_base58())]);
    until_backed_up(&bridge, &harness, 4).await;
}

/// What decrypts a message is in the backup only: another device of the bot has put it there.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_key_is_fetched_while_the_backup_is_on() {
    let harness = Harness::new().await;
    let mut first = harness.ready_bridge(&[("BRIDGE_RECOVERY_KEY", KEY)]).await;
    let metabot = MatrixUser::new(&harness.homeserver, "@metabot:x").await;
    send_keys(&harness, &metabot, &["!r:x".to_owned()]).await;
    until_backed_up(&first, &harness, 1).await;
    assert_eq!(first.stop().await, 0);

    let second = ("STORE_ACCOUNT", "second");
    let trusted = ("BRIDGE_TRUSTED_BRIDGES", "@metabot:x=@meta_*:x");
    let on = [second, trusted, ("BRIDGE_RECOVERY_KEY", KEY)];
    let mut bridge = harness.ready_bridge(&on).await;
    let own = metabot.encrypt("!r:x", "$own", "own").await;
    let mut ghost = metabot.encrypt("!r:x", "$ghost", "ghost").await;
    ghost["sender"] = json!("@meta_1:x");
    harness.homeserver.push(sync(&[("!r:x", room(&[own, ghost]))]));
    harness.webhook.until_received(&["own", "ghost"]).await;
    for delivery in harness.webhook.requests.all() {
        assert_eq!(delivery.message["verification"], "insecure_source");
        // A key from the backup only claims whose it is.
        assert!(delivery.message.get("sent_by_device_of").is_none(), "{}", delivery.message);
    }
    assert_eq!(bridge.stop().await, 0);

    // Switched off, while the store has the backup's key: nothing is fetched.
    let fetched = harness.homeserver.calls.count(is_fetch);
    let late = metabot.encrypt("!r:x", "$late", "late").await;
    metabot.rotate("!r:x").await;
    let mut first = harness.bridge(&[("BRIDGE_RECOVERY_KEY", KEY)]);
    send_keys(&harness, &metabot, &["!r:x".to_owned()]).await;
    until_backed_up(&first, &harness, 2).await;
    assert_eq!(first.stop().await, 0);
    let missing = metabot.encrypt("!r:x", "$missing", "missing").await;
    let mut bridge = harness.bridge(&[second]);
    bridge.ready().await;
    harness.homeserver.push(sync(&[("!r:x", room(&[late, missing, message("$behind")]))]));
    harness.webhook.until_received(&["late", "behind"]).await;
    // Longer than it takes to look for a key.
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert_eq!(harness.homeserver.calls.count(is_fetch), fetched);
    assert_eq!(bridge.metric("messages_waiting_for_key").await, Some(1.0));
    assert_eq!(bridge.stop().await, 0);

    let _bridge = harness.bridge(&on);
    harness.webhook.until_received(&["missing"]).await;
}

/// The sender has shared its session with the bot from the second message on; the backup has it from the
/// first.
#[tokio::test(flavor = "multi_thread")]
async fn a_better_version_of_a_stored_key_is_fetched() {
    let harness = Harness::new().await;
    let settings = [("BRIDGE_RECOVERY_KEY", KEY)];
    let mut bridge = harness.ready_bridge(&settings).await;
    let alice = MatrixUser::new(&harness.homeserver, "@alice:x").await;
    send_keys(&harness, &alice, &["!r:x".to_owned()]).await;
    until_backed_up(&bridge, &harness, 1).await;
    assert_eq!(bridge.stop().await, 0);
    let lose = "DELETE FROM matrix_sdk.megolm_inbound_sessions";
    harness.connection().await.batch_execute(lose).await.unwrap();

    let early = alice.encrypt("!r:x", "$early", "early").await;
    let key = alice.to_bot("m.room_key", &alice.rest_of_session("!r:x").await).await;
    let mut answer = sync(&[("!r:x", room(&[early]))]);
    answer["to_device"] = json!({"events": [key]});
    harness.homeserver.push(answer);
    let bridge = harness.bridge(&settings);
    harness.webhook.until_received(&["early"]).await;
    assert_eq!(bridge.metric("undecryptable_total{reason=\"no_key\"}").await, Some(1.0));
}

/// Another client replaces the backup while the session is refused for a while.
#[tokio::test(flavor = "multi_thread")]
async fn the_metric_of_the_backup_is_that_of_the_current_run() {
    let harness = Harness::new().await;
    let bridge = harness.ready_bridge(&[("BRIDGE_RECOVERY_KEY", KEY)]).await;
    bridge
        .until("the backup to be on", async |bridge| {
            bridge.metric("key_backup_enabled").await == Some(1.0)
        })
        .await;
    harness
        .restart_run(&bridge, || {
            harness.homeserver.stored.lock().unwrap().backup.replace(of_another_key());
        })
        .await;
    bridge.until_logged("has a key backup with another key").await;
    assert_eq!(bridge.metric("key_backup_enabled").await, Some(0.0));
}
