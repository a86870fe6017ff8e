//! Point reads of many tasks: the store's shared connections, compared with a checkout for each read.
//!
//! `cargo bench --all-features --bench readers`; with `--test` once and quickly. Contenders
//! alternate, and the medians of the rounds are printed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;

use std::{future::Future, time::Instant};

use bench::{Scale, read_rates::ReadRates, results};
use deadpool_postgres::Pool;
use futures_util::future::join_all;
use matrix_sdk_crypto::{olm::OlmMessageHash, store::CryptoStore};
use matrix_sdk_postgres::{
    OwnershipSettings, PoolSettings, PostgresCryptoStore, PostgresStoreConfig, PostgresStores,
    deadpool_postgres, testing,
};
use tokio_postgres::{NoTls, types::Type};

const STATEMENT: &str = "message_hashes.get";

/// Reads per second, by `tasks` concurrent tasks.
async fn rate<F: Future<Output = ()> + Send + 'static>(
    tasks: usize,
    reads: usize,
    read: impl Fn(usize) -> F + Clone + Send + 'static,
) -> f64 {
    let started = Instant::now();
    let tasks = (0..tasks).map(|task| {
        let read = read.clone();
        tokio::spawn(async move {
            for _ in 0..reads / tasks {
                read(task).await;
            }
        })
    });
    for task in join_all(tasks).await {
        task.unwrap();
    }
    reads as f64 / started.elapsed().as_secs_f64()
}

async fn checkout(pool: &Pool, text: &str, types: &[Type]) {
    let connection = pool.get().await.unwrap();
    let statement = connection.prepare_typed_cached(text, types).await.unwrap();
    let rows = connection.query(&statement, &[&1i64, &b"hash".as_slice()]).await.unwrap();
    assert!(rows.is_empty());
}

async fn compare(
    transport: &str,
    url: &str,
    tasks: usize,
    (rounds, reads): (usize, usize),
) -> ReadRates {
    // Without the cache, so that each read sends a query.
    let config = PostgresStoreConfig::new(url, "bot")
        .pool(PoolSettings { max_size: 8, ..Default::default() })
        .access(OwnershipSettings { cache_bytes: 0, ..Default::default() });
    let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
    let pool = config.build_pool().unwrap();
    let texts = PostgresStores::statement_texts("matrix_sdk").unwrap();
    let (_, text, types) = texts.into_iter().find(|(name, ..)| *name == STATEMENT).unwrap();
    let types: &'static [Type] = types.leak();
    let mut clients = Vec::new();
    for _ in 0..4 {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
        tokio::spawn(connection);
        let statement = client.prepare_typed(&text, types).await.unwrap();
        clients.push((client, statement));
    }
    let clients = std::sync::Arc::new(clients);

    let mut rates = [const { Vec::new() }; 3];
    for _ in 0..=rounds {
        let (pool, text) = (pool.clone(), text.clone());
        rates[0].push(
            rate(tasks, reads, move |_| {
                let (pool, text) = (pool.clone(), text.clone());
                async move { checkout(&pool, &text, types).await }
            })
            .await,
        );
        let store = store.clone();
        rates[1].push(
            rate(tasks, reads, move |_| {
                let store = store.clone();
                let hash = OlmMessageHash { sender_key: "key".into(), hash: "hash".into() };
                async move { assert!(!store.is_message_known(&hash).await.unwrap()) }
            })
            .await,
        );
        let clients = clients.clone();
        rates[2].push(
            rate(tasks, reads, move |task| {
                let clients = clients.clone();
                async move {
                    let (client, statement) = &clients[task % clients.len()];
                    let parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)] =
                        &[&1i64, &b"hash".as_slice()];
                    assert!(client.query(statement, parameters).await.unwrap().is_empty());
                }
            })
            .await,
        );
    }
    // The first round warms up.
    let [checkout, store, bare] = rates.map(|mut rates| rates.split_off(1));
    let rates_of_case = ReadRates { transport: transport.to_owned(), tasks, checkout, store, bare };
    let ([checkout, store, bare], [store_ratio, bare_ratio]) = rates_of_case.summary();
    println!(
        "{transport:>11} {tasks:>3} tasks: a checkout each {checkout:>7.0}/s, the store {store:>7.0}/s \
         (×{store_ratio:.2}), four bare connections {bare:>7.0}/s (×{bare_ratio:.2})"
    );
    rates_of_case
}

#[tokio::main]
async fn main() {
    let size = Scale::of_this_run().pick((1, 640), (5, 10_000), (15, 20_000));
    let database = testing::database().unwrap();
    let mut results = Vec::new();
    for tasks in [1, 4, 64] {
        for (transport, url) in [("Unix socket", database.socket_url()), ("TCP", database.url())] {
            results.push(compare(transport, &url, tasks, size).await);
        }
    }
    results::write("readers", &results);
}
