//! A real `matrix_sdk::Client` on this store, against a real Synapse.

mod killed;
mod restart;

use std::{path::Path, process::Command, time::Duration};

use matrix_sdk::{
    Client, ClientBuilder, Room,
    config::{StoreConfig, SyncSettings},
    cross_process_lock::CrossProcessLockConfig,
    room::MessagesOptions,
    ruma::{
        OwnedRoomId, UserId,
        api::client::room::create_room::v3::{Request as CreateRoom, RoomPreset},
    },
    sliding_sync::VersionBuilder,
};
use serde_json::Value;
use test_support::Mode;

/// Unless `SYNAPSE_URL` is set, runs the test in a child process with a Synapse, and returns `true`.
fn ran_with_synapse(test: &str) -> bool {
    if std::env::var_os("SYNAPSE_URL").is_some() {
        return false;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/with_synapse");
    let status = Command::new(script)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .status()
        .unwrap();
    assert!(status.success(), "the run against Synapse failed: {status}");
    true
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap()
}

fn builder() -> ClientBuilder {
    Client::builder()
        .homeserver_url(env("SYNAPSE_URL"))
        .sliding_sync_version_builder(VersionBuilder::Native)
}

/// A client whose keys are in PostgreSQL, with all other stores in memory.
async fn client(url: &str, account: &str) -> Client {
    let store = Mode::Passphrase.open(url, account).await;
    let config = StoreConfig::new(CrossProcessLockConfig::SingleProcess).crypto_store(store);
    builder().store_config(config).build().await.unwrap()
}

async fn login(client: &Client, user: &str) {
    let (user, password) =
        (env(&format!("SYNAPSE_{user}")), env(&format!("SYNAPSE_{user}_PASSWORD")));
    client.matrix_auth().login_username(&user, &password).send().await.unwrap();
    client.encryption().wait_for_e2ee_initialization_tasks().await;
}

async fn sync(client: &Client) {
    client.sync_once(SyncSettings::new().timeout(Duration::ZERO)).await.unwrap();
}

/// Creates an encrypted room of two users.
async fn room_of(creator: &Client, other: &Client) -> OwnedRoomId {
    let mut request = CreateRoom::new();
    request.preset = Some(RoomPreset::TrustedPrivateChat);
    request.invite = vec![other.user_id().map(UserId::to_owned).unwrap()];
    let room = creator.create_room(request).await.unwrap();
    room.enable_encryption().await.unwrap();
    other.join_room_by_id(room.room_id()).await.unwrap();
    sync(creator).await;
    room.room_id().to_owned()
}

/// The bodies of the newest messages, oldest first. Undecryptable messages have none.
async fn bodies(room: &Room, newest: usize) -> Vec<String> {
    let (mut options, mut events) = (MessagesOptions::backward(), Vec::new());
    while events.len() < newest {
        options.limit = u32::try_from(newest - events.len()).unwrap().into();
        let messages = room.messages(options).await.unwrap();
        events.extend(messages.chunk);
        let Some(end) = messages.end else { break };
        options = MessagesOptions::backward().from(end.as_str());
    }
    let body = |event: &matrix_sdk::deserialized_responses::TimelineEvent| {
        let event: Value = event.raw().deserialize_as().unwrap();
        Some(event["content"]["body"].as_str()?.to_owned())
    };
    let mut bodies: Vec<String> = events.iter().filter_map(body).collect();
    bodies.reverse();
    bodies
}
