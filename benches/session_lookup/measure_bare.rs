//! Measures [`Comparison`], and the round trip of each distance.

use std::{collections::BTreeMap, time::Instant};
use test_support::connect;

use crate::{
    bench::{
        Scale,
        bare::Comparison,
        contenders::{Contender, DISTANCES, Distance, Environment},
        results,
        statistics::median,
    },
    dataset::{Dataset, Key, name},
};
use matrix_sdk_crypto::store::DynCryptoStore;
use matrix_sdk_postgres::PostgresStores;

pub async fn compare(environment: &Environment, dataset: &Dataset, scale: Scale) {
    let unix = Contender::Postgres { distance: Distance::Unix, encrypted: false };
    let store = dataset.reader(environment, unix).await;
    let memory = dataset.reader(environment, Contender::Memory).await;
    let client = connect(&environment.url(Distance::Unix)).await;
    let texts = PostgresStores::statement_texts("matrix_sdk").unwrap();
    let (_, sql, types) =
        texts.into_iter().find(|(name, ..)| *name == "megolm_inbound_sessions.get").unwrap();
    let statement = client.prepare_typed(&sql, &types).await.unwrap();
    let account = "SELECT id FROM matrix_sdk.accounts WHERE name = $1";
    let account: i64 = client.query_one(account, &[&name(unix)]).await.unwrap().get(0);

    let (rounds, count) = scale.pick((1, 10), (51, 200), (101, 1_000));
    let keys: Vec<Key> = dataset.keys.iter().cycle().take(count).cloned().collect();
    let in_memory = async |key: &Key| found(&*memory, key).await;
    let in_store = async |key: &Key| found(&*store, key).await;
    let on_the_wire = async |key: &Key| {
        let (room_id, session_id) = (key.room_id.as_bytes(), key.session_id.as_bytes());
        let row = client.query_one(&statement, &[&account, &room_id, &session_id]).await.unwrap();
        assert!(row.get::<_, &[u8]>(0).len() > 100);
    };
    let both = async |key: &Key| {
        on_the_wire(key).await;
        in_memory(key).await;
    };
    let mut comparison = Comparison::default();
    for _ in 0..rounds {
        comparison.store.push(time(&keys, &in_store).await);
        comparison.floor.push(time(&keys, &both).await);
        comparison.bare.push(time(&keys, &on_the_wire).await);
        comparison.decoding.push(time(&keys, &in_memory).await);
    }
    println!("{}", comparison.summary());
    results::write("bare", &comparison);
}

async fn found(store: &DynCryptoStore, key: &Key) {
    let session = store.get_inbound_group_session(&key.room_id, &key.session_id).await;
    assert!(session.unwrap().is_some());
}

/// Seconds per key.
async fn time(keys: &[Key], look_up: &impl AsyncFn(&Key)) -> f64 {
    let started = Instant::now();
    for key in keys {
        look_up(key).await;
    }
    started.elapsed().as_secs_f64() / keys.len() as f64
}

/// Measures the seconds of a round trip.
pub async fn distances(environment: &Environment, scale: Scale) {
    let count = scale.pick(10, 200, 1_000);
    let mut seconds = BTreeMap::new();
    for distance in DISTANCES {
        let client = connect(&environment.url(distance)).await;
        let statement = client.prepare("SELECT 1").await.unwrap();
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let started = Instant::now();
            client.query_one(&statement, &[]).await.unwrap();
            times.push(started.elapsed().as_secs_f64());
        }
        seconds.insert(distance.name(), median(times));
    }
    results::write("distances", &seconds);
}
