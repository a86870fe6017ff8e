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
        ("--listen", "9090", "BRIDGE_LISTEN"),
        ("--takeover", "steal", "BRIDGE_TAKEOVER"),
        ("--store-passphrase", "\n", "STORE_PASSPHRASE"),
        ("--password-file", "/nowhere/at/all", "MATRIX_PASSWORD"),
        ("--pool-size", "0", "BRIDGE_POOL_SIZE"),
        ("--gap-max-pages", "0", "BRIDGE_GAP_MAX_PAGES"),
        ("--gap-max-empty-pages", "many", "BRIDGE_GAP_MAX_EMPTY_PAGES"),
        ("--retry-timeout", "1m", "BRIDGE_RETRY_TIMEOUT"),
        ("--run-migrations", "maybe", "BRIDGE_RUN_MIGRATIONS"),
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
    assert!(config.webhook_token.is_none());
    assert!(matches!(config.database.database, Database::Url(_)));
    let shown = format!("{config:?}");
    assert!(!shown.contains("tops3cret") && !shown.contains("dG9wczNjcmV0"), "{shown}");
    assert_eq!(config.store_account, "@bot:example.org");
    assert_eq!(config.takeover, Takeover::Wait);
}
