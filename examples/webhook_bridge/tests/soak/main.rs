//! Soak test with random faults: homeserver and webhook fail, bridge and database are killed. Run it
//! with `scripts/soak`; `cargo test` does not run it by default.
//!
//! `SOAK_SECONDS` and `SOAK_SEED` set duration and seed; `SOAK_CHART` is a file for a chart (SVG). It checks that every message was delivered
//! under its id and in order within its room, that no replay was delivered, that every invitation was
//! accepted, and that after each period of faults all rooms recovered.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod chaos;
mod chart;
mod history;
// Not all of it is used here.
#[allow(dead_code, unused_imports)]
#[path = "../it/support/mod.rs"]
mod support;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use fastrand::Rng;
use matrix_sdk_postgres::testing::PostgresServer;
use serde_json::json;
use support::{Bridge, Homeserver, MatrixUser, Webhook};
use tokio::time::sleep;

use self::{chaos::Chaos, chart::Chart, history::History};

const BOT: &str = "@bot:example.org";
const ENCRYPTED: [&str; 3] = ["!secret0:x", "!secret1:x", "!secret2:x"];
const PLAIN: [&str; 3] = ["!plain0:x", "!plain1:x", "!plain2:x"];
/// The duration of faults, and the time limit for the recovery after them.
const FAULTS: Duration = Duration::from_secs(20);
const RECOVERY: Duration = Duration::from_secs(90);

