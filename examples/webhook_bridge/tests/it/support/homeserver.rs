//! A mock homeserver with the endpoints that the bridge uses; tests override them with rules.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::Response,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::timeout};

use super::{
    backup::Backup,
    record::{Record, Reply, lock},
};

pub const BOT: &str = "@bot:example.org";

/// One request of the bridge.
#[derive(Clone, Debug)]
pub struct Call {
    pub method: String,
    /// Relative to `/_matrix/client/v3/`, or another version.
    pub path: String,
    pub query: HashMap<String, String>,
    pub body: Value,
    /// The access token.
    pub token: Option<String>,
}

impl Call {
    pub fn is(&self, method: &str, path: &str) -> bool {
        self.method == method && self.path.starts_with(path)
    }

    pub fn is_sync(&self) -> bool {
        self.is("GET", "sync")
    }

    pub fn since(&self) -> Option<&str> {
        self.query.get("since").map(String::as_str)
    }
}

#[derive(Clone)]
pub enum Sync {
    Json(Value),
    /// Invalid JSON, or JSON that a `Value` cannot hold; `NEXT` is replaced by the next position.
    Text(String),
}

#[derive(Default)]
pub struct Stored {
    pub initial: Value,
    pub syncs: Vec<Sync>,
    pub device_id: String,
    pub device_keys: Value,
    /// The master key, the self-signing key and the user-signing key.
    pub cross_signing: Value,
    pub one_time_keys: BTreeMap<String, Value>,
    pub fallback_keys: BTreeMap<String, Value>,
    /// The devices of other users, and other devices of the bot's, for key queries.
    pub users: BTreeMap<String, Value>,
    pub account_data: HashMap<String, Value>,
    pub backup: Backup,
}

pub struct Homeserver {
    pub url: String,
    pub calls: Record<Call>,
    pub stored: Mutex<Stored>,
    pushed: watch::Sender<usize>,
    server: Mutex<Option<JoinHandle<()>>>,
}

