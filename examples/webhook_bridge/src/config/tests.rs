use clap::Parser;

use super::*;
use crate::errors::exit_code;

fn parse(changes: &[(&str, &str)]) -> Result<Config, BridgeError> {
    let mut settings = std::collections::BTreeMap::from([
        ("--homeserver", "http://localhost:8008"),
        ("--user", "@bot:example.org"),
        ("--password", "tops3cret"),
        ("--store-passphrase", "tops3cret"),
        ("--database-url", "postgres://u:tops3cret@h/d"),
        ("--webhook-url", "http://localhost/hook?key=tops3cret"),
    ]);
    settings.extend(changes.iter().copied());
    let arguments = settings.into_iter().flat_map(|(name, value)| [name, value]);
    Args::try_parse_from(std::iter::once("webhook_bridge").chain(arguments)).unwrap().try_into()
}

#[test]
fn errors_name_the_setting_but_not_the_secret() {
    for (name, value, expected) in [
        ("--homeserver", "matrix.example.org", "MATRIX_HOMESERVER"),
        ("--homeserver", "ftp://example.org", "MATRIX_HOMESERVER"),
        ("--homeserver", "", "MATRIX_HOMESERVER"),
        ("--user", "bot", "MATRIX_USER"),
        ("--webhook-url", "htp:tops3cret", "WEBHOOK_URL"),
        ("--listen", "localhost", "BRIDGE_LISTEN"),
        ("--listen", "0.0.0.0", "BRIDGE_LISTEN"),
        ("--takeover", "steal", "BRIDGE_TAKEOVER"),
        ("--store-passphrase", "\n", "STORE_PASSPHRASE"),
        ("--password-file", "/nowhere/at/all", "MATRIX_PASSWORD"),
        ("--pool-size", "0", "BRIDGE_POOL_SIZE"),
        ("--gap-max-pages", "0", "BRIDGE_GAP_MAX_PAGES"),
        ("--gap-max-empty-pages", "many", "BRIDGE_GAP_MAX_EMPTY_PAGES"),
        ("--retry-timeout", "1m", "BRIDGE_RETRY_TIMEOUT"),
        ("--run-migrations", "maybe", "BRIDGE_RUN_MIGRATIONS"),
        ("--webhook-timeout", "0", "WEBHOOK_TIMEOUT"),
        ("--attachments", "all", "BRIDGE_ATTACHMENTS"),
        ("--reactions", "some", "BRIDGE_REACTIONS"),
        ("--attachments", "download", "BRIDGE_API_TOKEN"),
        ("--api-listen", "127.0.0.1:1", "BRIDGE_API_TOKEN"),
        ("--api-rate-limit", "5", "BRIDGE_API_RATE_LIMIT is set without BRIDGE_API_TOKEN"),
        ("--api-max-messages", "5", "BRIDGE_API_MAX_MESSAGES is set without BRIDGE_API_TOKEN"),
        ("--api-max-age", "a week", "BRIDGE_API_MAX_AGE is set without BRIDGE_API_TOKEN"),
        ("--attachment-max-bytes", "5", "BRIDGE_ATTACHMENT_MAX_BYTES is set without"),
        ("--metrics-token", "tops3cret", "BRIDGE_LISTEN"),
        ("--refresh-token", "tops3cret", "MATRIX_ACCESS_TOKEN"),
        ("--labels-file", "/nowhere/at/all", "BRIDGE_LABELS_FILE"),
        ("--trusted-bridges", "@metabot:x=@*:x", "BRIDGE_TRUSTED_BRIDGES"),
        ("--webhook-template-file", "/nowhere/at/all", "WEBHOOK_TEMPLATE_FILE"),
    ] {
        let error = parse(&[(name, value)]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(expected), "{text}");
        assert!(!text.contains("tops3cret"), "{text}");
        assert!(matches!(error, BridgeError::Fatal { code: exit_code::CONFIGURATION, .. }));
    }
}

#[test]
fn an_empty_value_is_unset_and_debug_shows_no_secret() {
    let config = parse(&[
        ("--webhook-token", ""),
        ("--homeserver", "http://me:tops3cret@localhost"),
        ("--webhook-url", "http://me:tops3cret@localhost"),
    ])
    .unwrap();
    assert!(config.webhook.token.is_none());
    assert!(matches!(config.database.database, Database::Url(_)));
    let shown = format!("{config:?}");
    assert!(!shown.contains("tops3cret") && !shown.contains("dG9wczNjcmV0"), "{shown}");
    assert_eq!(config.store_account, "@bot:example.org");
    assert_eq!(config.takeover, Takeover::Wait);
    let listen = |given| parse(&[("--listen", given)]).unwrap().listen.unwrap().to_string();
    assert_eq!(listen("9090"), "127.0.0.1:9090");
    assert_eq!(listen("0.0.0.0:9090"), "0.0.0.0:9090");
}

