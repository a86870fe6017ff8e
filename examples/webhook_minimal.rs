//! Forwards the encrypted messages of the rooms it is invited to, decrypted, to a webhook.
//!
//! Its keys, its login and what it has forwarded are in PostgreSQL; it needs no disk. Each message is
//! forwarded at least once, in its room's order: after a crash, a room's last one may come again, with the
//! same `Idempotency-Key`. The README says of `client_bot` what is not forwarded; the same holds here.
//!
//! ```sh
//! export DATABASE_URL=postgres://bot@localhost/bots PGPASSWORD=… STORE_PASSPHRASE='a long passphrase'
//! export MATRIX_HOMESERVER=https://matrix.example MATRIX_USER=@bot:matrix.example MATRIX_PASSWORD=…
//! # A name of your choice. After a logout: matrix-postgres reset-device --account webhook, and another one.
//! export MATRIX_DEVICE_ID=WEBHOOK1
//! export WEBHOOK_URL=https://example.org/hook
//! cargo run --example webhook_minimal
//! ```

use matrix_sdk::cross_process_lock::CrossProcessLockConfig::SingleProcess;
use matrix_sdk::deserialized_responses::{TimelineEvent, VerificationState};
use matrix_sdk::ruma::{MilliSecondsSinceUnixEpoch as Time, api::error::ErrorKind};
use matrix_sdk::{Client, Room, config::*, room::MessagesOptions, sync::Timeline};
use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::admin::HealthStatus;
use matrix_sdk_postgres::{Error as StoreError, PostgresCryptoStore, PostgresStoreConfig};
use serde_json::{Value, json};
use std::{collections::HashMap, convert::Infallible, io, process::ExitCode, time::Duration};
type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// Posts a message until the webhook accepts it.
async fn forward(webhook: &Webhook, room: &Room, event: &TimelineEvent) -> Result<()> {
    let message: Value = event.raw().deserialize_as()?;
    let sender = event.encryption_info().map(|info| &info.verification_state);
    let verified = matches!(sender, Some(VerificationState::Verified));
    let body = json!({
        "event_id": message["event_id"],
        "room_id": room.room_id(),
        "sender": message["sender"],
        "timestamp": message["origin_server_ts"],
        "type": message["type"],
        "body": message["content"]["body"].as_str().unwrap_or_default(),
        "content": message["content"],
        "verification": if verified { "verified" } else { "unverified" },
    });
    let key = message["event_id"].as_str().unwrap_or_default();
    loop {
        let request = webhook.http.post(&webhook.url).header("Content-Type", "application/json");
        let request = request.header("Idempotency-Key", key).timeout(Duration::from_secs(30));
        match request.body(body.to_string()).send().await {
            Ok(answer) if answer.status().is_success() => return Ok(()),
            Ok(answer) => eprintln!("the webhook answered {}", answer.status()),
            Err(error) => eprintln!("the webhook does not answer: {}", error.without_url()),
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
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
    let webhook = Webhook {
        url: url("WEBHOOK_URL")?,
        http: reqwest::Client::builder().http1_title_case_headers().build()?,
    };
    let config =
        PostgresStoreConfig::from_env("webhook")?.passphrase(Some(&env("STORE_PASSPHRASE")?));
    let store = PostgresCryptoStore::open_with_config(&config).await?;
    loop {
        let Err(error) = run(&store, &login, &webhook).await;
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
async fn run(store: &PostgresCryptoStore, login: &Login, webhook: &Webhook) -> Result<Infallible> {
    store.reopen().await?;
    let stores = StoreConfig::new(SingleProcess).crypto_store(store.clone());
    let client = Client::builder().homeserver_url(&login.homeserver).store_config(stores);
    let client = client.build().await?;
    // The login is stored with the keys, sealed like them.
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
            let room = client.get_room(&id).ok_or("the room is unknown")?;
            forward_new(store, webhook, room, update.timeline).await?;
        }
    }
}

/// Forwards what came after the last event of the room that was forwarded, also what the sync leaves out.
async fn forward_new(
    store: &PostgresCryptoStore,
    webhook: &Webhook,
    room: Room,
    new: Timeline,
) -> Result<()> {
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
            // What is not encrypted could have been written by the homeserver.
            forward(webhook, &room, &event).await?;
        }
        store.set_custom_value(&name, id.as_bytes().to_vec()).await?;
    }
    Ok(())
}

struct Webhook {
    url: String,
    http: reqwest::Client,
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
