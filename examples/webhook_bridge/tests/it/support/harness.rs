//! The test harness: homeserver, webhook and database of one test.

use std::sync::Arc;

use matrix_sdk_crypto::OlmMachine;
use matrix_sdk_postgres::{
    PoolSettings, PostgresCryptoStore, PostgresStoreConfig,
    deadpool_postgres::Object,
    testing::{self, TestDatabase},
};
use ruma::UserId;
use serde_json::{Value, json};

use super::{
    Bridge, Homeserver, Reply, Webhook,
    homeserver::{BOT, Call},
};

pub struct Harness {
    pub homeserver: Arc<Homeserver>,
    pub webhook: Arc<Webhook>,
    pub database: TestDatabase,
}

impl Harness {
    pub async fn new() -> Self {
        Self {
            homeserver: Homeserver::start().await,
            webhook: Webhook::start().await,
            database: testing::database().unwrap(),
        }
    }

    /// Start the bridge; `more` overrides the default settings.
    pub fn bridge(&self, more: &[(&str, &str)]) -> Bridge {
        let url = self.database.url();
        let mut settings = vec![
            ("MATRIX_HOMESERVER", self.homeserver.url.as_str()),
            ("MATRIX_USER", BOT),
            ("MATRIX_PASSWORD", "password"),
            ("STORE_PASSPHRASE", "a passphrase"),
            ("WEBHOOK_URL", &self.webhook.url),
            ("DATABASE_URL", &url),
        ];
        settings.extend(more);
        Bridge::start(&settings)
    }

    /// Start the bridge and wait until it is ready and has joined the encrypted room `!r:x` and the
    /// unencrypted room `!p:x`.
    pub async fn ready_bridge(&self, more: &[(&str, &str)]) -> Bridge {
        let bridge = self.bridge(more);
        bridge.ready().await;
        self.homeserver.push(sync(&[
            ("!r:x", room(&[joined("$join-r"), encryption()])),
            ("!p:x", room(&[joined("$join-p")])),
        ]));
        self.homeserver.until_synced().await;
        bridge
    }

    /// The store of the bridge, which must have ended, and its machine.
    #[allow(dead_code)]
    pub async fn machine(&self) -> (PostgresCryptoStore, OlmMachine) {
        let url = self.database.url();
        let store = PostgresCryptoStore::open(url, BOT, Some("a passphrase")).await.unwrap();
        let device = self.homeserver.stored.lock().unwrap().device_id.clone();
        let bot = UserId::parse(BOT).unwrap();
        let machine = OlmMachine::with_store(&bot, device.as_str().into(), store.clone(), None);
        (store, machine.await.unwrap())
    }

    /// Refuse the session until the bridge ends its run, do something, and let it start the next one.
    // Not used by the soak test.
    #[allow(dead_code)]
    pub async fn restart_run(&self, bridge: &Bridge, meanwhile: impl FnOnce()) {
        let count = |text| bridge.log().matches(text).count();
        let (runs, refusals) = (count("forwarding messages"), count("locked"));
        let refuse = |call: &Call| call.is_sync().then(|| matrix_error(401, "M_UNKNOWN_TOKEN"));
        self.homeserver.calls.rule(refuse);
        // Ends the long poll.
        self.homeserver.push(json!({}));
        bridge.until("the refusal", async |_| count("locked") > refusals).await;
        meanwhile();
        self.homeserver.calls.clear_rules();
        bridge.until("another run", async |_| count("forwarding messages") > runs).await;
        bridge.ready().await;
    }

    pub async fn connection(&self) -> Object {
        let config = PostgresStoreConfig::new(self.database.url(), "a")
            .pool(PoolSettings { max_size: 1, ..Default::default() });
        config.build_pool().unwrap().get().await.unwrap()
    }

    /// The first column of the first row.
    pub async fn number(&self, sql: &str) -> i64 {
        self.connection().await.query_one(sql, &[]).await.unwrap().get(0)
    }
}

fn joined(id: &str) -> Value {
    json!({"event_id": id, "sender": BOT, "type": "m.room.member", "state_key": BOT,
        "origin_server_ts": 1, "content": {"membership": "join"}})
}

pub fn member(user: &str) -> Value {
    json!({"event_id": format!("$member-{user}"), "sender": user, "type": "m.room.member",
        "state_key": user, "origin_server_ts": 1, "content": {"membership": "join"}})
}

fn encryption() -> Value {
    json!({"event_id": "$encryption", "sender": "@a:x", "type": "m.room.encryption",
        "state_key": "", "origin_server_ts": 1, "content": {"algorithm": "m.megolm.v1.aes-sha2"}})
}

/// An unencrypted message whose text is its event id without the `$`.
pub fn message(id: &str) -> Value {
    plain(id, &id[1..])
}

pub fn plain(id: &str, body: &str) -> Value {
    json!({"event_id": id, "sender": "@alice:x", "type": "m.room.message", "origin_server_ts": 1,
        "content": {"msgtype": "m.text", "body": body}})
}

/// A joined room's part of a sync.
pub fn room(events: &[Value]) -> Value {
    json!({"timeline": {"events": events, "limited": false, "prev_batch": "p"}})
}

/// A sync with joined rooms.
pub fn sync(rooms: &[(&str, Value)]) -> Value {
    let rooms: serde_json::Map<_, _> =
        rooms.iter().map(|(id, room)| ((*id).to_owned(), room.clone())).collect();
    json!({"rooms": {"join": rooms}})
}

/// A joined room's part of a limited sync.
pub fn limited(events: &[Value]) -> Value {
    json!({"timeline": {"events": events, "limited": true, "prev_batch": "p"}})
}

pub fn invitation(room: &str) -> Value {
    json!({"rooms": {"invite": {room: {"invite_state": {"events": []}}}}})
}

/// An error response of a homeserver.
pub fn matrix_error(status: u16, code: &str) -> Reply {
    Reply::json(status, json!({"errcode": code, "error": "no"}))
}
