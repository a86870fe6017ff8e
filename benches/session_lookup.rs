//! Looking up a room key, the first step of decrypting a message.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;
#[path = "session_lookup/dataset.rs"]
mod dataset;
#[path = "session_lookup/measure_bare.rs"]
mod measure_bare;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bench::{
    Scale,
    contenders::{Contender, Environment},
    criterion_rounds::{criterion, interleaved},
    runtime,
};
use dataset::{Dataset, Key};
use matrix_sdk_crypto::store::DynCryptoStore;
use tokio::{runtime::Runtime, task::JoinSet};

fn main() {
    let scale = Scale::of_this_run();
    let runtime = runtime();
    // Stores must be dropped inside the runtime.
    let _within = runtime.enter();
    let environment = runtime.block_on(Environment::new());
    let mut criterion = criterion(scale);
    let mut dataset = runtime.block_on(Dataset::new(&environment));
    let sizes: &[usize] = scale.pick(&[100], &[1_000], &[1_000, 100_000, 1_000_000]);
    for &size in sizes {
        runtime.block_on(dataset.fill(&environment, size));
        let readers = runtime.block_on(readers(&environment, &dataset));
        for case in [Case::Hit, Case::Miss, Case::WrongRoom] {
            let keys: Arc<Vec<Key>> =
                Arc::new(dataset.keys.iter().map(|key| case.of(key)).collect());
            for callers in [1, 16] {
                let name = format!("session_lookup/{}/{size}/{callers}", case.name());
                let rounds = scale.pick(1, 1, 5);
                interleaved(&mut criterion, &name, rounds, &readers, |_, store, count| {
                    look_up(&runtime, store, &keys, callers, count, case == Case::Hit)
                });
            }
        }
        if size == sizes[0] {
            // On one thread: waking another would add noise.
            let thread = tokio::runtime::Builder::new_current_thread().enable_all().build();
            thread.unwrap().block_on(async {
                measure_bare::compare(&environment, &dataset, scale).await;
                measure_bare::distances(&environment, scale).await;
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
            // As long as an existing id.
            Self::Miss => key.session_id.replace_range(..4, "miss"),
            Self::WrongRoom => key.room_id = "!elsewhere:example.org".try_into().unwrap(),
        }
        key
    }
}

type Store = Arc<DynCryptoStore>;

/// A store on the dataset for each contender.
async fn readers(environment: &Environment, dataset: &Dataset) -> Vec<(Contender, Store)> {
    let mut readers = Vec::new();
    for contender in Contender::all() {
        readers.push((contender, dataset.reader(environment, contender).await));
    }
    readers
}

/// The time for `count` look-ups by `callers` concurrent tasks.
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
                    // A large stride, so that each look-up reads a different row.
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
