//! Wrong settings are reported, and so is a failed upload of the device keys.

use serde_json::json;

use crate::support::{Bridge, Call, Harness, Reply, matrix_error};

fn uploads(call: &Call) -> bool {
    call.is("POST", "keys/upload")
}

/// Responses of a homeserver below its base URL, for example below `…/_matrix`.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_path_in_the_base_url_is_reported_and_retried() {
    let answers: [fn() -> Reply; 4] = [
        || matrix_error(404, "M_UNRECOGNIZED"),
        || matrix_error(403, "M_FORBIDDEN"),
        || matrix_error(401, "M_UNKNOWN_TOKEN"),
        || Reply::json(200, json!({"hello": "harness"})),
    ];
    for answer in answers {
        let harness = Harness::new().await;
        harness.homeserver.calls.rule(move |_| Some(answer()));
        let mut bridge = harness.bridge(&[]);
        bridge.until_logged("check MATRIX_HOMESERVER").await;
        bridge.until_logged("trying again").await;
        assert!(bridge.is_running());
        harness.homeserver.calls.clear_rules();
        bridge.ready().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn switches_accept_all_spellings_in_any_case() {
    let harness = Harness::new().await;
    let url = harness.database.url();
    let base = [
        ("MATRIX_HOMESERVER", harness.homeserver.url.as_str()),
        ("MATRIX_USER", "@bot:example.org"),
        ("MATRIX_PASSWORD", "password"),
        ("WEBHOOK_URL", &harness.webhook.url),
    ];
    for (settings, named) in [
        (vec![("DATABASE_URL", url.as_str()), ("BRIDGE_PLAIN", "maybe")], "BRIDGE_PLAIN is"),
        (
            vec![("STORE_PASSPHRASE", "p"), ("BRIDGE_EMBEDDED_POSTGRES", "nein")],
            "BRIDGE_EMBEDDED_POSTGRES is",
        ),
        (vec![("STORE_PASSPHRASE", "p"), ("BRIDGE_EMBEDDED_POSTGRES", "False")], "DATABASE_URL"),
        (vec![("DATABASE_URL", &url), ("--plain=OFF", "")], "STORE_PASSPHRASE"),
    ] {
        let mut bridge = Bridge::start(&[&base[..], &settings].concat());
        assert_eq!(bridge.ended().await, 2, "{}", bridge.log());
        assert!(bridge.log().contains(named), "{}", bridge.log());
    }
    let mut bridge = harness.bridge(&[("BRIDGE_PLAIN", "No"), ("BRIDGE_RUN_MIGRATIONS", "TRUE")]);
    bridge.ready().await;
    assert_eq!(bridge.stop().await, 0);
    let bridge =
        harness.bridge(&[("BRIDGE_EMBEDDED_POSTGRES", "0"), ("BRIDGE_RUN_MIGRATIONS", "False")]);
    bridge.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_device_key_upload_shows_in_the_metric() {
    let harness = Harness::new().await;
    harness.homeserver.calls.rule(|call| uploads(call).then(|| matrix_error(403, "M_FORBIDDEN")));
    let mut bridge = harness.bridge(&[]);
    bridge.until_logged("the key upload failed").await;
    assert_eq!(bridge.metric("device_keys_uploaded").await, Some(0.0));
    harness.homeserver.calls.clear_rules();
    let uploaded = async |bridge: &Bridge| bridge.metric("device_keys_uploaded").await == Some(1.0);
    bridge.until("the keys to be uploaded", uploaded).await;
    bridge.stop().await;
    let before = harness.homeserver.calls.count(uploads);
    let bridge = harness.bridge(&[]);
    bridge.until("the keys to be known as uploaded", uploaded).await;
    assert_eq!(harness.homeserver.calls.count(uploads), before);
}
