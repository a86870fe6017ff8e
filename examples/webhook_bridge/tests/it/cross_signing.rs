//! The bot's identity and the signature of its device, with homeservers that request authentication.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::json;

use crate::support::{BOT, Bridge, Call, Harness, Reply, matrix_error, message, room, sync};

fn is_upload(call: &Call) -> bool {
    call.is("POST", "keys/device_signing/upload")
}

/// Request authentication with this stage until `accepts`.
fn request_authentication(harness: &Harness, stage: &str, accepts: fn(&Call, usize) -> bool) {
    let (stage, uploads) = (stage.to_owned(), AtomicUsize::new(0));
    harness.homeserver.calls.rule(move |call| {
        if !is_upload(call) || accepts(call, uploads.fetch_add(1, Ordering::Relaxed)) {
            return None;
        }
        let flows = [json!({"stages": [stage]})];
        Some(Reply::json(401, json!({"flows": flows, "params": {}, "session": "a session"})))
    });
}

pub async fn until_signed(bridge: &Bridge) {
    bridge
        .until("the device to be signed", async |bridge| {
            bridge.metric("device_cross_signed").await == Some(1.0)
        })
        .await;
}

fn uploads(harness: &Harness) -> Vec<Call> {
    harness.homeserver.calls.all().into_iter().filter(is_upload).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_device_is_signed_once_and_the_identity_is_kept() {
    let harness = Harness::new().await;
    let mut bridge = harness.bridge(&[]);
    until_signed(&bridge).await;
    bridge.kill().await;
    until_signed(&harness.bridge(&[])).await;
    let uploads = uploads(&harness);
    assert_eq!(uploads.len(), 1, "{uploads:?}");
    assert!(uploads[0].body["auth"].is_null(), "{uploads:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_password_is_given_if_the_homeserver_asks_for_it() {
    let harness = Harness::new().await;
    request_authentication(&harness, "m.login.password", |call, _| {
        let auth = &call.body["auth"];
        auth["password"] == "password" && auth["session"] == "a session"
    });
    let token = [("MATRIX_ACCESS_TOKEN", "token")];
    harness.homeserver.stored.lock().unwrap().device_id = "BOT".to_owned();
    until_signed(&harness.bridge(&token)).await;
    assert_eq!(uploads(&harness).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_in_a_browser_is_waited_for() {
    let harness = Harness::new().await;
    request_authentication(&harness, "m.login.sso", |call, before| {
        call.body["auth"]["session"] == "a session" && before > 1
    });
    let bridge = harness.bridge(&[]);
    bridge.until_logged("/auth/m.login.sso/fallback/web?session=a+session").await;
    until_signed(&bridge).await;
}

fn overloaded() -> Reply {
    Reply::text(503, "<html>overloaded</html>")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_whose_upload_failed_is_uploaded_again() {
    let harness = Harness::new().await;
    let failed = AtomicBool::new(false);
    harness.homeserver.calls.rule(move |call| {
        (is_upload(call) && !failed.swap(true, Ordering::Relaxed)).then(overloaded)
    });
    let bridge = harness.bridge(&[]);
    until_signed(&bridge).await;
    assert_eq!(uploads(&harness).len(), 2, "{}", bridge.log());
}

/// It is the one that the store has had since the first attempt.
#[tokio::test(flavor = "multi_thread")]
async fn an_identity_whose_upload_failed_is_uploaded_after_a_restart() {
    let harness = Harness::new().await;
    harness.homeserver.calls.rule(|call| is_upload(call).then(overloaded));
    let mut bridge = harness.bridge(&[]);
    bridge.until_logged("the bot's device cannot be signed: ").await;
    bridge.kill().await;
    harness.homeserver.calls.clear_rules();
    let failed = uploads(&harness);
    let bridge = harness.bridge(&[]);
    until_signed(&bridge).await;
    let published = harness.homeserver.stored.lock().unwrap().cross_signing.clone();
    assert_eq!(published["master_key"], failed[0].body["master_key"], "{}", bridge.log());
    assert_eq!(uploads(&harness).len(), failed.len() + 1);
}

/// The identity does not reach the homeserver; messages are delivered all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_does_not_stop_the_bridge() {
    let harness = Harness::new().await;
    harness.homeserver.calls.rule(|call| is_upload(call).then(|| matrix_error(403, "M_FORBIDDEN")));
    let bridge = harness.ready_bridge(&[]).await;
    bridge.until_logged("the bot's device cannot be signed: ").await;
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$1")]))]));
    harness.webhook.until_received(&["1"]).await;
    assert_eq!(bridge.metric("device_cross_signed").await, Some(0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_identity_is_replaced_only_on_request() {
    let harness = Harness::new().await;
    until_signed(&harness.bridge(&[])).await;
    let of_another = [("STORE_ACCOUNT", "another")];
    let bridge = harness.bridge(&of_another);
    bridge.until_logged("BRIDGE_CROSS_SIGNING=reset").await;
    assert_eq!(uploads(&harness).len(), 1);
    drop(bridge);
    let reset = [of_another[0], ("BRIDGE_CROSS_SIGNING", "reset")];
    for _ in 0..2 {
        until_signed(&harness.bridge(&reset)).await;
        assert_eq!(uploads(&harness).len(), 2);
    }
}

/// Another program has uploaded keys under this device's id.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_keys_are_gone_is_named_at_the_start() {
    let harness = Harness::new().await;
    let mut bridge = harness.bridge(&[]);
    until_signed(&bridge).await;
    bridge.kill().await;
    {
        let mut stored = harness.homeserver.stored.lock().unwrap();
        let id = stored.device_keys["device_id"].as_str().unwrap().to_owned();
        stored.device_keys["keys"][format!("curve25519:{id}")] = json!("A".repeat(43));
    }
    let mut bridge = harness.bridge(&[]);
    assert_eq!(bridge.ended().await, 4);
    let log = bridge.log();
    assert!(log.contains("the homeserver has other keys of device"), "{log}");
    assert!(log.contains("STORE_ACCOUNT"), "{log}");
}

/// Another client replaces the identity while the bridge runs, and the former one comes back.
#[tokio::test(flavor = "multi_thread")]
async fn the_metric_follows_the_identity() {
    let harness = Harness::new().await;
    let stored = || harness.homeserver.stored.lock().unwrap();
    let mut bridge = harness.bridge(&[]);
    until_signed(&bridge).await;
    assert_eq!(bridge.stop().await, 0);
    let (own, device, id) = {
        let stored = stored();
        (stored.cross_signing.clone(), stored.device_keys.clone(), stored.device_id.clone())
    };
    let another = [("STORE_ACCOUNT", "another"), ("BRIDGE_CROSS_SIGNING", "reset")];
    until_signed(&harness.bridge(&another)).await;
    let foreign = {
        let mut stored = stored();
        (stored.device_keys, stored.device_id) = (device, id);
        std::mem::replace(&mut stored.cross_signing, own.clone())
    };
    let bridge = harness.bridge(&[]);
    until_signed(&bridge).await;
    for (identity, signed) in [(foreign, 0.0), (own, 1.0)] {
        stored().cross_signing = identity;
        harness.homeserver.push(json!({"device_lists": {"changed": [BOT]}}));
        bridge
            .until("the metric to change", async |bridge| {
                bridge.metric("device_cross_signed").await == Some(signed)
            })
            .await;
        // The metric is set first.
        bridge.until_logged("its private keys are not in").await;
    }
    assert_eq!(bridge.log().matches("its private keys are not in").count(), 1);
    assert_eq!(uploads(&harness).len(), 2);
}
