//! Saving: one session and a token, a busy sync, and 10 000 imported keys.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;
#[path = "save_changes/workload.rs"]
mod workload;

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
use criterion::Criterion;
use matrix_sdk_crypto::{
    olm::InboundGroupSession,
    store::{CryptoStoreError, DynCryptoStore, types::Changes},
};
use tokio::runtime::Runtime;
use workload::Workload;

const IMPORTED: usize = 10_000;

fn main() {
    let scale = Scale::of_this_run();
    let runtime = runtime();
    // Stores must be dropped inside the runtime.
    let _within = runtime.enter();
    let environment = runtime.block_on(Environment::new());
    let mut criterion = criterion(scale);
    syncs(&mut criterion, &runtime, &environment, scale);
    imports(&mut criterion, &runtime, &environment, scale);
    criterion.final_summary();
}

/// The saves of syncs. Each contender has a store of its own, which grows.
fn syncs(criterion: &mut Criterion, runtime: &Runtime, environment: &Environment, scale: Scale) {
    let workload = Workload::new();
    let stores: Vec<_> = Contender::all()
        .into_iter()
        .map(|contender| {
            let subject = runtime.block_on(environment.open(contender, &environment.new_name()));
            (contender, subject.store())
        })
        .collect();
    let rounds = scale.pick(1, 2, 10);
    interleaved(criterion, "save_changes/one session/1", rounds, &stores, |_, store, count| {
        let changes = (0..count).map(|_| workload.one_session()).collect();
        runtime.block_on(save(store, changes)).unwrap()
    });
    interleaved(criterion, "save_changes/busy sync/1", rounds, &stores, |_, store, count| {
        let changes = (0..count).map(|_| workload.busy_sync()).collect();
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
    // On the runtime's threads, as a bot's tasks are.
    tokio::spawn(saving).await.unwrap()
}

/// Imports the same keys into a new store each time.
fn imports(criterion: &mut Criterion, runtime: &Runtime, environment: &Environment, scale: Scale) {
    let sessions = workload::sessions(scale.pick(100, IMPORTED / 5, IMPORTED));
    let contenders: Vec<(Contender, ())> =
        Contender::all().into_iter().map(|contender| (contender, ())).collect();
    let rounds = scale.pick(1, 1, 3);
    let case = format!("save_changes/import/{}", sessions.len());
    interleaved(criterion, &case, rounds, &contenders, |contender, (), count| {
        (0..count)
            .map(|_| runtime.block_on(import(environment, *contender, sessions.clone())))
            .sum()
    });
}

async fn import(
    environment: &Environment,
    contender: Contender,
    sessions: Vec<InboundGroupSession>,
) -> Duration {
    let name = environment.new_name();
    let store = environment.open(contender, &name).await.store();
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
        Contender::Sqlite { .. } => std::fs::remove_dir_all(environment.path(&name)).unwrap(),
        // The next import starts with an empty table, as in a new file.
        Contender::Postgres { .. } | Contender::PlainCalls { .. } => {
            environment.execute("TRUNCATE matrix_sdk.megolm_inbound_sessions").await;
        }
    }
    time
}
