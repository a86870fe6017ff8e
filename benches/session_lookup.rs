//! Looking a room key up: what every message to decrypt costs first.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;
#[path = "session_lookup/measure_bare.rs"]
mod measure_bare;
#[path = "session_lookup/shelf.rs"]
mod shelf;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bench::{
    Scale,
    contenders::{Contender, Place},
    criterion_rounds::{criterion, in_turns},
    runtime,
};
use matrix_sdk_crypto::store::DynCryptoStore;
use shelf::{Key, Shelf};
use tokio::{runtime::Runtime, task::JoinSet};

fn main() {
    let scale = Scale::of_this_run();
    let runtime = runtime();
    // Stores are dropped within it.
    let _within = runtime.enter();
    let place = runtime.block_on(Place::new());
    let mut criterion = criterion(scale);
    let mut shelf = runtime.block_on(Shelf::new(&place));
    let sizes: &[usize] = scale.pick(&[100], &[1_000], &[1_000, 100_000, 1_000_000]);
    for &size in sizes {
        runtime.block_on(shelf.fill(&place, size));
        let readers = runtime.block_on(readers(&place, &shelf));
        for case in [Case::Hit, Case::Miss, Case::WrongRoom] {
            let keys: Arc<Vec<Key>> = Arc::new(shelf.keys.iter().map(|key| case.of(key)).collect());
            for callers in [1, 16] {
                let name = format!("session_lookup/{}/{size}/{callers}", case.name());
                let rounds = scale.pick(1, 1, 5);
                in_turns(&mut criterion, &name, rounds, &readers, |_, store, count| {
                    look_up(&runtime, store, &keys, callers, count, case == Case::Hit)
                });
            }
        }
        if size == sizes[0] {
            // On one thread: what waking another costs is noise here.
            let thread = tokio::runtime::Builder::new_current_thread().enable_all().build();
            thread.unwrap().block_on(async {
                measure_bare::compare(&place, &shelf, scale).await;
                measure_bare::distances(&place, scale).await;
            });
        }
    }
    criterion.final_summary();
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Hit,
    Miss,
    WrongRoom,
}

impl Case {
    fn name(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::WrongRoom => "wrong room",
        }
    }

    fn of(self, key: &Key) -> Key {
        let mut key = key.clone();
        match self {
            Self::Hit => {}
            // As long as an id that is there.
            Self::Miss => key.session_id.replace_range(..4, "miss"),
            Self::WrongRoom => key.room_id = "!elsewhere:example.org".try_into().unwrap(),
        }
        key
    }
}

type Store = Arc<DynCryptoStore>;

/// Every contender on what the shelf holds.
async fn readers(place: &Place, shelf: &Shelf) -> Vec<(Contender, Store)> {
    let mut readers = Vec::new();
    for contender in Contender::all() {
        readers.push((contender, shelf.reader(place, contender).await));
    }
    readers
}

/// The time for `count` look-ups, by so many callers at once.
fn look_up(
    runtime: &Runtime,
    store: &Store,
    keys: &Arc<Vec<Key>>,
    callers: u64,
    count: u64,
    found: bool,
) -> Duration {
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        let started = Instant::now();
        for caller in 0..callers.min(count) {
            let share = count / callers + u64::from(caller < count % callers);
            let (store, keys) = (store.clone(), keys.clone());
            tasks.spawn(async move {
                for number in 0..share {
                    // Strides across the keys: a different row each time.
                    let index = (caller * 104_729 + number * 7_919) as usize % keys.len();
                    let Key { room_id, session_id } = &keys[index];
                    let session = store.get_inbound_group_session(room_id, session_id).await;
                    assert_eq!(session.unwrap().is_some(), found);
                }
            });
        }
        while let Some(result) = tasks.join_next().await {
            result.unwrap();
        }
        started.elapsed()
    })
}
