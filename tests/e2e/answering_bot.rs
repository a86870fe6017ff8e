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
use matrix_sdk_sqlite::SqliteStateStore;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

#[tokio::main]
async fn main() -> Result<()> {
    let config = PostgresStoreConfig::from_env("bot")?.passphrase(Some(&env("STORE_PASSPHRASE")?));
    let store = PostgresCryptoStore::open_with_config(&config).await?;
    // Without the state of a former process, the SDK begins a new Megolm session.
    let state = SqliteStateStore::open("state", None).await?;
    let stores = StoreConfig::new(SingleProcess).crypto_store(store.clone()).state_store(state);
    let client = Client::builder().homeserver_url(env("MATRIX_HOMESERVER")?).store_config(stores);
    let client = client.build().await?;
    let auth = client.matrix_auth();
    if let Some(saved) = store.get_custom_value("login").await? {
        auth.restore_session(serde_json::from_slice(&saved)?, Default::default()).await?;
    } else {
        auth.login_username(env("MATRIX_USER")?, &env("MATRIX_PASSWORD")?).send().await?;
        store.set_custom_value("login", serde_json::to_vec(&auth.session())?).await?;
    }
    let mut is_first = true;
    loop {
        let timeout = Duration::from_secs(if is_first { 0 } else { 10 });
        let news = client.sync_once(SyncSettings::new().timeout(timeout)).await?;
        for id in news.rooms.invited.keys() {
            client.join_room_by_id(id).await?;
        }
        // What was asked of a former process is not repeated.
        let joined = news.rooms.joined.into_iter().filter(|_| !is_first);
        for (id, update) in joined {
            let room = client.get_room(&id).ok_or("no room")?;
            for event in update.timeline.events {
                let event: serde_json::Value = event.raw().deserialize_as()?;
                answer(&room, event["content"]["body"].as_str().unwrap_or_default()).await?;
            }
        }
        if std::mem::take(&mut is_first) {
            println!("ready");
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