struct Soak {
    rng: Rng,
    homeserver: Arc<Homeserver>,
    webhook: Arc<Webhook>,
    postgres: Option<PostgresServer>,
    url: String,
    bridge: Bridge,
    history: Arc<History>,
    chaos: Arc<Chaos>,
    chart: Chart,
    users: Vec<MatrixUser>,
    /// The (user, room) pairs whose current room key was sent to the bot.
    keys: HashMap<(usize, &'static str), bool>,
    sent: usize,
    kills: usize,
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn start(homeserver: &Homeserver, webhook: &Webhook, url: &str) -> Bridge {
    Bridge::start(&[
        ("MATRIX_HOMESERVER", &homeserver.url),
        ("MATRIX_USER", BOT),
        ("MATRIX_PASSWORD", "password"),
        ("STORE_PASSPHRASE", "a passphrase"),
        ("WEBHOOK_URL", &webhook.url),
        ("DATABASE_URL", url),
        ("BRIDGE_TAKEOVER", "immediate"),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn soak() {
    let seed = number("SOAK_SEED").unwrap_or_else(|| fastrand::u64(..));
    let length = Duration::from_secs(number("SOAK_SECONDS").unwrap_or(60));
    println!("SOAK_SEED={seed} SOAK_SECONDS={}", length.as_secs());
    let (homeserver, webhook) = (Homeserver::start().await, Webhook::start().await);
    let postgres = PostgresServer::builder().durable(true).start().unwrap();
    let url = postgres.url();
    let bridge = start(&homeserver, &webhook, &url);
    bridge.ready().await;
    let history = Arc::new(History::default());
    let chaos = Chaos::install(seed, &homeserver, &webhook, &history);
    let mut users = Vec::new();
    for name in ["@alice:x", "@bob:y", "@carol:z"] {
        users.push(MatrixUser::new(&homeserver, name).await);
    }
    let chart = Chart::begin(&history, &chaos);
    let mut soak = Soak {
        rng: Rng::with_seed(seed),
        homeserver,
        webhook,
        postgres: Some(postgres),
        url,
        bridge,
        history,
        chaos,
        chart,
        users,
        keys: HashMap::new(),
        sent: 0,
        kills: 0,
    };
    soak.open_rooms();
    let began = Instant::now();
    let mut rounds = 0;
    while began.elapsed() < length {
        rounds += 1;
        soak.faults().await;
        soak.recover().await;
        println!(
            "{} s: round {rounds}, {} messages, {} kills, {} calls of the webhook",
            began.elapsed().as_secs(),
            soak.sent,
            soak.kills,
            soak.webhook.requests.all().len()
        );
    }
    soak.verify().await;
    if let Some(path) = std::env::var_os("SOAK_CHART") {
        soak.chart.draw(path.as_ref());
    }
}

impl Soak {
    fn open_rooms(&self) {
        for room in PLAIN {
            self.history.add(room, support::member(BOT));
        }
        for room in ENCRYPTED {
            self.history.add(room, support::member(BOT));
            self.history.add(
                room,
                json!({"event_id": format!("$encryption-{room}"), "sender": "@alice:x",
                    "type": "m.room.encryption", "state_key": "", "origin_server_ts": 1,
                    "content": {"algorithm": "m.megolm.v1.aes-sha2"}}),
            );
            for user in &self.users {
                let mut member = support::member(user.id.as_str());
                member["event_id"] = json!(format!("$member-{room}-{}", user.id));
                self.history.add(room, member);
            }
        }
        self.homeserver.push(self.history.news(&mut Vec::new(), false));
    }

    /// Switch all faults on, and send messages meanwhile.
    async fn faults(&mut self) {
        self.chaos.on();
        self.chart.faults_began();
        let end = Instant::now() + FAULTS;
        while Instant::now() < end {
            self.send_messages().await;
            sleep(Duration::from_millis(self.rng.u64(10..300))).await;
            match self.rng.u32(0..150) {
                0 => self.kill_bridge().await,
                1 => self.kill_postgres().await,
                2..=4 => self.chaos.invite(&self.homeserver, &self.history, self.sent),
                _ => {}
            }
        }
        self.chaos.off();
        self.chart.faults_ended();
    }

    async fn send_messages(&mut self) {
        let mut keys = Vec::new();
        for _ in 0..self.rng.usize(1..4) {
            self.send_message(&mut keys).await;
        }
        // A limited sync creates a gap.
        let limited = self.rng.u32(0..10) == 0;
        let mut news = self.history.news(&mut keys, limited);
        self.chaos.malform(&mut news);
        self.homeserver.push(news);
    }

    async fn send_message(&mut self, keys: &mut Vec<serde_json::Value>) {
        self.sent += 1;
        let (id, body) = (format!("$m-{}", self.sent), format!("message {}", self.sent));
        if self.rng.bool() {
            let room = PLAIN[self.rng.usize(..PLAIN.len())];
            self.history.message(room, support::plain(&id, &body), &body);
            return;
        }
        let room = ENCRYPTED[self.rng.usize(..ENCRYPTED.len())];
        let index = self.rng.usize(..self.users.len());
        let user = &self.users[index];
        if self.rng.u32(0..20) == 0 {
            user.rotate(room).await;
            self.keys.remove(&(index, room));
        }
        if self.keys.insert((index, room), true).is_none() {
            keys.extend(user.room_key(room).await);
        }
        let event = user.encrypt(room, &id, &body).await;
        if self.rng.u32(0..20) == 0 {
            let mut replay = event.clone();
            replay["event_id"] = json!(format!("$replay-{}", self.sent));
            self.history.message(room, event, &body);
            self.history.add(room, replay);
        } else {
            self.history.message(room, event, &body);
        }
    }

    async fn kill_bridge(&mut self) {
        self.kills += 1;
        self.chart.kill();
        self.bridge.kill().await;
        self.bridge = start(&self.homeserver, &self.webhook, &self.url);
    }

    async fn kill_postgres(&mut self) {
        self.kills += 1;
        self.chart.kill();
        let mut postgres = self.postgres.take().unwrap();
        let again = tokio::task::spawn_blocking(move || {
            postgres.kill();
            std::thread::sleep(Duration::from_secs(1));
            postgres.start_again().unwrap();
            postgres
        });
        self.postgres = Some(again.await.unwrap());
    }

    /// Without faults, wait until all messages have been delivered.
    async fn recover(&mut self) {
        let mut keys = Vec::new();
        for room in PLAIN {
            self.sent += 1;
            let (id, body) = (format!("$m-{}", self.sent), format!("message {}", self.sent));
            self.history.message(room, support::plain(&id, &body), &body);
        }
        self.homeserver.push(self.history.news(&mut keys, false));
        let began = Instant::now();
        loop {
            let missing = self.history.missing(&self.chaos.accepted());
            if missing.is_empty() {
                return;
            }
            if began.elapsed() > RECOVERY {
                panic!(
                    "no recovery within {RECOVERY:?} without faults: {} messages are missing: {:?}\n{}",
                    missing.len(),
                    &missing[..missing.len().min(10)],
                    self.bridge.log()
                );
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn verify(&mut self) {
        let accepted = self.chaos.accepted();
        self.history.check(&accepted);
        let invited = self.chaos.invited();
        for room in &invited {
            let path = format!("rooms/{room}/join");
            let joined = self.homeserver.calls.count(|call| call.is("POST", &path));
            assert!(joined > 0, "the invitation to {room} was forgotten");
        }
        assert_eq!(self.bridge.stop().await, 0);
        let ids: std::collections::HashSet<_> = accepted.iter().map(|got| &got.key).collect();
        println!(
            "{} messages, each delivered under its id and in order, {} of them more than once; \
             {} kills, {} invitations",
            self.sent,
            accepted.len() - ids.len(),
            self.kills,
            invited.len()
        );
    }
}
