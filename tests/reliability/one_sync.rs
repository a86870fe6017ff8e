//! A sync with room keys is interrupted at a statement, by `kill -9` of the process or by dropping the future, and
//! replayed. Every room must be readable, with and without `atomically`.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use matrix_sdk_crypto::{EncryptionSyncChanges, OlmError, OlmMachine, store::MemoryStore};
use matrix_sdk_postgres::{PostgresCryptoStore, testing::PostgresServer};
use ruma::{
    OwnedRoomId, OwnedUserId, RoomId, UserId, events::AnyToDeviceEvent, serde::Raw, user_id,
};
use serde_json::{Value, json};
use test_support::{
    Mode,
    child_process::{self, ChildProcess},
    connect,
    directory::Directory,
    figure,
    machine::{Relay, SETTINGS, encrypt, open_machine},
    process::signal,
    proxy::{Action, Proxy},
    rounds, seeded,
};
use tokio::{sync::Notify, task::block_in_place};

const SENDERS: usize = 20;

pub type Events = Vec<Raw<AnyToDeviceEvent>>;

pub fn bob() -> &'static UserId {
    user_id!("@bob:example.org")
}

/// Bob's database before the sync, and the events that 20 senders have sent him since.
struct SyncReplay {
    server: PostgresServer,
    proxy: Proxy,
    events: Events,
    messages: Vec<(OwnedRoomId, Value)>,
    copies: usize,
}

impl SyncReplay {
    async fn new() -> Self {
        let server = PostgresServer::start().unwrap();
        connect(&server.url()).await.batch_execute("CREATE DATABASE original").await.unwrap();
        let proxy = Proxy::start(format!("127.0.0.1:{}", server.port()));
        let url = of_database(&server, "original");
        let mut relay = Relay::default();
        let store = Mode::Plain.open(&url, "bob").await;
        let machine = open_machine(bob(), store.clone()).await;
        relay.serve(&machine).await;
        store_closed(&store, machine).await;
        let mut messages = Vec::new();
        for number in 0..SENDERS {
            let sender = open_sender(&mut relay, number).await;
            let room_id = RoomId::parse(format!("!room{number}:example.org")).unwrap();
            relay.share(&sender, &room_id, &[bob()]).await;
            messages.push((room_id.clone(), encrypt(&sender, &room_id, "hello").await));
        }
        Self { server, proxy, events: relay.take(bob()), messages, copies: 0 }
    }

    /// Copies the database; returns the copy's URL, and the one through the proxy.
    async fn copy(&mut self) -> (String, String) {
        self.copies += 1;
        let name = format!("copy{}", self.copies);
        let sql = format!("CREATE DATABASE {name} TEMPLATE original");
        connect(&self.server.url()).await.batch_execute(&sql).await.unwrap();
        let url = of_database(&self.server, &name);
        let through = self.proxy.url(&url, self.server.port());
        (url, through)
    }

    /// Replays the sync to a machine that starts from the stored state; counts the readable rooms.
    async fn readable(&self, url: &str) -> usize {
        let store = Mode::Plain.open(url, "bob").await;
        let machine = open_machine(bob(), store.clone()).await;
        sync(&store, &machine, self.events.clone(), true).await.unwrap();
        let mut readable = 0;
        for (room_id, event) in &self.messages {
            readable += usize::from(can_read(&machine, room_id, event).await);
        }
        store_closed(&store, machine).await;
        readable
    }
}

fn of_database(server: &PostgresServer, name: &str) -> String {
    server
        .url()
        .replace("/postgres", &format!("/{name}"))
        .replace(&format!("/{name}:"), "/postgres:")
}

async fn store_closed(store: &PostgresCryptoStore, machine: OlmMachine) {
    use matrix_sdk_crypto::store::CryptoStore;
    drop(machine);
    store.close().await.unwrap();
}

pub async fn open_sender(relay: &mut Relay, number: usize) -> OlmMachine {
    let user_id: OwnedUserId = format!("@sender{number}:example.org").parse().unwrap();
    let sender = open_machine(&user_id, MemoryStore::new()).await;
    relay.serve(&sender).await;
    relay.track(&sender, &[bob()]).await;
    sender
}

pub async fn sync(
    store: &PostgresCryptoStore,
    machine: &OlmMachine,
    events: Events,
    atomically: bool,
) -> Result<(), OlmError> {
    let (devices, counts) = Default::default();
    let changes = EncryptionSyncChanges {
        to_device_events: events,
        changed_devices: &devices,
        one_time_keys_counts: &counts,
        unused_fallback_keys: None,
        next_batch_token: Some("s1".to_owned()),
    };
    let work = machine.receive_sync_changes(changes, &SETTINGS);
    match atomically {
        true => store.atomically::<_, OlmError>(work).await.map(drop),
        false => work.await.map(drop),
    }
}

pub async fn can_read(machine: &OlmMachine, room_id: &RoomId, event: &Value) -> bool {
    let event = serde_json::from_value(event.clone()).unwrap();
    machine.decrypt_room_event(&event, room_id, &SETTINGS).await.is_ok()
}

