//! A bot on `OlmMachine` and plain `/sync` that handles every message, whenever it is killed.
//!
//! The room keys of a sync, its events and its position are one transaction: the events wait in a table,
//! the outbox. Then each is decrypted, handled and marked. After a crash before the commit the same sync
//! comes again; after a later one the events are in the outbox. So a message is handled at least once: it
//! is handled again if the process ends between handling and marking it. A message whose key comes late is
//! handled after later ones. The first sync ever begins with the newest messages of each room.
//!
//! Set DATABASE_URL, STORE_PASSPHRASE, MATRIX_HOMESERVER, MATRIX_USER, MATRIX_PASSWORD and
//! MATRIX_DEVICE_ID, a name of your choice. After a logout, or with an old backup: `matrix-postgres
//! reset-device --account outbox-bot`, and another MATRIX_DEVICE_ID.

use std::{
    borrow::Cow, collections::BTreeMap, convert::Infallible, io, process::ExitCode, time::Duration,
};

use matrix_sdk_crypto::{
    CryptoStoreError, DecryptionSettings, EncryptionSyncChanges, OlmMachine,
    RoomEventDecryptionResult, TrustRequirement,
    store::CryptoStore,
    types::requests::{AnyIncomingResponse, AnyOutgoingRequest},
};
use matrix_sdk_postgres::{
    Error as StoreError, PostgresCryptoStore, PostgresStoreConfig, admin::HealthStatus,
    deadpool_postgres::Pool, tokio_postgres::types::Type,
};
use ruma::{
    OwnedUserId, RoomId, TransactionId, UserId,
    api::{
        IncomingResponse, OutgoingRequest, SupportedVersions,
        auth_scheme::{AuthScheme, SendAccessToken},
        client::{
            keys::get_keys::v3::Request as KeyQuery,
            membership::join_room_by_id::v3::Request as Join,
            message::{
                get_message_events::v3::Request as GetMessages,
                send_message_event::v3::Request as SendMessage,
            },
            session::login::v3::{LoginInfo, Password, Request as Login},
            sync::sync_events::v3::Request as Sync,
            to_device::send_event_to_device::v3::Request as SendToDevice,
            uiaa::UserIdentifier,
        },
        error::{Error as ApiError, ErrorKind, FromHttpResponseError},
        path_builder::PathBuilder,
    },
    exports::http::{self, StatusCode},
    serde::Raw,
    uint,
};
use serde_json::Value;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

const TABLES: &str = "
    CREATE SCHEMA IF NOT EXISTS outbox_bot;
    CREATE TABLE IF NOT EXISTS outbox_bot.messages (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        room_id text NOT NULL,
        event_id text NOT NULL,
        event text NOT NULL, -- as it came: encrypted
        handled boolean NOT NULL DEFAULT false,
        UNIQUE (room_id, event_id)
    )";

const INSERT: &str = "
    INSERT INTO outbox_bot.messages (room_id, event_id, event)
    SELECT * FROM unnest($1, $2, $3) ON CONFLICT DO NOTHING";

const UNHANDLED: &str =
    "SELECT id, room_id, event FROM outbox_bot.messages WHERE NOT handled ORDER BY id";

const MARK: &str = "UPDATE outbox_bot.messages SET handled = true WHERE id = $1";

const SETTINGS: DecryptionSettings =
    DecryptionSettings { sender_device_trust_requirement: TrustRequirement::Untrusted };

