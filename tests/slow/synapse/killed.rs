//! A client that is killed in the middle of its syncs reads everything that was sent to it.
//!
//! Every round some devices that Bob has never heard of share a key with him each. His process is killed
//! at random while it works through what the homeserver holds for him, and started again, until all is read.

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
    again::{self, Again},
    figure, milliseconds,
    proxy::{Action, Proxy},
    rounds, seeded,
};
use tokio::task::block_in_place;

use super::{bodies, builder, client, login, ran_beside_synapse, room_of, sync};

/// Devices that send in a round.
const SENDERS: usize = 8;

const DISTANCE: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Way {
    Sync,
    SlidingSync,
}

/// What Bob's process needs to know.
#[derive(Serialize, Deserialize)]
struct Task {
    way: Way,
    url: String,
    session: MatrixSession,
    room: OwnedRoomId,
    /// How many messages it reads.
    newest: usize,
}

#[tokio::test(flavor = "multi_thread")]
async fn in_sync() {
    if !ran_beside_synapse("synapse::killed::in_sync") {
        nothing_is_lost(Way::Sync).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_sliding_sync() {
    if !ran_beside_synapse("synapse::killed::in_sliding_sync") {
        nothing_is_lost(Way::SlidingSync).await;
    }
}

async fn nothing_is_lost(way: Way) {
    let mut rng = seeded(&format!("{way:?}"));
    let server = PostgresServer::start().unwrap();
    // A database some way off, so that a kill often comes between two saves.
    let proxy = Proxy::start(format!("127.0.0.1:{}", server.port()));
    proxy.rule(|_| Action::Delay(DISTANCE));
    let url = proxy.url(&server.url(), server.port());
    let (creator, bob) = (sender().await, client(&url, "bob").await);
    login(&bob, "BOB").await;
    let room = room_of(&creator, &bob).await;
    // Uploads his keys.
    sync_twice(way, &bob).await;
    let session = bob.matrix_auth().session().unwrap();
    drop(bob);
    let mut task = Task { way, url, session, room, newest: SENDERS };

    let (mut sent, mut killed, mut in_the_middle) = (Vec::new(), 0, 0);
    // How long the sync takes that brings the keys.
    let mut lasts = Duration::ZERO;
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
        // The first round measures, and kills nobody.
        let kills = if lasts.is_zero() { 0 } else { rng.usize(1..=5) };
        for _ in 0..kills {
            let pause = milliseconds(&mut rng, u64::try_from(lasts.as_millis()).unwrap() + 1);
            let child = Child::syncing(&task);
            tokio::time::sleep(pause).await;
            killed += 1;
            in_the_middle += usize::from(!child.kill());
        }
        let mut child = Child::syncing(&task);
        lasts = child.received();
        assert_eq!(child.read(), sent[sent.len() - SENDERS..], "{way:?}, {round}");
        for sender in senders {
            sender.matrix_auth().logout().await.unwrap();
        }
    }
    task.newest = sent.len();
    let mut child = Child::syncing(&task);
    child.received();
    assert_eq!(child.read(), sent, "{way:?}, everything");
    figure(
        &format!("clients killed ({way:?}) / in the middle of a sync / room keys sent / lost"),
        format!("{killed} / {in_the_middle} / {} / 0", sent.len()),
    );
}

/// A device of Alice's that forgets everything.
async fn sender() -> Client {
    let config = StoreConfig::new(CrossProcessLockConfig::SingleProcess);
    let client = builder().store_config(config).build().await.unwrap();
    login(&client, "ALICE").await;
    client
}

/// Bob's process.
struct Child(Again, Instant);

impl Child {
    /// One that has just begun to sync.
    fn syncing(task: &Task) -> Self {
        let mut again =
            Again::start("synapse::killed::child", &serde_json::to_string(task).unwrap());
        block_in_place(|| assert_eq!(again.hear().unwrap(), "syncing"));
        Self(again, Instant::now())
    }

    fn received(&mut self) -> Duration {
        block_in_place(|| assert_eq!(self.0.hear().unwrap(), "received"));
        self.1.elapsed()
    }

    fn read(&mut self) -> Vec<String> {
        block_in_place(|| serde_json::from_str(&self.0.hear().unwrap()).unwrap())
    }

    /// Whether it had received everything before.
    fn kill(self) -> bool {
        block_in_place(|| self.0.kill()).iter().any(|said| said == "received")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let Some(task) = again::task() else { return };
    let task: Task = serde_json::from_str(&task).unwrap();
    let bob = client(&task.url, "bob").await;
    bob.matrix_auth().restore_session(task.session, RoomLoadSettings::default()).await.unwrap();
    bob.encryption().wait_for_e2ee_initialization_tasks().await;
    again::say("syncing");
    sync_twice(task.way, &bob).await;
    let read = bodies(&bob.get_room(&task.room).unwrap(), task.newest).await;
    again::say(serde_json::to_string(&read).unwrap());
}

/// The first sync brings the keys, the second tells the homeserver that they have arrived.
async fn sync_twice(way: Way, bob: &Client) {
    if way == Way::SlidingSync {
        return sliding_sync_twice(bob).await;
    }
    sync(bob).await;
    again::say("received");
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
    again::say("received");
    syncs.next().await.unwrap().unwrap();
}