#[test]
fn tokens_and_recovery_keys_that_cannot_be_are_refused_without_showing_them() {
    let long = "E".repeat(1_000_000);
    for (name, value) in [
        ("--access-token", "top\ns3cret"),
        ("--api-token", "top\ts3cret"),
        ("--api-token", "topés3cret"),
        ("--recovery-key", long.as_str()),
    ] {
        let error = parse(&[(name, value)]).unwrap_err().to_string();
        assert!(error.contains(&name[2..].to_uppercase().replace('-', "_")), "{error}");
        assert!(!error.contains("s3cret") && error.len() < 500, "{error}");
    }
    parse(&[("--api-token", "two words")]).unwrap();
}

/// The file that a deployment mounts may have none yet.
#[test]
fn a_labels_file_may_have_no_labels() {
    assert!(labels("none", "# none yet\n").unwrap().labelled_webhooks.is_empty());
}

/// A labels file with this text.
fn labels(name: &str, text: &str) -> Result<Config, BridgeError> {
    let file = std::env::temp_dir().join(format!("labels-{}-{name}.toml", std::process::id()));
    std::fs::write(&file, text).unwrap();
    let parsed = parse(&[("--labels-file", file.to_str().unwrap()), ("--webhook-timeout", "7")]);
    std::fs::remove_file(file).unwrap();
    parsed
}

#[test]
fn a_labels_file_names_rooms_and_webhooks() {
    let config = labels(
        "good",
        r#"
        [[label]]
        name = "instagram"
        inviters = ["@metabot:example.org"]
        ghosts = ["@instagram_", "@ig_*:bridge.example.org"]
        webhook_url = "https://me:tops3cret@example.org/hook"
        webhook_secret = "tops3cret"

        [[label]]
        name = "vip"
        rooms = ["!vip:example.org", "!31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM"]
        "#,
    )
    .unwrap();
    let labels = &config.labels;
    assert_eq!(labels.of_ghost("@instagram_7:example.org"), Some("instagram"));
    assert_eq!(labels.of_ghost("@ig_7:bridge.example.org"), Some("instagram"));
    assert_eq!(labels.of_ghost("@instagram_7:bridge.example.org"), None);
    let webhook = &config.labelled_webhooks["instagram"];
    assert_eq!(webhook.target.url.as_str(), "https://example.org/hook");
    assert_eq!(webhook.timeout, Duration::from_secs(7));
    assert_eq!(config.labelled_webhooks.len(), 1);
    let shown = format!("{:?}", config.labelled_webhooks);
    assert!(!shown.contains("tops3cret") && !shown.contains("dG9wczNjcmV0"), "{shown}");
}

#[test]
fn a_malformed_labels_file_is_explained_without_its_secrets() {
    let entry = |more: &str| format!("[[label]]\nname = \"a\"\n{more}");
    for (name, text, expected) in [
        ("no-label", "labels = []".to_owned(), "unknown field"),
        ("dots", "[[label]]\nname = \"..\"\nrooms = [\"!a:x\"]".to_owned(), "no URL"),
        (
            "secret",
            entry("rooms = [\"!a:x\"]\nwebhook_url = \"http://x\"\nwebhook_secret = \"\""),
            "webhook_secret is empty",
        ),
        ("typo", entry("room = []"), "line 3: unknown field `room`"),
        ("nothing", entry(""), "no room gets it"),
        ("alias", entry("rooms = [\"#a:example.org\"]"), "room id"),
        ("inviter", entry("inviters = [\"metabot\"]"), "user id"),
        ("ghost", entry("ghosts = [\"instagram_\"]"), "@instagram_"),
        ("server", entry("ghosts = [\"@instagram_*\"]"), "server"),
        ("name", "[[label]]\nname = \"!a\"\nrooms = [\"!a:x\"]".to_owned(), "letters"),
        ("twice", format!("{0}{0}", entry("rooms = [\"!a:x\"]\n")), "twice"),
        ("type", entry("rooms = \"tops3cret\""), "line 3: a value is malformed"),
        ("url", entry("rooms = [\"!a:x\"]\nwebhook_url = \"tops3cret\""), "webhook_url"),
        ("token", entry("rooms = [\"!a:x\"]\nwebhook_token = \"tops3cret\""), "webhook_url"),
        ("template", entry("rooms = [\"!a:x\"]\ntemplate_file = \"x\""), "webhook_url"),
    ] {
        let error = labels(name, &text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("tops3cret"), "{error}");
    }
}
