//! Many readers at once share a few connections of the pool, also across stores.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use assert_matches::assert_matches;
use futures_util::future::{join_all, try_join_all};
use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{
    Error, OwnershipSettings, PoolSettings, PostgresCryptoStore, PostgresStoreConfig,
    testing::{self, PostgresServer},
};
use test_support::{Mode, connect, number};

/// The other backends of this database.
const OTHERS: &str = "pg_stat_activity WHERE datname = current_database() \
                      AND backend_type = 'client backend' AND pid <> pg_backend_pid()";

fn value(store: usize, key: usize) -> Vec<u8> {
    format!("value {key} of store {store}").into_bytes()
}

async fn write_values(store: &PostgresCryptoStore, number: usize, keys: usize) {
    for key in 0..keys {
        store.set_custom_value(&key.to_string(), value(number, key)).await.unwrap();
    }
}

/// Reads every value, and one that does not exist.
async fn read_values(store: &PostgresCryptoStore, number: usize, keys: usize) -> Result<(), Error> {
    for key in 0..keys {
        let found = store.get_custom_value(&key.to_string()).await?;
        assert_eq!(found, Some(value(number, key)));
        assert_eq!(store.get_custom_value("nothing").await?, None);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_tasks_read_one_store_while_it_writes() {
    for connections in [1, 2, 8] {
        let database = testing::database().unwrap();
        let config = Mode::Key
            .config(&database.url(), "bot")
            .pool(PoolSettings { max_size: connections, ..Default::default() });
        let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
        write_values(&store, 0, 8).await;

        let has_written = Arc::new(AtomicBool::new(false));
        let readers = (0..64).map(|_| {
            let (store, has_written) = (store.clone(), has_written.clone());
            tokio::spawn(async move {
                let mut rounds = 0;
                while !has_written.load(Ordering::Relaxed) || rounds < 5 {
                    read_values(&store, 0, 8).await?;
                    rounds += 1;
                }
                Ok::<(), Error>(())
            })
        });
        let readers: Vec<_> = readers.collect();
        for round in 0..50u8 {
            store.set_custom_value("counter", vec![round]).await.unwrap();
            assert_eq!(store.get_custom_value("counter").await.unwrap().unwrap(), vec![round]);
        }
        has_written.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.await.unwrap().unwrap();
        }
        store.close().await.unwrap();
    }
}

/// Each read begins before the previous one has ended, so that there is always a reader.
#[tokio::test]
async fn continuous_readers_do_not_starve_the_writer() {
    let database = testing::database().unwrap();
    let config = Mode::Plain.config(&database.url(), "bot").pool(PoolSettings {
        max_size: 1,
        wait_timeout: Duration::from_secs(3),
        ..Default::default()
    });
    let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
    write_values(&store, 0, 1).await;
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            for round in 0..20u8 {
                store.set_custom_value("counter", vec![round]).await?;
            }
            Ok::<(), Error>(())
        }
    });
    let mut current = Box::pin(store.get_custom_value("0"));
    while !writer.is_finished() {
        let mut next = Box::pin(store.get_custom_value("0"));
        let early = futures_util::poll!(&mut next);
        assert!(early.is_pending());
        assert_eq!(current.await.unwrap(), Some(value(0, 0)));
        current = next;
    }
    current.await.unwrap();
    writer.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_stores_on_one_pool_of_sixteen() {
    let database = testing::database().unwrap();
    let pool = PostgresStoreConfig::new(database.url(), "any")
        .pool(PoolSettings {
            max_size: 16,
            wait_timeout: Duration::from_secs(20),
            ..Default::default()
        })
        .build_pool()
        .unwrap();
    let stores = (0..200).map(|number| {
        let (mode, name) = ([Mode::Plain, Mode::Key][number % 2], format!("bot {number}"));
        let (pool, config) = (pool.clone(), mode.config(&database.url(), &name));
        async move { PostgresCryptoStore::open_with_pool(pool, &config).await }
    });
    let stores = try_join_all(stores).await.unwrap();
    let tasks = stores.iter().cloned().enumerate().map(|(number, store)| {
        tokio::spawn(async move {
            write_values(&store, number, 4).await;
            let readers = (0..4).map(|_| read_values(&store, number, 4));
            try_join_all(readers).await.map(|_| ())
        })
    });
    for task in join_all(tasks).await {
        task.unwrap().unwrap();
    }
    // Unused connections were returned to the pool.
    assert_eq!(pool.status().available, pool.status().size);
    for store in stores {
        store.close().await.unwrap();
    }
    assert!(!pool.is_closed());
}

