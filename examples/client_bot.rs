//! A bot on `matrix_sdk::Client`, its keys in PostgreSQL. The README says which messages it passes over.
use matrix_sdk::cross_process_lock::CrossProcessLockConfig::SingleProcess;
use matrix_sdk::ruma::{MilliSecondsSinceUnixEpoch as Time, api::error::ErrorKind};
use matrix_sdk::{Client, config::*, deserialized_responses::*, room::*, sync::Timeline};
use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::admin::HealthStatus;
use matrix_sdk_postgres::{Error as StoreError, PostgresCryptoStore, PostgresStoreConfig};
use std::{collections::HashMap, convert::Infallible, io, process::ExitCode, time::Duration};
type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;
/// Your code, for each encrypted event. Others could have been written by the homeserver.
async fn handle(room: &Room, message: &serde_json::Value) -> Result<()> {
    println!("{} {} {}", room.room_id(), message["sender"], message["content"]["body"]);
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    let Err(error) = start().await;
    eprintln!("{error}");
    ExitCode::FAILURE
}

/// Runs until starting again does not help.
async fn start() -> Result<Infallible> {
    let login = Login {
        homeserver: url("MATRIX_HOMESERVER")?,
        device: env("MATRIX_DEVICE_ID")?,
        user: env("MATRIX_USER")?,
        password: env("MATRIX_PASSWORD")?,
    };
    let config = PostgresStoreConfig::from_env("bot")?.passphrase(Some(&env("STORE_PASSPHRASE")?));
    let store = PostgresCryptoStore::open_with_config(&config).await?;
    loop {
        let Err(error) = run(&store, &login).await;
        let refusal = error.downcast_ref().and_then(matrix_sdk::Error::client_api_error_kind);
        let lost = error.downcast_ref().is_some_and(StoreError::is_permanent);
        if lost || matches!(refusal, Some(ErrorKind::UnknownToken(_))) || error.is::<io::Error>() {
            return Err(error);
        }
        // The SDK wraps the store's errors: reopening a store that was lost fails with its own.
        let health = store.health(Duration::from_secs(5)).await.status;
        if matches!(health, HealthStatus::Superseded | HealthStatus::DatabaseRolledBack) {
            store.reopen().await?;
        }
        eprintln!("{error}; starting again");
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

/// Runs until something fails. The next run continues from what is committed, with a new client.
async fn run(store: &PostgresCryptoStore, login: &Login) -> Result<Infallible> {
    store.reopen().await?;
    let stores = StoreConfig::new(SingleProcess).crypto_store(store.clone());
    let client = Client::builder().homeserver_url(&login.homeserver).store_config(stores);
    let client = client.build().await?;
    let (device, auth) = (&login.device, client.matrix_auth());
    let name = format!("login of {device}");
    if let Some(saved) = store.get_custom_value(&name).await? {
        auth.restore_session(serde_json::from_slice(&saved)?, Default::default()).await?;
    } else {
        let login = auth.login_username(&login.user, &login.password);
        login.device_id(device).send().await.map_err(io::Error::other)?; // Ends the bot.
        store.set_custom_value(&name, serde_json::to_vec(&auth.session())?).await?;
    }
    let (mut waiting, me) = (Vec::new(), client.user_id().ok_or("no login")?);
    loop {
        let timeout = Duration::from_secs(if waiting.is_empty() { 30 } else { 0 });
        let news = client.sync_once(SyncSettings::new().timeout(timeout)).await?;
        for id in news.rooms.invited.keys() {
            // Until one of the room's events was handled, the bot's arrival counts as the last.
            store.set_custom_value(&format!("last event of {id}"), me.as_bytes().into()).await?;
            client.join_room_by_id(id).await.inspect_err(|error| eprintln!("{id}: {error}")).ok();
        }
        // In random order, because a missing key ends the run. A sync brings few keys: wait for all.
        waiting.extend(HashMap::<_, _>::from_iter(news.rooms.joined));
        let ready = if news.to_device.is_empty() { waiting.len() } else { 0 };
        for (id, update) in waiting.drain(..ready) {
            handle_new(store, client.get_room(&id).ok_or("no room")?, update.timeline).await?;
        }
    }
}

/// Handles what came after the room's last event that was handled, also what the sync leaves out.
async fn handle_new(store: &PostgresCryptoStore, room: Room, new: Timeline) -> Result<()> {
    let (name, me) = (format!("last event of {}", room.room_id()), Some(room.own_user_id().into()));
    let last = store.get_custom_value(&name).await?.map(String::from_utf8).transpose()?;
    let is_last = |event: &TimelineEvent| {
        let arrival = event.raw().get_field::<String>("state_key").ok().flatten();
        last.is_some() && [arrival, event.event_id().map(String::from)].contains(&last)
    };
    let mut from = new.prev_batch.filter(|_| new.limited && last.is_some());
    let mut events = new.events;
    while !events.iter().any(is_last)
        && let Some(token) = from
    {
        let page = room.messages(MessagesOptions::backward().from(token.as_str())).await?;
        events.splice(0..0, page.chunk.into_iter().rev());
        from = page.end.filter(|end| *end != token);
    }
    let seen = events.iter().rposition(is_last).map_or(0, |at| at + 1);
    for event in events.into_iter().skip(seen) {
        let id = event.event_id().ok_or("an event without id")?;
        let event = if event.kind.is_utd() { room.event(&id, None).await? } else { event };
        let sent = event.raw().get_field::<u64>("origin_server_ts").ok().flatten();
        let is_recent = sent.is_some_and(|at| at.abs_diff(Time::now().get().into()) < 60_000);
        if event.kind.is_utd() && is_recent && last.is_some() {
            return Err("the key of a message has not come yet".into());
        } else if event.encryption_info().is_some() && event.sender() != me {
            handle(&room, &event.raw().deserialize_as()?).await?;
        }
        store.set_custom_value(&name, id.as_bytes().to_vec()).await?;
    }
    Ok(())
}

/// How to log in.
struct Login {
    homeserver: String,
    device: String,
    user: String,
    password: String,
}

fn env(name: &str) -> Result<String> {
    std::env::var(name).map_err(|_| format!("{name} is not set").into())
}

fn url(name: &str) -> Result<String> {
    let is_url =
        |text: &String| reqwest::Url::parse(text).is_ok_and(|url| url.scheme().starts_with("http"));
    Some(env(name)?)
        .filter(is_url)
        .ok_or_else(|| format!("{name} is not a URL: https://…, or http://…").into())
}
