//! A bot for the end-to-end tests: "send NAME 20" makes it send "NAME 0" to "NAME 19".

use std::time::Duration;

use matrix_sdk::{
    Client, Room,
    config::{StoreConfig, SyncSettings},
    cross_process_lock::CrossProcessLockConfig::SingleProcess,
    ruma::events::room::message::RoomMessageEventContent,
};
use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{PostgresCryptoStore, PostgresStoreConfig};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

#[tokio::main]
async fn main() -> Result<()> {
    let config = PostgresStoreConfig::from_env("bot")?.passphrase(Some(&env("STORE_PASSPHRASE")?));
    let store = PostgresCryptoStore::open_with_config(&config).await?;
    let stores = StoreConfig::new(SingleProcess).crypto_store(store.clone());
    let client = Client::builder().homeserver_url(env("MATRIX_HOMESERVER")?).store_config(stores);
    let client = client.build().await?;
    let auth = client.matrix_auth();
    if let Some(saved) = store.get_custom_value("login").await? {
        auth.restore_session(serde_json::from_slice(&saved)?, Default::default()).await?;
    } else {
        auth.login_username(env("MATRIX_USER")?, &env("MATRIX_PASSWORD")?).send().await?;
        store.set_custom_value("login", serde_json::to_vec(&auth.session())?).await?;
    }
    // What was asked of a former process is not repeated.
    client.sync_once(SyncSettings::new()).await?;
    println!("ready");
    loop {
        let news = client.sync_once(SyncSettings::new().timeout(Duration::from_secs(10))).await?;
        for id in news.rooms.invited.keys() {
            client.join_room_by_id(id).await?;
        }
        for (id, update) in news.rooms.joined {
            let room = client.get_room(&id).ok_or("no room")?;
            for event in update.timeline.events {
                let event: serde_json::Value = event.raw().deserialize_as()?;
                answer(&room, event["content"]["body"].as_str().unwrap_or_default()).await?;
            }
        }
    }
}

async fn answer(room: &Room, request: &str) -> Result<()> {
    let mut words = request.split(' ');
    if let (Some("send"), Some(name), Some(count)) = (words.next(), words.next(), words.next()) {
        for number in 0..count.parse()? {
            let text = format!("{name} {number}");
            room.send(RoomMessageEventContent::text_plain(text)).await?;
        }
    }
    Ok(())
}

fn env(name: &str) -> Result<String> {
    std::env::var(name).map_err(|_| format!("{name} is not set").into())
}