/// Sixty-four readers of one store and one reader of another share the connections. Each read of the latter
/// waits for at most one read of each of the others, and a few that overtake on another connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_with_one_reader_gets_its_share_next_to_one_with_sixty_four() {
    const READS: usize = 200;
    const GREEDY: usize = 64;
    let database = testing::database().unwrap();
    let pool = PostgresStoreConfig::new(database.url(), "any")
        .pool(PoolSettings { max_size: 4, ..Default::default() })
        .build_pool();
    let pool = pool.unwrap();
    let mut stores = Vec::new();
    for (number, name) in ["greedy", "modest"].into_iter().enumerate() {
        let config = PostgresStoreConfig::for_account(name)
            .access(OwnershipSettings { cache_bytes: 0, ..Default::default() });
        let store = PostgresCryptoStore::open_with_pool(pool.clone(), &config).await.unwrap();
        write_values(&store, number, 1).await;
        stores.push(store);
    }
    let (answers, has_ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let readers = (0..GREEDY).map(|_| {
        let (store, answers, has_ended) = (stores[0].clone(), answers.clone(), has_ended.clone());
        tokio::spawn(async move {
            while !has_ended.load(Ordering::Relaxed) {
                assert_eq!(store.get_custom_value("0").await.unwrap(), Some(value(0, 0)));
                answers.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    let readers: Vec<_> = readers.collect();
    while answers.load(Ordering::Relaxed) < GREEDY {
        tokio::task::yield_now().await;
    }
    let before = answers.load(Ordering::Relaxed);
    let modest = stores[1].clone();
    let reads = tokio::spawn(async move {
        for _ in 0..READS {
            assert_eq!(modest.get_custom_value("0").await.unwrap(), Some(value(1, 0)));
        }
    });
    reads.await.unwrap();
    let others = answers.load(Ordering::Relaxed) - before;
    has_ended.store(true, Ordering::Relaxed);
    for reader in join_all(readers).await {
        reader.unwrap();
    }
    println!("{} reads of the other store for each of this one", others / READS);
    assert!(others <= 3 * GREEDY * READS, "{others} reads of the other store during {READS}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_continue_while_the_writer_waits_for_a_lock() {
    for connections in [2, 10] {
        let database = testing::database().unwrap();
        let config = Mode::Key
            .config(&database.url(), "bot")
            .pool(PoolSettings { max_size: connections, ..Default::default() });
        let config = config.access(OwnershipSettings { cache_bytes: 0, ..Default::default() });
        let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
        let client = connect(&database.url()).await;
        write_values(&store, 0, 8).await;
        let lock = "BEGIN; SELECT FROM matrix_sdk.custom_values FOR UPDATE";
        client.batch_execute(lock).await.unwrap();
        let mut write = Box::pin(store.set_custom_value("0", value(0, 0)));
        assert!(futures_util::poll!(&mut write).is_pending());
        let waiting = format!("SELECT count(*) FROM {OTHERS} AND wait_event_type = 'Lock'");
        while number(&client, &waiting).await == 0 {}
        let readers = (0..64).map(|_| read_values(&store, 0, 8));
        try_join_all(readers).await.unwrap();
        assert!(futures_util::poll!(&mut write).is_pending());
        client.batch_execute("COMMIT").await.unwrap();
        write.await.unwrap();
    }
}

/// With a checkout for each read, 64 readers would occupy the whole pool.
#[tokio::test(flavor = "multi_thread")]
async fn readers_leave_most_of_the_pool_to_others() {
    let database = testing::database().unwrap();
    let pool = PostgresStoreConfig::new(database.url(), "any")
        .pool(PoolSettings { max_size: 32, ..Default::default() })
        .build_pool();
    let pool = pool.unwrap();
    let mut stores = Vec::new();
    for name in ["alice", "bob"] {
        let config = PostgresStoreConfig::for_account(name);
        stores.push(PostgresCryptoStore::open_with_pool(pool.clone(), &config).await.unwrap());
    }
    let readers = (0..64).map(|number| {
        let store = stores[number % 2].clone();
        tokio::spawn(async move {
            for _ in 0..50 {
                assert_eq!(store.get_custom_value("nothing").await.unwrap(), None);
            }
        })
    });
    for reader in join_all(readers).await {
        reader.unwrap();
    }
    // Four, and four more while the previous ones still wait for responses.
    assert!(pool.status().size <= 8, "{} connections", pool.status().size);
}

#[tokio::test(flavor = "multi_thread")]
async fn terminated_shared_connections_are_replaced_for_all_their_readers() {
    let database = testing::database().unwrap();
    let url = database.url();
    let store = Mode::Key.open(&url, "bot").await;
    write_values(&store, 0, 2).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let readers = (0..16).map(|_| {
        let (store, is_over) = (store.clone(), is_over.clone());
        tokio::spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                read_values(&store, 0, 2).await?;
            }
            Ok::<(), Error>(())
        })
    });
    let readers: Vec<_> = readers.collect();
    let client = connect(&url).await;
    let terminate = format!("SELECT count(pg_terminate_backend(pid)) FROM {OTHERS}");
    let mut terminated = 0;
    while terminated < 20 {
        terminated += number(&client, &terminate).await;
        // Fewer terminations than attempts of a read.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    is_over.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap().unwrap();
    }
}

/// The response to a dropped read is not delivered to another reader.
#[tokio::test]
async fn dropped_reads_do_not_mix_up_the_answers_of_others() {
    let database = testing::database().unwrap();
    let config = Mode::Plain
        .config(&database.url(), "bot")
        .pool(PoolSettings { max_size: 1, ..Default::default() });
    let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
    write_values(&store, 0, 8).await;
    for round in 0..200 {
        let mut dropped = Box::pin(store.get_custom_value("7"));
        for _ in 0..round % 4 {
            let _ = futures_util::poll!(&mut dropped);
        }
        let other = read_values(&store, 0, 8);
        tokio::pin!(other);
        let _ = futures_util::poll!(&mut other);
        drop(dropped);
        other.await.unwrap();
    }
}

/// The login is refused with 53300: retried, then returned.
#[tokio::test]
async fn too_many_connections_is_retried_and_then_reported() {
    let server = PostgresServer::builder()
        .setting("max_connections", "8")
        .setting("superuser_reserved_connections", "0")
        .setting("max_wal_senders", "0")
        .start()
        .unwrap();
    let database = server.create_database().unwrap();
    let url = database.url();
    let store = Mode::Plain.open(&url, "bot").await;
    store.set_custom_value("key", b"value".to_vec()).await.unwrap();

    let first = connect(&url).await;
    let terminate = format!("SELECT count(pg_terminate_backend(pid)) FROM {OTHERS}");
    number(&first, &terminate).await;
    let mut others = Vec::new();
    while let Ok((client, connection)) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await
    {
        tokio::spawn(connection);
        others.push(client);
    }
    assert!(others.len() < 8);
    // The retry succeeds once a connection becomes free.
    let read = store.get_custom_value("key");
    tokio::pin!(read);
    let early = tokio::time::timeout(Duration::from_millis(100), &mut read).await;
    assert!(early.is_err(), "{early:?}");
    drop(others.pop());
    assert_eq!(read.await.unwrap().as_deref(), Some(b"value".as_slice()));

    number(&first, &terminate).await;
    others.clear();
    while let Ok((client, connection)) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await
    {
        tokio::spawn(connection);
        others.push(client);
    }
    let error = store.get_custom_value("key").await.unwrap_err();
    assert_matches!(&error, Error::Database(error) if error.sqlstate() == Some("53300"));
    assert!(error.to_string().contains("too many clients"), "{error}");
    // The failed reads require a reopening of this store.
    drop(others);
    store.reopen().await.unwrap();
    store.set_custom_value("key", b"new".to_vec()).await.unwrap();
}
