//! A real `matrix_sdk::Client` on this store, against a real Synapse.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{path::Path, process::Command, time::Duration};

use common::Mode;
use matrix_sdk::{
    Client, Room, RoomState, SessionMeta,
    authentication::{SessionTokens, matrix::MatrixSession},
    config::{StoreConfig, SyncSettings},
    cross_process_lock::CrossProcessLockConfig,
    ruma::{
        api::client::room::create_room::v3::{Request as CreateRoom, RoomPreset},
        events::room::message::RoomMessageEventContent,
    },
};
use matrix_sdk_postgres::testing;
use serde_json::Value;

fn env(name: &str) -> String {
    std::env::var(name).unwrap()
}

async fn client(url: &str, account: &str) -> Client {
    let store = Mode::Passphrase.open(url, account).await;
    Client::builder()
        .homeserver_url(env("SYNAPSE_URL"))
        .store_config(StoreConfig::new(CrossProcessLockConfig::SingleProcess).crypto_store(store))
        .build()
        .await
        .unwrap()
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

/// The bodies of the newest messages, oldest first; what cannot be decrypted has none.
async fn bodies(room: &Room) -> Vec<String> {
    let messages = room.messages(matrix_sdk::room::MessagesOptions::backward()).await.unwrap();
    let body = |event: &matrix_sdk::deserialized_responses::TimelineEvent| {
        let event: Value = event.raw().deserialize_as().unwrap();
        Some(event["content"]["body"].as_str()?.to_owned())
    };
    let mut bodies: Vec<String> = messages.chunk.iter().filter_map(body).collect();
    bodies.reverse();
    bodies
}

/// Without a Synapse, this test starts one and runs itself again.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_logs_in_restarts_and_decrypts() {
    if std::env::var_os("SYNAPSE_URL").is_none() {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/with_synapse");
        let status = Command::new(script)
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "a_client_logs_in_restarts_and_decrypts", "--nocapture"])
            .status()
            .unwrap();
        assert!(status.success(), "the run against Synapse failed: {status}");
        return;
    }
    let database = testing::database().unwrap();
    let url = database.url();
    let (alice, bob) = (client(&url, "alice").await, client(&url, "bob").await);
    login(&alice, "ALICE").await;
    login(&bob, "BOB").await;

    let mut request = CreateRoom::new();
    request.preset = Some(RoomPreset::TrustedPrivateChat);
    request.invite = vec![bob.user_id().unwrap().to_owned()];
    let room = alice.create_room(request).await.unwrap();
    room.enable_encryption().await.unwrap();
    sync(&bob).await;
    bob.join_room_by_id(room.room_id()).await.unwrap();
    sync(&bob).await;
    sync(&alice).await;
    for number in 0..5 {
        let content = RoomMessageEventContent::text_plain(format!("before {number}"));
        room.send(content).await.unwrap();
    }
    sync(&bob).await;
    let expected: Vec<String> = (0..5).map(|number| format!("before {number}")).collect();
    assert_eq!(bodies(&bob.get_room(room.room_id()).unwrap()).await, expected);

    // Bob is restarted: all he keeps is his session, and the store.
    let session = bob.matrix_auth().session().unwrap();
    let MatrixSession { meta: SessionMeta { user_id, device_id }, tokens } = session;
    let SessionTokens { access_token, .. } = tokens;
    drop(bob);
    for number in 5..8 {
        let content = RoomMessageEventContent::text_plain(format!("before {number}"));
        room.send(content).await.unwrap();
    }
    let bob = client(&url, "bob").await;
    let tokens = SessionTokens { access_token, refresh_token: None };
    let session = MatrixSession { meta: SessionMeta { user_id, device_id }, tokens };
    bob.restore_session(session).await.unwrap();
    // Synapse answers a first sync from its cache of the last one; the second brings the rest.
    sync(&bob).await;
    sync(&bob).await;
    let bobs_room = bob.get_room(room.room_id()).unwrap();
    assert_eq!(bobs_room.state(), RoomState::Joined);
    let expected: Vec<String> = (0..8).map(|number| format!("before {number}")).collect();
    assert_eq!(bodies(&bobs_room).await, expected);

    // He can send, too, and Alice reads it.
    bobs_room.send(RoomMessageEventContent::text_plain("an answer")).await.unwrap();
    sync(&alice).await;
    assert_eq!(bodies(&room).await.last().unwrap(), "an answer");
}
