//! When the homeserver has seen the device.

use std::{
    process::Command,
    time::{Duration, SystemTime},
};

use serde_json::json;
use test_support::fixture::{own_device, own_user};

use super::files::{Mode, filled, import};
use crate::{homeserver::Homeserver, support::Place};

fn millis(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_was_seen_after_the_files_last_change_is_not_imported() {
    let (place, (folder, _)) = (Place::new(), filled(Mode::Plain).await);
    let homeserver = Homeserver::start();
    let command = |account: &str, token: &str| -> Command {
        let mut command = import(&place, &folder, Mode::Plain, account);
        command.args(["--homeserver", &homeserver.url]).env("MATRIX_ACCESS_TOKEN", token);
        command
    };
    let seen = |time: SystemTime| {
        let device = json!({ "device_id": own_device(), "last_seen_ts": millis(time) });
        homeserver.set("/devices", json!({ "devices": [device] }));
    };
    let nothing = "SELECT count(*) FROM pg_namespace WHERE nspname = 'matrix_sdk'";

    homeserver.set("whoami", json!({ "user_id": "@somebody:example.org" }));
    let refused = place.run_command(command("bot", "secret-token")).await.expect(4);
    assert!(refused.err.contains("the token is of @somebody:example.org"), "{}", refused.err);
    homeserver.set("whoami", json!({ "user_id": own_user() }));
    place.run_command(command("bot", "a-wrong-token")).await.expect(1);
    seen(SystemTime::now() + Duration::from_secs(120));
    let refused = place.run_command(command("bot", "secret-token")).await.expect(4);
    assert!(refused.err.contains("after the file's last change"), "{}", refused.err);
    assert!(refused.err.contains("--old-bot-is-stopped"), "{}", refused.err);
    assert_eq!(place.number(nothing).await, 0);

    // Asked with the device's own token it is seen by that alone.
    homeserver.set("whoami", json!({ "user_id": own_user(), "device_id": own_device() }));
    let refused = place.run_command(command("bot", "secret-token")).await.expect(4);
    assert!(refused.err.contains("the token of another login"), "{}", refused.err);
    homeserver.set("whoami", json!({ "user_id": own_user(), "device_id": "ANOTHER" }));
    homeserver.set("/devices", json!({ "devices": [{ "device_id": "ANOTHER" }] }));
    let refused = place.run_command(command("bot", "secret-token")).await.expect(4);
    assert!(refused.err.contains("does not know the device"), "{}", refused.err);
    assert_eq!(place.number(nothing).await, 0);
    homeserver.set("/devices", json!({ "devices": [{ "device_id": own_device() }] }));
    let ran = place.run_command(command("unseen", "secret-token")).await.expect(0);
    assert!(ran.out.contains("does not say when it has seen the device"), "{}", ran.out);
    // One that does not serve the list has not said that the device is gone.
    homeserver.set("/devices", json!({}));
    let ran = place.run_command(command("empty", "secret-token")).await.expect(0);
    assert!(ran.out.contains("does not say when it has seen the device"), "{}", ran.out);
    homeserver.set_status("/devices", "404 Not Found");
    let ran = place.run_command(command("missing", "secret-token")).await.expect(0);
    assert!(ran.out.contains("does not say when it has seen the device"), "{}", ran.out);
    let mut asked = super::files::check(&folder, Mode::Plain);
    asked.args(["--homeserver", &homeserver.url]).env("MATRIX_ACCESS_TOKEN", "secret-token");
    let ran = place.run_command(asked).await.expect(0);
    assert!(ran.out.contains("The homeserver was not asked"), "{}", ran.out);
    seen(SystemTime::now() + Duration::from_secs(120));

    let mut anyway = command("bot", "secret-token");
    anyway.arg("--old-bot-is-stopped");
    place.run_command(anyway).await.expect(0);
    seen(SystemTime::now() - Duration::from_secs(3600));
    let mut last = command("another", "secret-token");
    last.arg("--json");
    let json = place.run_command(last).await.expect(0).json();
    assert!(json["next"].as_str().unwrap().contains("must not start again"), "{json:#}");
}
