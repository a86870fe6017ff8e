//! Saving: one session and a token, a busy sync, and 10 000 imported keys.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;
#[path = "save_changes/supply.rs"]
mod supply;

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
use criterion::Criterion;
use matrix_sdk_crypto::{
    olm::InboundGroupSession,
    store::{CryptoStoreError, DynCryptoStore, types::Changes},
};
use supply::Supply;
use tokio::runtime::Runtime;

const IMPORTED: usize = 10_000;

fn main() {
    let scale = Scale::of_this_run();
    let runtime = runtime();
    // Stores are dropped within it.
    let _within = runtime.enter();
    let place = runtime.block_on(Place::new());
    let mut criterion = criterion(scale);
    syncs(&mut criterion, &runtime, &place, scale);
    imports(&mut criterion, &runtime, &place, scale);
    criterion.final_summary();
}

/// What syncs save. Each contender has a store of its own, which grows.
fn syncs(criterion: &mut Criterion, runtime: &Runtime, place: &Place, scale: Scale) {
    let supply = Supply::new();
    let stores: Vec<_> = Contender::all()
        .into_iter()
        .map(|contender| {
            let subject = runtime.block_on(place.open(contender, &place.new_name()));
            (contender, subject.store())
        })
        .collect();
    let rounds = scale.pick(1, 2, 10);
    in_turns(criterion, "save_changes/one session/1", rounds, &stores, |_, store, count| {
        let changes = (0..count).map(|_| supply.one_session()).collect();
        runtime.block_on(save(store, changes)).unwrap()
    });
    in_turns(criterion, "save_changes/busy sync/1", rounds, &stores, |_, store, count| {
        let changes = (0..count).map(|_| supply.busy_sync()).collect();
        runtime.block_on(save(store, changes)).unwrap()
    });
}

async fn save(
    store: &Arc<DynCryptoStore>,
    changes: Vec<Changes>,
) -> Result<Duration, CryptoStoreError> {
    let store = store.clone();
    let saving = async move {
        let started = Instant::now();
        for changes in changes {
            store.save_changes(changes).await?;
        }
        Ok(started.elapsed())
    };
    // As a bot's tasks are, on the runtime's threads.
    tokio::spawn(saving).await.unwrap()
}

/// The same keys into a new store each time.
fn imports(criterion: &mut Criterion, runtime: &Runtime, place: &Place, scale: Scale) {
    let sessions = supply::sessions(scale.pick(100, IMPORTED / 5, IMPORTED));
    let contenders: Vec<(Contender, ())> =
        Contender::all().into_iter().map(|contender| (contender, ())).collect();
    let rounds = scale.pick(1, 1, 3);
    let case = format!("save_changes/import/{}", sessions.len());
    in_turns(criterion, &case, rounds, &contenders, |contender, (), count| {
        (0..count).map(|_| runtime.block_on(import(place, *contender, sessions.clone()))).sum()
    });
}

async fn import(
    place: &Place,
    contender: Contender,
    sessions: Vec<InboundGroupSession>,
) -> Duration {
    let name = place.new_name();
    let store = place.open(contender, &name).await.store();
    let saving = tokio::spawn(async move {
        let started = Instant::now();
        store.save_inbound_group_sessions(sessions, None).await.unwrap();
        let time = started.elapsed();
        store.close().await.unwrap();
        time
    });
    let time = saving.await.unwrap();
    match contender {
        Contender::Memory => {}
        Contender::Sqlite { .. } => std::fs::remove_dir_all(place.path(&name)).unwrap(),
        // The next one finds an empty table, as in a new file.
        Contender::Postgres { .. } => {
            place.execute("TRUNCATE matrix_sdk.megolm_inbound_sessions").await;
        }
    }
    time
}
