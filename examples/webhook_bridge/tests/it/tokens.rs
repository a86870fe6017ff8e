//! Tokens that expire: refreshed before that, after it (soft logout), or replaced by a login.

use serde_json::{Value, json};

use crate::support::{Bridge, Call, Harness, Reply, matrix_error, message, room, sync};

/// Logins answer with the access token `token` and the refresh token `refresh1`.
fn log_in_with_refresh_token(harness: &Harness, expires_in: Value) {
    harness.homeserver.calls.rule(move |call| {
        let device = call.body["device_id"].clone();
        call.is("POST", "login").then(|| {
            Reply::json(
                200,
                json!({"user_id": "@bot:example.org", "device_id": device,
                "access_token": "token", "refresh_token": "refresh1", "expires_in_ms": expires_in}),
            )
        })
    });
}

fn refresh_to_second_token(harness: &Harness) {
    harness.homeserver.calls.rule(|call| {
        let valid = call.is("POST", "refresh") && call.body["refresh_token"] == "refresh1";
        let tokens = json!({"access_token": "token2", "refresh_token": "refresh2",
            "expires_in_ms": 3_600_000});
        valid.then(|| Reply::json(200, tokens))
    });
}

/// The access token `token` has expired.
fn expire(harness: &Harness) {
    harness.homeserver.calls.rule(|call| {
        let body = json!({"errcode": "M_UNKNOWN_TOKEN", "error": "no", "soft_logout": true});
        (call.token.as_deref() == Some("token")).then(|| Reply::json(401, body))
    });
}

async fn delivers(harness: &Harness, id: &str) {
    harness.homeserver.push(sync(&[("!p:x", room(&[message(id)]))]));
    harness.webhook.until_received(&[&id[1..]]).await;
}

fn logins(harness: &Harness) -> usize {
    harness.homeserver.calls.count(|call| call.is("POST", "login"))
}

async fn until_refreshed(bridge: &Bridge) {
    bridge.until_logged("the access token was refreshed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_is_refreshed_without_a_password() {
    let harness = Harness::new().await;
    log_in_with_refresh_token(&harness, Value::Null);
    let mut bridge = harness.ready_bridge(&[]).await;
    bridge.kill().await;
    refresh_to_second_token(&harness);
    expire(&harness);
    let without_password = [("MATRIX_PASSWORD", "")];
    let mut bridge = harness.bridge(&without_password);
    until_refreshed(&bridge).await;
    delivers(&harness, "$1").await;
    // The new tokens are stored.
    bridge.kill().await;
    let bridge = harness.bridge(&without_password);
    bridge.ready().await;
    delivers(&harness, "$2").await;
    assert!(!bridge.log().contains("refresh"), "{}", bridge.log());
    assert_eq!(logins(&harness), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_exchanged_before_they_expire_without_a_new_run() {
    let harness = Harness::new().await;
    refresh_to_second_token(&harness);
    log_in_with_refresh_token(&harness, json!(6000));
    let bridge = harness.ready_bridge(&[]).await;
    until_refreshed(&bridge).await;
    expire(&harness);
    delivers(&harness, "$1").await;
    delivers(&harness, "$2").await;
    let log = bridge.log();
    assert_eq!(log.matches("forwarding messages").count(), 1, "{log}");
    assert_eq!(log.matches("refreshed").count(), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_refresh_token_is_replaced_by_a_login_to_the_same_device() {
    let harness = Harness::new().await;
    log_in_with_refresh_token(&harness, Value::Null);
    let mut bridge = harness.ready_bridge(&[]).await;
    bridge.kill().await;
    expire(&harness);
    harness
        .homeserver
        .calls
        .rule(|call| call.is("POST", "refresh").then(|| matrix_error(401, "M_UNKNOWN_TOKEN")));
    harness.homeserver.calls.rule(|call| {
        let device = call.body["device_id"].clone();
        call.is("POST", "login").then(|| {
            Reply::json(
                200,
                json!({"user_id": "@bot:example.org", "device_id": device,
                "access_token": "token3"}),
            )
        })
    });
    let bridge = harness.bridge(&[]);
    bridge.until_logged("the homeserver refuses the refresh token").await;
    delivers(&harness, "$1").await;
    let calls = harness.homeserver.calls.all();
    let devices: Vec<_> = calls.iter().filter(|call| call.is("POST", "login")).collect();
    assert_eq!(devices.len(), 2);
    assert_eq!(devices[0].body["device_id"], devices[1].body["device_id"]);
}

/// A restart with the same settings uses the newer token.
#[tokio::test(flavor = "multi_thread")]
async fn a_given_token_is_refreshed_with_the_given_refresh_token() {
    let harness = Harness::new().await;
    harness.homeserver.stored.lock().unwrap().device_id = "BOT".to_owned();
    let given = [
        ("MATRIX_PASSWORD", ""),
        ("MATRIX_ACCESS_TOKEN", "token"),
        ("MATRIX_REFRESH_TOKEN", "refresh1"),
    ];
    let mut bridge = harness.ready_bridge(&given).await;
    bridge.kill().await;
    refresh_to_second_token(&harness);
    expire(&harness);
    let mut bridge = harness.bridge(&given);
    until_refreshed(&bridge).await;
    bridge.ready().await;
    bridge.kill().await;
    let bridge = harness.bridge(&given);
    bridge.ready().await;
    delivers(&harness, "$1").await;
    let is_whoami = |call: &Call| call.is("GET", "account/whoami");
    assert_eq!(harness.homeserver.calls.count(is_whoami), 1);
}
