//! `health()`.

use std::time::Duration;

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{
    Access, PostgresCryptoStore, PostgresStores,
    admin::{self, HealthStatus},
    testing::{self, PostgresServer},
};
use test_support::{Mode, connect, fixture::Fixture};

const LIMIT: Duration = Duration::from_secs(20);

#[tokio::test]
async fn each_state_of_a_store_has_a_name() {
    let server = PostgresServer::start().unwrap();
    let database = server.create_database().unwrap();
    let config = Mode::Key.config(&database.url(), "bot");
    let stores = PostgresStores::open(&config).await.unwrap();
    let store = stores.crypto_store();
    let health = stores.health(LIMIT).await;
    assert!(health.is_ready() && health.round_trip.is_some(), "{health:?}");
    assert_eq!(health.pool.unwrap().max_size, 4);

    let stats = stores.stats().await.unwrap();
    assert_eq!((stats.name.as_str(), stats.room_keys), ("bot", 0));
    assert!(stats.owner.unwrap().is_alive);

    let reader = config.clone().access(Access::ReadOnly);
    let reader = PostgresCryptoStore::open_with_config(&reader).await.unwrap();
    assert!(reader.health(LIMIT).await.is_ready());

    store.close().await.unwrap();
    assert_eq!(store.health(LIMIT).await.status, HealthStatus::Closed);
    store.reopen().await.unwrap();
    assert!(store.health(LIMIT).await.is_ready());

    let other = PostgresCryptoStore::open_with_config(&config).await.unwrap();
    // Found by the probe itself, before any write.
    assert_eq!(store.health(LIMIT).await.status, HealthStatus::Superseded);
    assert!(other.health(LIMIT).await.is_ready());

    drop((database, server));
    let health = other.health(Duration::from_millis(200)).await;
    assert_eq!((health.status, health.round_trip), (HealthStatus::Unreachable, None));
}

#[tokio::test]
async fn a_read_only_store_whose_account_was_deleted_is_not_ready() {
    let database = testing::database().unwrap();
    let config = Mode::Key.config(&database.url(), "bot");
    PostgresCryptoStore::open_with_config(&config).await.unwrap().close().await.unwrap();
    let reader = config.clone().access(Access::ReadOnly);
    let reader = PostgresCryptoStore::open_with_config(&reader).await.unwrap();
    admin::delete_account(&config).await.unwrap();
    assert_eq!(reader.health(LIMIT).await.status, HealthStatus::Unreachable);
}

/// What a dashboard of one bot shows costs nothing for those of the others.
#[tokio::test]
async fn the_statistics_of_a_store_are_those_of_its_account() {
    let database = testing::database().unwrap();
    let config = Mode::Key.config(&database.url(), "bot");
    let stores = PostgresStores::open(&config).await.unwrap();
    let other = Mode::Key.open(&database.url(), "other").await;
    Fixture::new().await.fill(&stores.crypto_store()).await;
    Fixture::new().await.fill(&other).await;
    other.set_custom_value("more", vec![1; 1000]).await.unwrap();
    // Of small tables it counts every row.
    connect(&database.url()).await.batch_execute("ANALYZE").await.unwrap();
    let of_all = admin::stats(&config).await.unwrap().accounts;
    let own = stores.stats().await.unwrap();
    assert_eq!(of_all[0].name, "bot");
    assert_eq!(format!("{own:?}"), format!("{:?}", of_all[0]));
    assert!(own.bytes > 0 && own.room_keys == 1 && own.room_keys_per_day.len() == 1);
}