/// Runs in the child process: processes the sync in the task's file.
async fn sync_until_killed(file: &str) {
    let task: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let store = Mode::Plain.open(task["url"].as_str().unwrap(), "bob").await;
    let machine = open_machine(bob(), store.clone()).await;
    child_process::send("ready");
    let mut line = String::new();
    block_in_place(|| std::io::stdin().read_line(&mut line)).unwrap();
    let events = serde_json::from_value(task["events"].clone()).unwrap();
    sync(&store, &machine, events, task["atomically"].as_bool().unwrap()).await.unwrap();
    child_process::send("done");
}

/// Runs the sync in a child process, killed at the `k`-th statement; returns whether it was.
async fn killed_at(replay: &SyncReplay, through: &str, k: usize, atomically: bool) -> bool {
    const NAME: &str = "one_sync::a_process_killed_in_a_sync_loses_no_room_key";
    let directory = Directory::new();
    fs::create_dir(&directory.0).unwrap();
    let file = directory.0.join("task");
    let task = json!({ "url": through, "events": replay.events, "atomically": atomically });
    fs::write(&file, task.to_string()).unwrap();
    block_in_place(|| {
        let mut child = ChildProcess::start(NAME, file.to_str().unwrap());
        assert_eq!(child.receive().as_deref(), Some("ready"));
        let (pid, mut seen) = (child.child.id(), 0);
        replay.proxy.rule(move |message| {
            seen += usize::from(message.runs());
            if seen == k && message.runs() {
                signal(pid, "KILL");
            }
            if seen >= k { Action::CutBefore } else { Action::Pass }
        });
        use std::io::Write;
        child.child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let killed = child.receive().is_none();
        replay.proxy.rule(|_| Action::Pass);
        killed
    })
}

/// The statements at which a sync is interrupted: all of them in the long run.
async fn cuts(replay: &mut SyncReplay, rng: &mut fastrand::Rng, atomically: bool) -> Vec<usize> {
    let (_, through) = replay.copy().await;
    let statements = Arc::new(AtomicUsize::new(0));
    assert!(!dropped_at(replay, &through, (usize::MAX, &statements), atomically).await);
    let all: Vec<usize> = (1..=statements.load(SeqCst)).collect();
    assert!(all.len() > 10, "a sync with {SENDERS} room keys took {} statements", all.len());
    let mut chosen = rng.choose_multiple(all.iter().copied(), rounds(8, all.len()));
    chosen.sort_unstable();
    chosen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_in_a_sync_loses_no_room_key() {
    if let Some(file) = child_process::task() {
        return sync_until_killed(&file).await;
    }
    let mut rng = seeded("process killed in a sync");
    let mut replay = SyncReplay::new().await;
    for (atomically, how) in [(true, "within atomically()"), (false, "without atomically()")] {
        let mut kills = 0;
        for k in cuts(&mut replay, &mut rng, atomically).await {
            let (url, through) = replay.copy().await;
            kills += usize::from(killed_at(&replay, &through, k, atomically).await);
            assert_eq!(replay.readable(&url).await, SENDERS, "{how}, killed at statement {k}");
        }
        // The number of statements varies a little with the machine's speed.
        assert!(kills > 3, "{how}, too few syncs were killed before their end");
        figure(
            &format!("sync with 20 room keys, {how}, killed (kill -9) at a statement, times"),
            kills,
        );
    }
    figure(
        "rooms readable after the same sync was replayed, always",
        format!("{SENDERS} of {SENDERS}"),
    );
}

/// Drops the sync's future at the `k`-th statement; returns whether it did.
async fn dropped_at(
    replay: &SyncReplay,
    through: &str,
    (k, seen): (usize, &Arc<AtomicUsize>),
    atomically: bool,
) -> bool {
    let store = Mode::Plain.open(through, "bob").await;
    let machine = open_machine(bob(), store.clone()).await;
    let now = Arc::new(Notify::new());
    let (signal, seen) = (now.clone(), seen.clone());
    replay.proxy.rule(move |message| {
        if message.runs() && seen.fetch_add(1, SeqCst) + 1 == k {
            signal.notify_one();
        }
        Action::Pass
    });
    let dropped = tokio::select! {
        biased;
        () = now.notified() => true,
        result = sync(&store, &machine, replay.events.clone(), atomically) => {
            result.unwrap();
            false
        }
    };
    replay.proxy.rule(|_| Action::Pass);
    store_closed(&store, machine).await;
    dropped
}

#[tokio::test(flavor = "multi_thread")]
async fn a_future_dropped_in_a_sync_loses_no_room_key() {
    let mut rng = seeded("future dropped in a sync");
    let mut replay = SyncReplay::new().await;
    for (atomically, how) in [(true, "within atomically()"), (false, "without atomically()")] {
        let mut drops = 0;
        for k in cuts(&mut replay, &mut rng, atomically).await {
            let (url, through) = replay.copy().await;
            let cut = (k, &Arc::default());
            drops += usize::from(dropped_at(&replay, &through, cut, atomically).await);
            assert_eq!(replay.readable(&url).await, SENDERS, "{how}, dropped at statement {k}");
        }
        assert!(drops > 3, "{how}, too few syncs were dropped before their end");
        figure(&format!("sync with 20 room keys, {how}, dropped at a statement, times"), drops);
    }
}
