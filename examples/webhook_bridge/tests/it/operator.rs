//! Operations: settings, secrets, roles, signals, logs and metrics.

use std::process::Command;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::{Bridge, Harness, Reply, message, room, sync};

/// Start the bridge with the required settings except database and passphrase.
async fn bare(harness: &Harness, more: &[(&str, &str)]) -> Bridge {
    let mut settings = vec![
        ("MATRIX_HOMESERVER", harness.homeserver.url.as_str()),
        ("MATRIX_USER", "@bot:example.org"),
        ("MATRIX_PASSWORD", "password"),
        ("WEBHOOK_URL", &harness.webhook.url),
    ];
    settings.extend(more);
    Bridge::start(&settings)
}

/// Host, port, user, password and database of a URL as `testing` makes it.
fn parts(url: &str) -> [String; 5] {
    let url = url::Url::parse(url).unwrap();
    [
        url.host_str().unwrap().to_owned(),
        url.port().unwrap().to_string(),
        url.username().to_owned(),
        url.password().unwrap_or_default().to_owned(),
        url.path()[1..].to_owned(),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_database_or_passphrase_is_refused_unless_intended() {
    let harness = Harness::new().await;
    let url = harness.database.url();
    for (settings, text) in [
        (vec![("STORE_PASSPHRASE", "p")], "--embedded-postgres"),
        (vec![("STORE_PASSPHRASE", "p"), ("DATABASE_URI", &url)], "DATABASE_URL"),
        (vec![("STORE_PASSPHRASE", "p"), ("PGPASSWORD", "p"), ("PGPORT", "1")], "DATABASE_URL"),
        (vec![("DATABASE_URL", &*url)], "--plain"),
        (vec![("DATABASE_URL", &url), ("STORE_PASSPHRASE", "\n")], "--plain"),
        (vec![("DATABASE_URL", &url), ("STORE_PASSPHRASE", "p"), ("--plain", "")], "--plain"),
    ] {
        let mut bridge = bare(&harness, &settings).await;
        assert_eq!(bridge.ended().await, 2, "{}", bridge.log());
        assert!(bridge.log().contains(text), "{}", bridge.log());
        assert_eq!(std::fs::read_dir(bridge.directory()).unwrap().count(), 0);
    }
    let bridge = bare(&harness, &[("DATABASE_URL", &url), ("--plain", "")]).await;
    bridge.ready().await;
}

/// The server has no TLS: a retry would not help.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_used_ends_the_bridge() {
    let harness = Harness::new().await;
    let url = format!("{}?sslmode=require", harness.database.url());
    let mut bridge = harness.bridge(&[("DATABASE_URL", &url)]);
    assert_eq!(bridge.ended().await, 5, "{}", bridge.log());
    assert!(bridge.log().contains("TLS"), "{}", bridge.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn libpqs_variables_name_the_database_or_complete_its_url() {
    let harness = Harness::new().await;
    let [host, port, user, password, database] = parts(&harness.database.url());
    let plain = ("--plain", "");
    let mut bridge = bare(
        &harness,
        &[
            plain,
            ("PGHOST", &host),
            ("PGPORT", &port),
            ("PGUSER", &user),
            ("PGPASSWORD", &password),
            ("PGDATABASE", &database),
        ],
    )
    .await;
    bridge.ready().await;
    assert_eq!(bridge.stop().await, 0);
    let url = format!("postgres://{host}:{port}/{database}");
    let settings = [plain, ("DATABASE_URL", &url), ("PGUSER", &user), ("PGPASSWORD", &password)];
    let bridge = bare(&harness, &settings).await;
    bridge.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_read_from_files_without_the_trailing_newline() {
    let harness = Harness::new().await;
    let directory = tempdir("secrets");
    let file = |name: &str, content: &str| {
        let path = directory.join(name);
        std::fs::write(&path, content).unwrap();
        path.to_string_lossy().into_owned()
    };
    let url = file("url", &format!("{}\n", harness.database.url()));
    let passphrase = file("passphrase", "a passphrase\r\n");
    let hook = file("hook", &format!("{}\n", harness.webhook.url));
    let (password, token) = (file("password", "pässword\n"), file("token", "tok\n"));
    let settings = [
        ("MATRIX_HOMESERVER", harness.homeserver.url.as_str()),
        ("MATRIX_USER", "@bot:example.org\n"),
        ("MATRIX_PASSWORD_FILE", &password),
        ("STORE_PASSPHRASE_FILE", &passphrase),
        ("DATABASE_URL_FILE", &url),
        ("WEBHOOK_URL_FILE", &hook),
        ("WEBHOOK_TOKEN_FILE", &token),
        ("BRIDGE_POOL_SIZE", "3"),
    ];
    let mut bridge = Bridge::start(&settings);
    bridge.ready().await;
    let login = harness.homeserver.calls.all().into_iter().find(|call| call.is("POST", "login"));
    assert_eq!(login.unwrap().body["password"], "pässword");
    assert_eq!(bridge.stop().await, 0);
    // The same secrets in the environment, with and without the newline.
    for passphrase in ["a passphrase", "a passphrase\n"] {
        let mut bridge = harness.bridge(&[("STORE_PASSPHRASE", passphrase)]);
        bridge.ready().await;
        assert_eq!(bridge.stop().await, 0);
    }
    let mut both = settings.to_vec();
    both.push(("MATRIX_PASSWORD", "password"));
    let mut bridge = Bridge::start(&both);
    assert_eq!(bridge.ended().await, 2);
    assert!(bridge.log().contains("MATRIX_PASSWORD_FILE"), "{}", bridge.log());
    std::fs::remove_dir_all(directory).unwrap();
}

fn tempdir(name: &str) -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("bridge-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dotenv_file_is_read_and_the_environment_overrides_it() {
    let harness = Harness::new().await;
    let directory = tempdir("dotenv");
    let content = format!(
        "# settings\nMATRIX_HOMESERVER={}\nMATRIX_USER=@bot:example.org\nMATRIX_PASSWORD='pa$s word'\n\
         STORE_PASSPHRASE=\"p\"\nWEBHOOK_URL=http://127.0.0.1:1/\nDATABASE_URL={}\n",
        harness.homeserver.url,
        harness.database.url()
    );
    std::fs::write(directory.join(".env"), content).unwrap();
    let mut bridge = Bridge::start_in(directory.clone(), &[("WEBHOOK_URL", &harness.webhook.url)]);
    bridge.ready().await;
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$1")]))]));
    harness.webhook.until_received(&["1"]).await;
    let login = harness.homeserver.calls.all().into_iter().find(|call| call.is("POST", "login"));
    assert_eq!(login.unwrap().body["password"], "pa$s word");
    assert_eq!(bridge.stop().await, 0);
    std::fs::write(directory.join(".env"), "MATRIX_PASSWORD='never shown").unwrap();
    let mut bridge = Bridge::start_in(directory, &[]);
    assert_eq!(bridge.ended().await, 2);
    assert!(!bridge.log().contains("never shown"), "{}", bridge.log());
}

/// The least-privilege roles of `docs/operations.md`, for both schemas.
#[tokio::test(flavor = "multi_thread")]
async fn it_runs_with_a_role_without_create_privileges() {
    let harness = Harness::new().await;
    let name = parts(&harness.database.url())[4].clone();
    let (owner, bot) = (format!("{name}_owner"), format!("{name}_bot"));
    let roles = format!(
        "CREATE ROLE \"{owner}\" LOGIN PASSWORD 'secret';
         CREATE ROLE \"{bot}\" LOGIN PASSWORD 'secret';
         REVOKE CREATE ON DATABASE \"{name}\" FROM PUBLIC;
         CREATE SCHEMA matrix_sdk AUTHORIZATION \"{owner}\";
         CREATE SCHEMA webhook_bridge AUTHORIZATION \"{owner}\";
         GRANT USAGE ON SCHEMA matrix_sdk, webhook_bridge TO \"{bot}\";
         ALTER DEFAULT PRIVILEGES FOR ROLE \"{owner}\" IN SCHEMA matrix_sdk, webhook_bridge
             GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO \"{bot}\""
    );
    harness.connection().await.batch_execute(&roles).await.unwrap();
    let url_of = |role: &str| {
        let mut url = url::Url::parse(&harness.database.url()).unwrap();
        url.set_username(role).unwrap();
        url.set_password(Some("secret")).unwrap();
        url.to_string()
    };
    let (owner_url, bot_url) = (url_of(&owner), url_of(&bot));
    let as_bot = [("DATABASE_URL", bot_url.as_str()), ("BRIDGE_RUN_MIGRATIONS", "false")];
    // A schema created by hand is not migrated yet.
    let mut bridge = harness.bridge(&as_bot);
    assert_eq!(bridge.ended().await, 5, "{}", bridge.log());
    assert!(bridge.log().contains("--migrate-only"), "{}", bridge.log());
    for _ in 0..2 {
        let mut migration = Bridge::start(&[("DATABASE_URL", &owner_url), ("--migrate-only", "")]);
        assert_eq!(migration.ended().await, 0, "{}", migration.log());
    }
    assert_eq!(harness.number("SELECT count(*) FROM matrix_sdk.accounts").await, 0);
    let mut bridge = harness.ready_bridge(&as_bot).await;
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$1")]))]));
    harness.webhook.until_received(&["1"]).await;
    // Also while the bridge runs.
    let mut migration = Bridge::start(&[("DATABASE_URL", &owner_url), ("--migrate-only", "")]);
    assert_eq!(migration.ended().await, 0, "{}", migration.log());
    assert_eq!(bridge.stop().await, 0);
    let mut bridge = harness.bridge(&[("DATABASE_URL", &bot_url)]);
    bridge.ready().await;
    assert_eq!(bridge.stop().await, 0);
    let forget = format!(
        "DROP OWNED BY \"{owner}\" CASCADE; DROP OWNED BY \"{bot}\" CASCADE;
         DROP ROLE \"{owner}\"; DROP ROLE \"{bot}\""
    );
    harness.connection().await.batch_execute(&forget).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_skips_deliveries_and_closes_the_store() {
    let harness = Harness::new().await;
    let mut bridge = harness.ready_bridge(&[]).await;
    let latch = CancellationToken::new();
    let hang = latch.clone();
    harness.webhook.requests.rule(move |_| Some(Reply::text(200, "").after(&hang)));
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$1")]))]));
    harness.webhook.until_received(&["1"]).await;
    bridge.signal("TERM");
    bridge.until_logged("stopping").await;
    bridge.signal("TERM");
    assert_eq!(bridge.ended().await, 0, "{}", bridge.log());
    latch.cancel();
    // The account was released: `refuse` would fail if the owner were alive.
    let bridge = harness.bridge(&[("BRIDGE_TAKEOVER", "refuse")]);
    bridge.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trace_logs_show_no_userinfo_of_urls() {
    let harness = Harness::new().await;
    let with_userinfo = |url: &str| url.replace("http://", "http://me:tops3cret@");
    let homeserver = with_userinfo(&harness.homeserver.url);
    let webhook = format!("{}?key=k3y", with_userinfo(&harness.webhook.url));
    let settings = [
        ("MATRIX_HOMESERVER", homeserver.as_str()),
        ("WEBHOOK_URL", &webhook),
        ("MATRIX_PASSWORD", "pa55word"),
        ("RUST_LOG", "trace,hyper=trace,hyper_util::client=trace,reqwest::connect=trace"),
    ];
    let bridge = harness.ready_bridge(&settings).await;
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$1")]))]));
    harness.webhook.until_received(&["1"]).await;
    let log = bridge.log();
    for secret in ["tops3cret", "k3y", "pa55word", "bWU6dG9wczNjcmV0", "a passphrase"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_show_ownership_failures_and_version() {
    let harness = Harness::new().await;
    let mut bridge = harness.ready_bridge(&[]).await;
    let standby = harness.bridge(&[]);
    standby.until_logged("waiting until it is free").await;
    assert_eq!(standby.metric("standby").await, Some(1.0));
    assert_eq!(standby.metric("owner").await, Some(0.0));
    assert_eq!(bridge.metric("owner").await, Some(1.0));
    assert_eq!(bridge.metric("standby").await, Some(0.0));
    let version = format!("build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    assert_eq!(bridge.metric(&version).await, Some(1.0));
    assert_eq!(bridge.metric("gaps_open").await, Some(0.0));

    harness.webhook.requests.rule(|_| Some(Reply::json(500, json!({}))));
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$1")]))]));
    harness.webhook.requests.until_count("two calls", 2, |_| true).await;
    assert!(bridge.metric("webhook_failures_total").await.unwrap() >= 1.0);
    assert!(bridge.metric("oldest_pending_age_seconds").await.unwrap() > 0.0);
    harness.webhook.requests.clear_rules();
    let keyless = json!({"event_id": "$k", "sender": "@alice:x", "type": "m.room.encrypted",
        "origin_server_ts": 1, "content": {"algorithm": "m.megolm.v1.aes-sha2", "session_id": "s",
        "sender_key": "k", "device_id": "d", "ciphertext": "garbage"}});
    harness.homeserver.push(sync(&[("!r:x", room(&[keyless]))]));
    bridge
        .until("an undecryptable message", async |bridge| {
            let (_, text) = bridge.get("/metrics").await.unwrap();
            let counted = |line: &str| !line.ends_with(" 0");
            let mut lines = text.lines();
            lines.any(|line| {
                line.starts_with("webhook_bridge_undecryptable_total{") && counted(line)
            })
        })
        .await;
    assert_eq!(bridge.stop().await, 0);
    standby.ready().await;
    assert_eq!(standby.metric("owner").await, Some(1.0));
    assert_eq!(standby.metric("standby").await, Some(0.0));
}

#[test]
fn help_names_every_setting_and_shows_no_secret() {
    let output = Command::new(env!("CARGO_BIN_EXE_webhook_bridge"))
        .arg("--help")
        .env("MATRIX_PASSWORD", "tops3cret")
        .env("MATRIX_HOMESERVER", "https://me:tops3cret@example.org")
        .output()
        .unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    for name in [
        "--embedded-postgres",
        "--plain",
        "--migrate-only",
        "BRIDGE_POOL_SIZE",
        "STORE_PASSPHRASE_FILE",
    ] {
        assert!(help.contains(name), "{name}");
    }
    assert!(!help.contains("tops3cret"));
}

/// In a rollout a healthy standby lets the old owner be stopped.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_could_not_take_over_does_not_become_a_standby() {
    let harness = Harness::new().await;
    let mut bridge = harness.ready_bridge(&[]).await;
    let connection = harness.connection().await;
    let outdated = "DELETE FROM webhook_bridge.schema_migrations WHERE version =
        (SELECT max(version) FROM webhook_bridge.schema_migrations)";
    connection.batch_execute(outdated).await.unwrap();
    let mut standby = harness.bridge(&[("BRIDGE_RUN_MIGRATIONS", "false")]);
    assert_eq!(standby.ended().await, 5, "{}", standby.log());
    assert!(standby.log().contains("--migrate-only"), "{}", standby.log());
    let newer = "INSERT INTO webhook_bridge.schema_migrations (version) VALUES (1000)";
    connection.batch_execute(newer).await.unwrap();
    let mut standby = harness.bridge(&[]);
    assert_eq!(standby.ended().await, 5, "{}", standby.log());
    assert!(standby.log().contains("upgrade the bridge"), "{}", standby.log());
    assert!(bridge.is_running());
}
