//! Settings that are wrong are named, and a device that nobody can write to shows.

use serde_json::json;

use crate::support::{Bridge, Call, Reply, World, no};

fn uploads(call: &Call) -> bool {
    call.is("POST", "keys/upload")
}

/// As a homeserver answers below its base URL, for instance below `…/_matrix`.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_path_in_the_base_url_is_named_and_waited_for() {
    let answers: [fn() -> Reply; 4] = [
        || no(404, "M_UNRECOGNIZED"),
        || no(403, "M_FORBIDDEN"),
        || no(401, "M_UNKNOWN_TOKEN"),
        || Reply::json(200, json!({"hello": "world"})),
    ];
    for answer in answers {
        let world = World::new().await;
        world.homeserver.calls.rule(move |_| Some(answer()));
        let mut bridge = world.bridge(&[]);
        bridge.says("check MATRIX_HOMESERVER").await;
        bridge.says("trying again").await;
        assert!(bridge.is_running());
        world.homeserver.calls.no_rules();
        bridge.ready().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn switches_are_read_alike_and_in_any_case() {
    let world = World::new().await;
    let url = world.database.url();
    let base = [
        ("MATRIX_HOMESERVER", world.homeserver.url.as_str()),
        ("MATRIX_USER", "@bot:example.org"),
        ("MATRIX_PASSWORD", "password"),
        ("WEBHOOK_URL", &world.webhook.url),
    ];
    for (settings, named) in [
        (vec![("DATABASE_URL", url.as_str()), ("BRIDGE_PLAIN", "maybe")], "BRIDGE_PLAIN is"),
        (vec![("STORE_PASSPHRASE", "p"), ("BRIDGE_TRY", "nein")], "BRIDGE_TRY is"),
        (vec![("STORE_PASSPHRASE", "p"), ("BRIDGE_TRY", "False")], "DATABASE_URL"),
        (vec![("DATABASE_URL", &url), ("--plain=OFF", "")], "STORE_PASSPHRASE"),
    ] {
        let mut bridge = Bridge::start(&[&base[..], &settings].concat());
        assert_eq!(bridge.ended().await, 2, "{}", bridge.log());
        assert!(bridge.log().contains(named), "{}", bridge.log());
    }
    let mut bridge = world.bridge(&[("BRIDGE_PLAIN", "No"), ("BRIDGE_RUN_MIGRATIONS", "TRUE")]);
    bridge.ready().await;
    assert_eq!(bridge.stop().await, 0);
    let bridge = world.bridge(&[("BRIDGE_TRY", "0"), ("BRIDGE_RUN_MIGRATIONS", "False")]);
    bridge.ready().await;
}

/// Nobody can encrypt for a device whose keys are nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn device_keys_that_are_refused_show() {
    let world = World::new().await;
    world.homeserver.calls.rule(|call| uploads(call).then(|| no(403, "M_FORBIDDEN")));
    let mut bridge = world.bridge(&[]);
    bridge.says("the key upload failed").await;
    assert_eq!(bridge.metric("device_keys_uploaded").await, Some(0.0));
    world.homeserver.calls.no_rules();
    let uploaded = async |bridge: &Bridge| bridge.metric("device_keys_uploaded").await == Some(1.0);
    bridge.until("the keys to be uploaded", uploaded).await;
    bridge.stop().await;
    let before = world.homeserver.calls.count(uploads);
    let bridge = world.bridge(&[]);
    bridge.until("the keys to be known as uploaded", uploaded).await;
    assert_eq!(world.homeserver.calls.count(uploads), before);
}
