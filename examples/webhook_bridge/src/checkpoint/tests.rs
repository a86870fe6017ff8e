use clap::Parser;
use matrix_sdk_postgres::{PostgresStoreConfig, testing};

use super::*;
use crate::{config::Args, http_client};

#[tokio::test]
async fn only_a_checkpoint_of_the_same_keys_counts() {
    let database = testing::database().unwrap();
    let arguments = [
        "b",
        "--homeserver=http://localhost",
        "--user=@b:x",
        "--webhook-url=http://localhost",
        "--embedded-postgres",
        "--plain",
    ];
    let config = Config::try_from(Args::try_parse_from(arguments).unwrap()).unwrap();
    let settings = PostgresStoreConfig::new(database.url(), "@b:x");
    let (keys, _) = Keys::open(&config, settings, async |_, _| Ok(())).await.unwrap();
    keys.set_value("a", "1").await.unwrap();
    let commits = keys.commit_count().await.unwrap();
    let http = http_client::build(&config).unwrap();
    let checkpoint = Checkpoint {
        homeserver: Arc::new(Homeserver::new(http, config.homeserver.clone())),
        keys,
        user: config.user_id.clone(),
        device: "OURS".into(),
        ed25519: "key".to_owned(),
        highest: AtomicU64::new(0),
        may_write: AtomicBool::new(true),
    };
    let read = |device: &str, ed25519: &str, commits: u64| {
        let content = Content { device_id: device.into(), ed25519: ed25519.to_owned(), commits };
        checkpoint.read_checkpoint(&serde_json::to_string(&content).unwrap())
    };
    read("OTHER", "key", commits + 1).unwrap();
    read("OURS", "another key", commits + 1).unwrap();
    // Malformed content may have had a higher count.
    checkpoint.read_checkpoint("{}").unwrap_err();
    read("OURS", "key", commits).unwrap();
    checkpoint.check_commit_count().await.unwrap();
    read("OURS", "key", commits + 1).unwrap();
    let behind = checkpoint.check_commit_count().await;
    assert!(
        matches!(behind, Err(BridgeError::Fatal { code: exit_code::ROLLED_BACK, .. })),
        "{behind:?}"
    );
    // The higher count is written back, so that the rollback stays visible.
    let written = checkpoint.request().unwrap();
    assert!(written.data.json().get().contains(&format!(":{}", commits + 1)));
}
