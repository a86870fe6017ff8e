use clap::Parser;
use matrix_sdk_postgres::{PostgresStoreConfig, testing};

use super::*;
use crate::{config::Args, http_client};

#[tokio::test]
async fn only_a_checkpoint_of_the_same_keys_counts() {
    let database = testing::database().unwrap();
    let words = [
        "b",
        "--homeserver=http://localhost",
        "--user=@b:x",
        "--webhook-url=http://localhost",
        "--try",
        "--plain",
    ];
    let config = Config::try_from(Args::try_parse_from(words).unwrap()).unwrap();
    let settings = PostgresStoreConfig::new(database.url(), "@b:x");
    let (keys, _) = Keys::open(&config, settings, |_| ()).await.unwrap();
    keys.set_value("a", "1").await.unwrap();
    let commits = keys.commit_count().await.unwrap();
    let http = http_client::build(&config).unwrap();
    let checkpoint = Checkpoint {
        homeserver: Arc::new(Homeserver::new(http, config.homeserver.clone())),
        keys,
        user: config.user_id.clone(),
        device: "OURS".into(),
        ed25519: "key".to_owned(),
        most: AtomicU64::new(0),
        may_write: AtomicBool::new(true),
    };
    let hear = |device: &str, ed25519: &str, commits: u64| {
        let content = Content { device_id: device.into(), ed25519: ed25519.to_owned(), commits };
        checkpoint.hear(&serde_json::to_string(&content).unwrap())
    };
    hear("OTHER", "key", commits + 1).unwrap();
    hear("OURS", "another key", commits + 1).unwrap();
    // Who knows what it meant.
    checkpoint.hear("{}").unwrap_err();
    hear("OURS", "key", commits).unwrap();
    checkpoint.look().await.unwrap();
    hear("OURS", "key", commits + 1).unwrap();
    let behind = checkpoint.look().await;
    assert!(
        matches!(behind, Err(BridgeError::Final { code: exit_code::ROLLED_BACK, .. })),
        "{behind:?}"
    );
    // What is written afterwards does not hide it.
    let written = checkpoint.request().unwrap();
    assert!(written.data.json().get().contains(&format!(":{}", commits + 1)));
}