/// Your code. It may see a message again, under the same `event_id`.
async fn handle(room_id: &RoomId, message: &Value) -> Result<()> {
    println!("{room_id} {} {}", message["sender"], message["content"]["body"]);
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
    let user = UserId::parse(env("MATRIX_USER")?);
    let user = user.map_err(|error| format!("MATRIX_USER is not a user id: {error}"))?;
    let (device, password) = (env("MATRIX_DEVICE_ID")?, env("MATRIX_PASSWORD")?);
    let homeserver = url("MATRIX_HOMESERVER")?;
    let config = PostgresStoreConfig::from_env("outbox-bot")?;
    let config = config.passphrase(Some(&env("STORE_PASSPHRASE")?));
    let pool = config.build_pool()?;
    let store = PostgresCryptoStore::open_with_pool(pool.clone(), &config).await?;
    pool.get().await?.batch_execute(TABLES).await?;
    // Longer than a sync may take, so that a homeserver that stopped answering is noticed.
    let http = reqwest::Client::builder().timeout(Duration::from_secs(90)).build()?;
    let mut bot = Bot { store, pool, http, homeserver, user, device, password, token: None };
    loop {
        let Err(error) = bot.run().await;
        if is_final(&*error) {
            return Err(error);
        }
        // The SDK wraps the store's errors: reopening a store that was lost fails with its own.
        let health = bot.store.health(Duration::from_secs(5)).await.status;
        if matches!(health, HealthStatus::Superseded | HealthStatus::DatabaseRolledBack) {
            bot.store.reopen().await?;
        }
        eprintln!("{error}; starting again");
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

/// Whether trying again cannot help: the account has another owner or device, or was logged out.
fn is_final(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(FromHttpResponseError::<ApiError>::Server(answer)) = error.downcast_ref() {
        return matches!(answer.error_kind(), Some(ErrorKind::UnknownToken(_)));
    }
    let is_mismatch =
        matches!(error.downcast_ref(), Some(CryptoStoreError::MismatchedAccount { .. }));
    let is_lost = error.downcast_ref().is_some_and(StoreError::is_permanent);
    is_mismatch || is_lost || error.is::<io::Error>()
}

/// What the homeserver has refused a request with; `None` if it has not answered.
fn refusal(error: &(dyn std::error::Error + 'static)) -> Option<StatusCode> {
    match error.downcast_ref() {
        Some(FromHttpResponseError::<ApiError>::Server(answer)) => Some(answer.status_code),
        _ => None,
    }
}

/// Whether the homeserver refused access to a room.
fn is_forbidden(error: &(dyn std::error::Error + 'static)) -> bool {
    refusal(error) == Some(StatusCode::FORBIDDEN)
}

struct Bot {
    store: PostgresCryptoStore,
    pool: Pool,
    http: reqwest::Client,
    homeserver: String,
    user: OwnedUserId,
    device: String,
    password: String,
    token: Option<String>,
}

impl Bot {
    /// Runs until something fails. The next run continues from what is committed, with a new machine: the
    /// old one may know what was never stored.
    async fn run(&mut self) -> Result<Infallible> {
        self.store.reopen().await?;
        self.log_in().await?;
        let device = self.device.as_str().into();
        let machine = OlmMachine::with_store(&self.user, device, self.store.clone(), None).await?;
        loop {
            // At first, what a crash left.
            self.handle_all(&machine).await?;
            if let Err(error) = self.send_outgoing(&machine).await {
                eprintln!("{error}; sending it again after the next sync");
            }
            self.receive(&machine).await?;
        }
    }

    /// The access token is stored with the keys, sealed like them, under the device's id.
    async fn log_in(&mut self) -> Result<()> {
        let name = format!("login of {}", self.device);
        self.token = None;
        let token = match self.store.get_custom_value(&name).await? {
            Some(token) => String::from_utf8(token)?,
            None => {
                let user = UserIdentifier::Matrix((&self.user).into());
                let password = Password::new(user, self.password.clone());
                let mut login = Login::new(LoginInfo::Password(password));
                login.device_id = Some(self.device.as_str().into());
                let login = self.send(login).await;
                // Ends the bot.
                let token =
                    login.map_err(|error| io::Error::other(error.to_string()))?.access_token;
                self.store.set_custom_value(&name, token.clone().into()).await?;
                token
            }
        };
        self.token = Some(token);
        Ok(())
    }

    /// Receives one sync. `next_batch_token` is the stored position, which the machine saves with the keys.
    async fn receive(&self, machine: &OlmMachine) -> Result<()> {
        let since = self.store.next_batch_token().await?;
        let mut sync = Sync::new();
        sync.since = since.clone();
        sync.timeout = Some(Duration::from_secs(30));
        let news = self.send(sync).await?;
        for room_id in news.rooms.invite.into_keys() {
            match self.send(Join::new(room_id)).await {
                // The invitation comes again only with the same sync, which waits for rate limits.
                Err(error)
                    if refusal(&*error).is_some_and(|it| it != StatusCode::TOO_MANY_REQUESTS) =>
                {
                    eprintln!("cannot join a room: {error}");
                }
                joined => drop(joined?),
            }
        }
        let mut messages = Messages::default();
        // A room that the bot was removed from has messages from before that, too.
        let joined = news.rooms.join.into_iter().map(|(id, room)| (id, room.timeline, false));
        let left = news.rooms.leave.into_iter().map(|(id, room)| (id, room.timeline, true));
        for (room_id, timeline, is_left) in joined.chain(left) {
            if let (true, Some(since)) = (timeline.limited, &since) {
                match self.fetch_gap(&room_id, timeline.prev_batch, since, &mut messages).await {
                    // The bot was only invited.
                    Err(error) if is_left && is_forbidden(&*error) => {}
                    fetched => fetched?,
                }
            }
            for event in &timeline.events {
                messages.add(&room_id, event);
            }
        }
        let changes = EncryptionSyncChanges {
            to_device_events: news.to_device.events,
            changed_devices: &news.device_lists,
            one_time_keys_counts: &news.device_one_time_keys_count,
            unused_fallback_keys: news.device_unused_fallback_key_types.as_deref(),
            next_batch_token: Some(news.next_batch),
        };
        let store = async {
            machine.receive_sync_changes(changes, &SETTINGS).await?;
            let array = Type::TEXT_ARRAY;
            let Messages { room_ids, event_ids, events } = &messages;
            let values = [
                (room_ids as _, array.clone()),
                (event_ids as _, array.clone()),
                (events as _, array),
            ];
            self.store.transaction().await?.execute(INSERT, &values).await?;
            Ok(())
        };
        self.store.atomically(store).await
    }

    /// Fetches what a sync left out of a busy room, back to the position before it.
    async fn fetch_gap(
        &self,
        room_id: &RoomId,
        mut from: Option<String>,
        since: &str,
        messages: &mut Messages,
    ) -> Result<()> {
        let mut events = Vec::new();
        while let Some(token) = from {
            let mut request = GetMessages::backward(room_id.to_owned()).from(token.clone());
            (request.to, request.limit) = (Some(since.to_owned()), uint!(100));
            let page = self.send(request).await?;
            // An empty page is not the last one.
            from = page.end.filter(|end| *end != token);
            events.extend(page.chunk);
        }
        for event in events.iter().rev() {
            messages.add(room_id, event);
        }
        Ok(())
    }

    /// Handles what the outbox holds. A message whose key has not come stays, and is tried after each sync.
    async fn handle_all(&self, machine: &OlmMachine) -> Result<()> {
        let rows = self.pool.get().await?.query(UNHANDLED, &[]).await?;
        for row in rows {
            let room_id = RoomId::parse(row.get::<_, String>("room_id"))?;
            let event = Raw::from_json_string(row.get("event"))?;
            let result = machine.try_decrypt_room_event(&event, &room_id, &SETTINGS).await?;
            if let RoomEventDecryptionResult::Decrypted(message) = result {
                handle(&room_id, &message.event.deserialize_as_unchecked()?).await?;
                self.pool.get().await?.execute(MARK, &[&row.get::<_, i64>("id")]).await?;
            }
        }
        Ok(())
    }

    /// Sends what the machine wants sent: above all its keys, which others need to write to it.
    async fn send_outgoing(&self, machine: &OlmMachine) -> Result<()> {
        for request in machine.outgoing_requests().await? {
            let id = request.request_id();
            match request.request() {
                AnyOutgoingRequest::KeysUpload(keys) => {
                    self.exchange(machine, id, keys.clone()).await?;
                }
                AnyOutgoingRequest::KeysQuery(query) => {
                    let mut request = KeyQuery::new();
                    request.device_keys = query.device_keys.clone();
                    self.exchange(machine, id, request).await?;
                }
                AnyOutgoingRequest::KeysClaim(claim) => {
                    self.exchange(machine, id, claim.clone()).await?;
                }
                AnyOutgoingRequest::ToDeviceRequest(to) => {
                    let (kind, id) = (to.event_type.clone(), to.txn_id.clone());
                    let request = SendToDevice::new_raw(kind, id.clone(), to.messages.clone());
                    self.exchange(machine, &id, request).await?;
                }
                AnyOutgoingRequest::SignatureUpload(signatures) => {
                    self.exchange(machine, id, signatures.clone()).await?;
                }
                AnyOutgoingRequest::RoomMessage(message) => {
                    let (room, txn_id) = (message.room_id.clone(), message.txn_id.clone());
                    let request = SendMessage::new(room, txn_id, &*message.content)?;
                    self.exchange(machine, id, request).await?;
                }
            }
        }
        Ok(())
    }

    async fn exchange<R>(&self, machine: &OlmMachine, id: &TransactionId, request: R) -> Result<()>
    where
        R: OutgoingRequest,
        for<'a> R::Authentication: AuthScheme<Input<'a> = SendAccessToken<'a>>,
        for<'a> R::PathBuilder: PathBuilder<Input<'a> = Cow<'a, SupportedVersions>>,
        for<'a> &'a R::IncomingResponse: Into<AnyIncomingResponse<'a>>,
    {
        let answer = self.send(request).await?;
        Ok(machine.mark_request_as_sent(id, &answer).await?)
    }

    async fn send<R>(&self, request: R) -> Result<R::IncomingResponse>
    where
        R: OutgoingRequest,
        for<'a> R::Authentication: AuthScheme<Input<'a> = SendAccessToken<'a>>,
        for<'a> R::PathBuilder: PathBuilder<Input<'a> = Cow<'a, SupportedVersions>>,
    {
        let token =
            self.token.as_deref().map_or(SendAccessToken::None, SendAccessToken::IfRequired);
        let versions = SupportedVersions::from_parts(&["v1.1".to_owned()], &BTreeMap::new());
        let request: http::Request<Vec<u8>> =
            request.try_into_http_request(&self.homeserver, token, Cow::Owned(versions))?;
        let answer = self.http.execute(request.try_into()?).await?;
        let (status, body) = (answer.status(), answer.bytes().await?);
        let answer = http::Response::builder().status(status).body(body)?;
        Ok(R::IncomingResponse::try_from_http_response(answer)?)
    }
}

/// The encrypted messages of a sync, as columns.
#[derive(Default)]
struct Messages {
    room_ids: Vec<String>,
    event_ids: Vec<String>,
    events: Vec<String>,
}

impl Messages {
    fn add<T>(&mut self, room_id: &RoomId, event: &Raw<T>) {
        let field = |name| event.get_field::<String>(name).ok().flatten();
        // What is not encrypted could have been written by the homeserver.
        if let (Some("m.room.encrypted"), Some(id)) = (field("type").as_deref(), field("event_id"))
        {
            self.room_ids.push(room_id.to_string());
            self.event_ids.push(id);
            self.events.push(event.json().get().to_owned());
        }
    }
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
