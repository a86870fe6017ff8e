//! Random faults of homeserver and webhook, while they are switched on.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

use fastrand::Rng;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    history::History,
    support::{Call, Delivery, Homeserver, Reply, Webhook},
};

pub struct Chaos {
    is_on: AtomicBool,
    rng: Mutex<Rng>,
    /// Opened at the end of the faults, to release hanging replies.
    latch: Mutex<CancellationToken>,
    accepted: Mutex<Vec<Delivery>>,
    invited: Mutex<Vec<String>>,
    /// How many more times the position is refused.
    lost: AtomicUsize,
    acknowledged: AtomicUsize,
}

impl Chaos {
    pub fn install(
        seed: u64,
        homeserver: &Arc<Homeserver>,
        webhook: &Arc<Webhook>,
        history: &Arc<History>,
    ) -> Arc<Self> {
        let chaos = Arc::new(Self {
            is_on: AtomicBool::new(false),
            rng: Mutex::new(Rng::with_seed(seed ^ 1)),
            latch: Mutex::default(),
            accepted: Mutex::default(),
            invited: Mutex::default(),
            lost: AtomicUsize::new(0),
            acknowledged: AtomicUsize::new(0),
        });
        let (own, history) = (chaos.clone(), history.clone());
        let server = Arc::downgrade(homeserver);
        homeserver.calls.rule(move |call| {
            own.homeserver_fault(call).or_else(|| {
                let syncs = server.upgrade()?.stored.lock().unwrap().syncs.len();
                own.default_reply(call, &history, syncs)
            })
        });
        let own = chaos.clone();
        webhook.requests.rule(move |delivery| Some(own.webhook_reply(delivery)));
        chaos
    }

    pub fn on(&self) {
        self.is_on.store(true, Relaxed);
    }

    pub fn off(&self) {
        self.is_on.store(false, Relaxed);
        self.lost.store(0, Relaxed);
        std::mem::take(&mut *self.latch.lock().unwrap()).cancel();
    }

    /// The deliveries that the webhook accepted.
    pub fn accepted(&self) -> Vec<Delivery> {
        self.accepted.lock().unwrap().clone()
    }

    pub fn invited(&self) -> Vec<String> {
        self.invited.lock().unwrap().clone()
    }

    fn pick(&self, of: u32) -> u32 {
        self.rng.lock().unwrap().u32(0..of)
    }

    /// Hold the reply back until the faults end.
    fn hang(&self, reply: Reply) -> Reply {
        reply.after(&self.latch.lock().unwrap())
    }

    fn default_reply(&self, call: &Call, history: &History, syncs: usize) -> Option<Reply> {
        if call.is_sync() {
            let Some(since) = call.since() else {
                let mut all = history.all(self.acknowledged.load(Relaxed));
                all["next_batch"] = json!(format!("s{syncs}"));
                return Some(Reply::json(200, all));
            };
            self.acknowledged.fetch_max(since[1..].parse().unwrap_or(0), Relaxed);
            return None;
        }
        let room = call.path.strip_prefix("rooms/")?.strip_suffix("/messages")?;
        let from = call.query.get("from").map(String::as_str);
        Some(Reply::json(200, history.page(room, from)))
    }

    fn homeserver_fault(&self, call: &Call) -> Option<Reply> {
        if !self.is_on.load(Relaxed) {
            return None;
        }
        if call.is_sync() && call.since().is_some() {
            let refuse = |left: usize| left.checked_sub(1);
            if self.lost.fetch_update(Relaxed, Relaxed, refuse).is_ok() {
                return Some(Reply::json(400, json!({"errcode": "M_UNKNOWN_POS"})));
            }
            if self.pick(500) == 0 {
                self.lost.store(2, Relaxed);
                return Some(Reply::json(400, json!({"errcode": "M_UNKNOWN_POS"})));
            }
        }
        if call.path.ends_with("/join") && self.pick(3) > 0 {
            return Some(Reply::json(403, json!({"errcode": "M_FORBIDDEN"})));
        }
        match self.pick(60) {
            0 => Some(Reply::text(500, "")),
            1 => Some(Reply::text(502, "<html>bad gateway</html>")),
            2 => Some(Reply::json(
                429,
                json!({"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 900}),
            )),
            3 => Some(Reply::text(200, "<html>welcome</html>")),
            4 => Some(Reply::text(200, "{\"next_batch\": ")),
            5 => Some(Reply::text(403, "<html>blocked</html>")),
            6 => Some(self.hang(Reply::text(504, ""))),
            7 if call.is("POST", "keys/query") => {
                let failures = json!({"x": {}, "y": {}, "z": {}});
                Some(Reply::json(200, json!({"device_keys": {}, "failures": failures})))
            }
            _ => None,
        }
    }

    fn webhook_reply(&self, delivery: &Delivery) -> Reply {
        if self.is_on.load(Relaxed) {
            match self.pick(25) {
                0 => return Reply::text(500, ""),
                1 => return Reply::text(503, "").header("Retry-After", "1"),
                2 => return Reply::text(429, "").header("Retry-After", "1"),
                3 => return Reply::text(404, ""),
                4 => return self.hang(Reply::text(502, "")),
                _ => {}
            }
        }
        self.accepted.lock().unwrap().push(delivery.clone());
        Reply::text(200, "")
    }

    /// Make a part of a sync malformed that the messages do not need.
    pub fn malform(&self, sync: &mut Value) {
        match self.pick(8) {
            0 => sync["device_one_time_keys_count"] = Value::Null,
            1 => sync["rooms"]["join"]["no room id"] = json!({}),
            2 => sync["rooms"]["join"]["!broken:x"] = json!({"timeline": null, "summary": 7}),
            3 => sync["presence"] = json!([[[]]]),
            4 => sync["rooms"]["leave"] = json!("none"),
            _ => {}
        }
    }

    pub fn invite(&self, homeserver: &Homeserver, history: &History, number: usize) {
        let room = format!("!invited{number}:x");
        let mut invite = serde_json::Map::new();
        invite.insert(room.clone(), json!({"invite_state": null}));
        history.other_sync();
        homeserver.push(json!({"rooms": {"invite": invite}}));
        self.invited.lock().unwrap().push(room);
    }
}
