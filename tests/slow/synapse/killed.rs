//! A client that is killed in the middle of its syncs reads all messages that were sent to it.
//!
//! In every round several new devices each share a room key with Bob. His process is killed at random moments of
//! the sync with these keys and restarted, until a sync ends.

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::join_all};
use matrix_sdk::{
    Client, SlidingSyncList, SlidingSyncMode,
    authentication::matrix::MatrixSession,
    config::StoreConfig,
    cross_process_lock::CrossProcessLockConfig,
    ruma::{
        OwnedRoomId,
        api::client::sync::sync_events::v5::request::{E2EE, ToDevice},
        events::{StateEventType, room::message::RoomMessageEventContent},
    },
    sliding_sync::PollTimeout,
    store::RoomLoadSettings,
};
use matrix_sdk_postgres::testing::PostgresServer;
use serde::{Deserialize, Serialize};
use test_support::{
    child_process::{self, ChildProcess},
    figure, milliseconds,
    proxy::{Action, Proxy},
    rounds, seeded,
};
use tokio::task::block_in_place;

use super::{bodies, builder, client, login, ran_with_synapse, room_of, sync};

/// Number of sending devices in a round.
const SENDERS: usize = 8;

const LATENCY: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum SyncKind {
    Sync,
    SlidingSync,
}

/// The parameters of Bob's process.
#[derive(Serialize, Deserialize)]
struct Task {
    sync_kind: SyncKind,
    url: String,
    session: MatrixSession,
    room: OwnedRoomId,
    /// Number of the newest messages that it reads.
    newest: usize,
}

#[tokio::test(flavor = "multi_thread")]
async fn in_sync() {
    if !ran_with_synapse("synapse::killed::in_sync") {
        nothing_is_lost(SyncKind::Sync).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_sliding_sync() {
    if !ran_with_synapse("synapse::killed::in_sliding_sync") {
        nothing_is_lost(SyncKind::SlidingSync).await;
    }
}

async fn nothing_is_lost(sync_kind: SyncKind) {
    let mut rng = seeded(&format!("{sync_kind:?}"));
    let server = PostgresServer::start().unwrap();
    // A latency between store and database, so that a kill is often between two saves.
    let proxy = Proxy::start(format!("127.0.0.1:{}", server.port()));
    proxy.rule(|_| Action::Delay(LATENCY));
    let url = proxy.url(&server.url(), server.port());
    let (creator, bob) = (sender().await, client(&url, "bob").await);
    login(&bob, "BOB").await;
    let room = room_of(&creator, &bob).await;
    // Uploads Bob's keys.
    sync_twice(sync_kind, &bob).await;
    let session = bob.matrix_auth().session().unwrap();
    drop(bob);
    let mut task = Task { sync_kind, url, session, room, newest: SENDERS };

    let (mut sent, mut killed, mut in_the_middle) = (Vec::new(), 0, 0);
    // The duration of the sync with the keys.
    let mut sync_duration = Duration::ZERO;
    while killed < rounds(2, 50) {
        let round = format!("round {}", sent.len() / SENDERS);
        let senders = join_all((0..SENDERS).map(|_| sender())).await;
        for (number, sender) in senders.iter().enumerate() {
            let body = format!("{round}, device {number}");
            sync(sender).await;
            let content = RoomMessageEventContent::text_plain(body.as_str());
            sender.get_room(&task.room).unwrap().send(content).await.unwrap();
            sent.push(body);
        }
        // The first round measures the duration, without kills.
        let kills = if sync_duration.is_zero() { 0 } else { rng.usize(1..=5) };
        for _ in 0..kills {
            let pause =
                milliseconds(&mut rng, u64::try_from(sync_duration.as_millis()).unwrap() + 1);
            let child = Child::syncing(&task);
            tokio::time::sleep(pause).await;
            killed += 1;
            in_the_middle += usize::from(!child.kill());
        }
        let mut child = Child::syncing(&task);
        sync_duration = child.received();
        assert_eq!(child.read(), sent[sent.len() - SENDERS..], "{sync_kind:?}, {round}");
        for sender in senders {
            sender.matrix_auth().logout().await.unwrap();
        }
    }
    task.newest = sent.len();
    let mut child = Child::syncing(&task);
    child.received();
    assert_eq!(child.read(), sent, "{sync_kind:?}, all messages");
    figure(
        &format!(
            "clients killed ({sync_kind:?}) / in the middle of a sync / room keys sent / lost"
        ),
        format!("{killed} / {in_the_middle} / {} / 0", sent.len()),
    );
}

/// A new device of Alice, with a store in memory.
async fn sender() -> Client {
    let config = StoreConfig::new(CrossProcessLockConfig::SingleProcess);
    let client = builder().store_config(config).build().await.unwrap();
    login(&client, "ALICE").await;
    client
}

/// Bob's process.
struct Child(ChildProcess, Instant);

impl Child {
    /// Starts a process, and waits until it begins to sync.
    fn syncing(task: &Task) -> Self {
        let mut process =
            ChildProcess::start("synapse::killed::child", &serde_json::to_string(task).unwrap());
        block_in_place(|| assert_eq!(process.receive().unwrap(), "syncing"));
        Self(process, Instant::now())
    }

    fn received(&mut self) -> Duration {
        block_in_place(|| assert_eq!(self.0.receive().unwrap(), "received"));
        self.1.elapsed()
    }

    fn read(&mut self) -> Vec<String> {
        block_in_place(|| serde_json::from_str(&self.0.receive().unwrap()).unwrap())
    }

    /// Kills the process; returns whether the sync had ended.
    fn kill(self) -> bool {
        block_in_place(|| self.0.kill()).iter().any(|line| line == "received")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let Some(task) = child_process::task() else { return };
    let task: Task = serde_json::from_str(&task).unwrap();
    let bob = client(&task.url, "bob").await;
    bob.matrix_auth().restore_session(task.session, RoomLoadSettings::default()).await.unwrap();
    bob.encryption().wait_for_e2ee_initialization_tasks().await;
    child_process::send("syncing");
    sync_twice(task.sync_kind, &bob).await;
    let read = bodies(&bob.get_room(&task.room).unwrap(), task.newest).await;
    child_process::send(serde_json::to_string(&read).unwrap());
}

/// The first sync receives the keys, the second one acknowledges them to the homeserver.
async fn sync_twice(sync_kind: SyncKind, bob: &Client) {
    if sync_kind == SyncKind::SlidingSync {
        return sliding_sync_twice(bob).await;
    }
    sync(bob).await;
    child_process::send("received");
    sync(bob).await;
}

async fn sliding_sync_twice(bob: &Client) {
    let list = SlidingSyncList::builder("all")
        .sync_mode(SlidingSyncMode::new_selective().add_range(0..=9))
        .requires_timeout(|_| PollTimeout::Some(0))
        .required_state(vec![(StateEventType::RoomEncryption, String::new())]);
    let (mut e2ee, mut to_device) = (E2EE::default(), ToDevice::default());
    (e2ee.enabled, to_device.enabled) = (Some(true), Some(true));
    let sync = bob
        .sliding_sync("test")
        .unwrap()
        .add_list(list)
        .with_e2ee_extension(e2ee)
        .with_to_device_extension(to_device)
        .poll_timeout(Duration::ZERO)
        .build()
        .await
        .unwrap();
    let mut syncs = pin!(sync.sync());
    syncs.next().await.unwrap().unwrap();
    child_process::send("received");
    syncs.next().await.unwrap().unwrap();
}