impl Homeserver {
    pub async fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let homeserver = Arc::new(Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            calls: Record::new(),
            stored: Mutex::default(),
            pushed: watch::Sender::new(0),
            server: Mutex::default(),
        });
        let router = Router::new().fallback(answer).with_state(homeserver.clone());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        *lock(&homeserver.server) = Some(server);
        homeserver
    }

    /// Add a `/sync` response; `next_batch` and the key counts are filled in.
    pub fn push(&self, sync: Value) {
        self.push_sync(Sync::Json(sync));
    }

    pub fn push_text(&self, sync: &str) {
        self.push_sync(Sync::Text(sync.to_owned()));
    }

    fn push_sync(&self, sync: Sync) {
        lock(&self.stored).syncs.push(sync);
        self.pushed.send_modify(|pushed| *pushed += 1);
    }

    /// Set the response to a `/sync` without a position.
    pub fn set_initial(&self, sync: Value) {
        lock(&self.stored).initial = sync;
    }

    /// The number of uploaded and unclaimed one-time keys of the bridge.
    pub fn one_time_keys(&self) -> usize {
        lock(&self.stored).one_time_keys.len()
    }

    /// Wait until the bridge has processed all pushed syncs, so that it requests the position after
    /// them.
    pub async fn until_synced(&self) {
        let end = format!("s{}", lock(&self.stored).syncs.len());
        self.calls
            .until("the last sync to be taken in", |calls| {
                calls.iter().any(|call| call.is_sync() && call.since() == Some(&end))
            })
            .await;
    }

    async fn default_reply(&self, call: &Call) -> Reply {
        let path: Vec<&str> = call.path.split('/').collect();
        let ok = |body| Reply::json(200, body);
        match (call.method.as_str(), path.as_slice()) {
            ("GET", ["versions"]) => ok(json!({"versions": ["v1.1", "v1.11"]})),
            ("POST", ["login"]) => {
                let device = call.body["device_id"].as_str().unwrap_or("BOT").to_owned();
                lock(&self.stored).device_id.clone_from(&device);
                ok(json!({"user_id": BOT, "access_token": "token", "device_id": device}))
            }
            ("GET", ["account", "whoami"]) => {
                ok(json!({"user_id": BOT, "device_id": lock(&self.stored).device_id}))
            }
            ("GET", ["sync"]) => self.sync(call).await,
            ("POST", ["keys", "upload"]) => ok(self.upload(&call.body)),
            ("POST", ["keys", "query"]) => ok(self.query(&call.body)),
            ("POST", ["keys", "device_signing", "upload"]) => {
                lock(&self.stored).cross_signing = call.body.clone();
                ok(json!({}))
            }
            ("POST", ["keys", "signatures", "upload"]) => ok(self.sign(&call.body)),
            ("POST", ["keys", "claim"]) => ok(json!({"one_time_keys": {}})),
            ("GET", ["rooms", _, "messages"]) => ok(json!({"start": "x", "chunk": []})),
            ("GET", ["rooms", _, "members"]) => ok(json!({"chunk": []})),
            ("POST", ["rooms", room, "join"] | ["join", room]) => ok(json!({"room_id": room})),
            ("PUT", ["sendToDevice", ..]) => ok(json!({})),
            ("GET", ["user", _, "account_data", kind]) => {
                match lock(&self.stored).account_data.get(*kind) {
                    Some(data) => ok(data.clone()),
                    None => Reply::json(404, json!({"errcode": "M_NOT_FOUND"})),
                }
            }
            ("PUT", ["user", _, "account_data", kind]) => {
                lock(&self.stored).account_data.insert((*kind).to_owned(), call.body.clone());
                ok(json!({}))
            }
            (_, ["room_keys", path @ ..]) => lock(&self.stored).backup.reply(call, path),
            _ => Reply::json(404, json!({"errcode": "M_UNRECOGNIZED"})),
        }
    }

    async fn sync(&self, call: &Call) -> Reply {
        let Some(since) = call.since() else {
            let (initial, end) = {
                let stored = lock(&self.stored);
                (stored.initial.clone(), stored.syncs.len())
            };
            return self.sync_reply(initial, end);
        };
        let Ok(position) = since.trim_start_matches('s').parse::<usize>() else {
            return Reply::json(400, json!({"errcode": "M_UNKNOWN_POS"}));
        };
        let millis = call.query.get("timeout").and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut pushed = self.pushed.subscribe();
        let more = pushed.wait_for(|_| lock(&self.stored).syncs.len() > position);
        let _ = timeout(Duration::from_millis(millis), more).await;
        let next = lock(&self.stored).syncs.get(position).cloned();
        match next {
            Some(Sync::Json(sync)) => self.sync_reply(sync, position + 1),
            Some(Sync::Text(sync)) => {
                Reply::text(200, &sync.replace("NEXT", &format!("s{}", position + 1)))
            }
            None => self.sync_reply(json!({}), position),
        }
    }

    fn sync_reply(&self, mut sync: Value, position: usize) -> Reply {
        if sync.is_null() {
            sync = json!({});
        }
        let count = self.one_time_keys();
        if let Some(fields) = sync.as_object_mut() {
            for (name, value) in [
                ("next_batch", json!(format!("s{position}"))),
                ("device_one_time_keys_count", json!({"signed_curve25519": count})),
                ("device_unused_fallback_key_types", json!(["signed_curve25519"])),
            ] {
                fields.entry(name).or_insert(value);
            }
        }
        Reply::json(200, sync)
    }

    fn upload(&self, body: &Value) -> Value {
        let mut stored = lock(&self.stored);
        if body["device_keys"].is_object() {
            stored.device_keys = body["device_keys"].clone();
        }
        for (id, key) in body["one_time_keys"].as_object().into_iter().flatten() {
            stored.one_time_keys.insert(id.clone(), key.clone());
        }
        for (id, key) in body["fallback_keys"].as_object().into_iter().flatten() {
            stored.fallback_keys.insert(id.clone(), key.clone());
        }
        json!({"one_time_key_counts": {"signed_curve25519": stored.one_time_keys.len()}})
    }

    /// Add the signature of the bot's identity to the device keys.
    fn sign(&self, body: &Value) -> Value {
        let mut stored = lock(&self.stored);
        let device = stored.device_keys["device_id"].as_str().unwrap_or_default().to_owned();
        let signed = body[BOT][&device]["signatures"][BOT].as_object().cloned();
        for (id, signature) in signed.into_iter().flatten() {
            stored.device_keys["signatures"][BOT][id] = signature;
        }
        json!({})
    }

    fn query(&self, body: &Value) -> Value {
        let stored = lock(&self.stored);
        let mut devices = serde_json::Map::new();
        for user in body["device_keys"].as_object().into_iter().flatten().map(|(user, _)| user) {
            let known = match user.as_str() {
                BOT if !stored.device_keys.is_null() => {
                    let device = stored.device_keys["device_id"].as_str().unwrap();
                    let mut own = stored.users.get(BOT).cloned().unwrap_or(json!({}));
                    own[device] = stored.device_keys.clone();
                    own
                }
                user => stored.users.get(user).cloned().unwrap_or(json!({})),
            };
            devices.insert(user.clone(), known);
        }
        let mut response = json!({"device_keys": devices, "failures": {}});
        for kind in ["master_key", "self_signing_key", "user_signing_key"] {
            if stored.cross_signing[kind].is_object() && body["device_keys"][BOT].is_array() {
                response[format!("{kind}s")] = json!({BOT: stored.cross_signing[kind]});
            }
        }
        response
    }
}

async fn answer(State(homeserver): State<Arc<Homeserver>>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let url = url::Url::parse(&format!("http://x{}", parts.uri)).unwrap();
    let path = url.path().trim_start_matches("/_matrix/client/");
    let path = match path.split_once('/') {
        Some((version, rest)) if version.starts_with(['r', 'v', 'u']) => rest,
        _ => path,
    };
    let token = parts.headers.get("authorization").and_then(|value| value.to_str().ok());
    let call = Call {
        token: token.and_then(|value| value.strip_prefix("Bearer ")).map(ToOwned::to_owned),
        method: parts.method.to_string(),
        path: percent_decode(path),
        query: url.query_pairs().into_owned().collect(),
        body: serde_json::from_slice(&body).unwrap_or_default(),
    };
    homeserver.calls.add(call.clone());
    let reply = match homeserver.calls.apply_rules(&call) {
        Some(reply) => reply,
        None => homeserver.default_reply(&call).await,
    };
    reply.send().await
}

fn percent_decode(path: &str) -> String {
    // `Url` decodes query strings but not paths.
    let query = format!("http://x?{}", path.replace('+', "%2B").replace('&', "%26"));
    let url = url::Url::parse(&query.replace('=', "%3D")).unwrap();
    url.query_pairs().map(|(name, _)| name.into_owned()).collect()
}

impl Drop for Homeserver {
    fn drop(&mut self) {
        if let Some(server) = lock(&self.server).take() {
            server.abort();
        }
    }
}
