//! Rule 28: reads that an exclusive owner serves from its cache, and those that it must not.

mod unchanged;

use std::time::Duration;

use futures_util::future::{try_join, try_join_all};
use matrix_sdk_crypto::{
    CryptoStoreError, DeviceData,
    olm::{Account, InboundGroupSession, SenderDataType},
    store::{
        CryptoStore,
        types::{Changes, DeviceChanges},
    },
};
use matrix_sdk_postgres::{
    Access, OwnershipSettings, PoolSettings, PostgresCryptoStore, PostgresStoreConfig,
    testing::{self, TestDatabase},
};
use ruma::{OwnedDeviceId, RoomId, device_id, owned_room_id};
use test_support::{
    Mode, connect, eventually,
    fixture::{Fixture, inbound_session, other_user, room},
    number,
    proxy::Proxy,
    without_heartbeats,
};

/// A database behind a proxy that counts round trips, and a configuration without heartbeats.
struct Environment {
    database: TestDatabase,
    proxy: Proxy,
    config: PostgresStoreConfig,
}

impl Environment {
    fn new() -> Self {
        let database = testing::database().unwrap();
        let (proxy, url) = Proxy::before(&database);
        let config =
            Mode::Key.config(&url, "bot").pool(PoolSettings { max_size: 1, ..Default::default() });
        let config = config.access(without_heartbeats());
        Self { database, proxy, config }
    }

    async fn open(&self, config: PostgresStoreConfig) -> PostgresCryptoStore {
        let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
        // Makes the connection and prepares the statements.
        store.next_batch_token().await.unwrap();
        store
    }

    async fn open_with_cache(&self, cache_bytes: usize) -> PostgresCryptoStore {
        let settings = OwnershipSettings { cache_bytes, ..without_heartbeats() };
        self.open(self.config.clone().access(settings)).await
    }

    /// The number of round trips of an operation, and its result.
    async fn round_trips<T>(&self, operation: impl Future<Output = T>) -> (usize, T) {
        self.proxy.count_round_trips(operation).await
    }
}

fn sessions(room_id: &RoomId, count: usize) -> Vec<InboundGroupSession> {
    let account = Account::with_device_id(other_user(), device_id!("BOBSDEVICE"));
    let new = |_| inbound_session(&account, room_id, SenderDataType::UnknownDevice);
    (0..count).map(new).collect()
}

async fn is_stored(store: &PostgresCryptoStore, session: &InboundGroupSession) -> bool {
    let found = store.get_inbound_group_session(session.room_id(), session.session_id()).await;
    found.unwrap().is_some()
}

async fn count_found(store: &PostgresCryptoStore, sessions: &[InboundGroupSession]) -> usize {
    let mut found = 0;
    for session in sessions {
        found += usize::from(is_stored(store, session).await);
    }
    found
}

#[tokio::test]
async fn rows_saved_or_read_are_not_queried_again() {
    let environment = Environment::new();
    let fixture = Fixture::new().await;
    let store = environment.open(environment.config.clone()).await;
    fixture.fill(&store).await;
    let reads = async |store: &PostgresCryptoStore| {
        assert_eq!(store.get_user_devices(other_user()).await.unwrap().len(), 1);
        assert!(store.get_user_identity(other_user()).await.unwrap().is_none());
        assert_eq!(store.load_tracked_users().await.unwrap().len(), 1);
        assert_eq!(store.get_unsent_secret_requests().await.unwrap().len(), 1);
        assert!(store.get_inbound_group_session(room(), "unknown").await.unwrap().is_none());
        assert!(is_stored(store, &fixture.inbound).await);
        store.load_account().await.unwrap().unwrap();
        store.get_own_device().await.unwrap();
    };
    reads(&store).await;
    assert_eq!(environment.round_trips(reads(&store)).await.0, 0);
    store.close().await.unwrap();

    let store = environment.open(environment.config.clone()).await;
    assert_eq!(environment.round_trips(reads(&store)).await.0, 8, "one for each");
    assert_eq!(environment.round_trips(reads(&store)).await.0, 0);
    store.close().await.unwrap();

    let store = environment.open_with_cache(0).await;
    for _ in 0..2 {
        assert_eq!(environment.round_trips(reads(&store)).await.0, 8, "the cache is off");
    }
}

/// Queued saves share a commit: the second is staged before the first is committed.
#[tokio::test]
async fn the_last_of_queued_saves_wins() {
    let environment = Environment::new();
    let store = environment.open(environment.config.clone()).await;
    store.save_tracked_users(&[(other_user(), true)]).await.unwrap();
    store.load_tracked_users().await.unwrap();
    let (clean, dirty) = ([(other_user(), false)], [(other_user(), true)]);
    for (last, expected) in [(&dirty, true), (&clean, false)] {
        // Occupies the lane while the others are queued.
        let first = store.set_custom_value("key", vec![1]);
        let saves = [&dirty, &clean, &dirty, &clean, last];
        let saves = try_join_all(saves.map(|users| store.save_tracked_users(users)));
        let (trips, saved) = environment.round_trips(try_join(first, saves)).await;
        saved.unwrap();
        assert!(trips <= 2, "no group commit: {trips} round trips");
        let client = connect(&environment.database.url()).await;
        assert_eq!(number(&client, "SELECT count(*) FROM matrix_sdk.tracked_users").await, 1);
        for store in
            [&store, &environment.open(environment.config.clone().access(Access::ReadOnly)).await]
        {
            assert_eq!(store.load_tracked_users().await.unwrap()[0].dirty, expected);
        }
    }
}

#[tokio::test]
async fn the_cache_keeps_to_its_limits() {
    let environment = Environment::new();
    let saved = sessions(room(), 100);
    let (some, unknown) = (&saved[..50], sessions(room(), 10));

    // The size of a session is about one kilobyte.
    let store = environment.open_with_cache(10_000).await;
    store.save_inbound_group_sessions(saved.clone(), None).await.unwrap();
    count_found(&store, some).await;
    let (trips, found) = environment.round_trips(count_found(&store, some)).await;
    assert_eq!(found, 50);
    assert!(trips > 30, "nothing was evicted: {trips} round trips");
    assert_eq!(
        environment.round_trips(count_found(&store, &some[49..])).await.0,
        0,
        "the last one was evicted"
    );
    store.close().await.unwrap();

    // A key takes 16 bytes of an eighth of the cache.
    for (keys, trips) in [(100, 1), (99, 10)] {
        let store = environment.open_with_cache(keys * 16 * 8).await;
        assert_eq!(
            environment.round_trips(count_found(&store, &unknown)).await,
            (trips, 0),
            "{keys} keys"
        );
        store.close().await.unwrap();
    }

    // One more than fits.
    let store = environment.open_with_cache(100 * 16 * 8).await;
    count_found(&store, &unknown).await;
    store.save_inbound_group_sessions(sessions(room(), 1), None).await.unwrap();
    // The first one was queried together with the key set, and is cached since.
    assert_eq!(environment.round_trips(count_found(&store, &unknown)).await, (9, 0));
}

/// An import or an operator changes rows while the owner runs.
#[tokio::test]
async fn maintenance_invalidates_the_owners_cache() {
    const RAISE: &str = "UPDATE matrix_sdk.account_lanes SET maintenance = maintenance + 1";
    let environment = Environment::new();
    let beating = environment.config.clone().access(OwnershipSettings {
        heartbeat_interval: Duration::from_millis(50),
        ..Default::default()
    });
    for (config, by_write) in [(environment.config.clone(), true), (beating, false)] {
        let client = connect(&environment.database.url()).await;
        let store = environment.open(config).await;
        let session = &sessions(room(), 1)[0];
        store.save_inbound_group_sessions(vec![session.clone()], None).await.unwrap();
        assert!(is_stored(&store, session).await);
        let delete = "DELETE FROM matrix_sdk.megolm_inbound_sessions";
        client.execute(delete, &[]).await.unwrap();
        assert!(
            is_stored(&store, session).await,
            "the cache was invalidated without a raised maintenance counter"
        );
        client.execute(RAISE, &[]).await.unwrap();
        if by_write {
            store.set_custom_value("key", vec![1]).await.unwrap();
            assert!(!is_stored(&store, session).await);
        } else {
            eventually("the heartbeat invalidates the cache", async || {
                !is_stored(&store, session).await
            })
            .await;
        }
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn uncommitted_rows_are_not_cached() {
    let environment = Environment::new();
    let store = environment.open(environment.config.clone()).await;
    let [old, new] = [0, 1].map(|_| sessions(room(), 1).remove(0));
    store.save_inbound_group_sessions(vec![old.clone()], None).await.unwrap();
    let bob = Account::with_device_id(other_user(), device_id!("BOBSDEVICE"));
    let device = DeviceData::from_account(&bob);
    let devices = DeviceChanges { new: vec![device], ..Default::default() };
    assert!(store.get_user_devices(other_user()).await.unwrap().is_empty());

    let rolled_back: Result<(), CryptoStoreError> = store
        .atomically(async {
            store.save_changes(Changes { devices, ..Default::default() }).await?;
            store.save_inbound_group_sessions(vec![new.clone()], None).await?;
            let others = {
                let (store, new) = (store.clone(), new.clone());
                tokio::spawn(async move {
                    let devices = store.get_user_devices(other_user()).await.unwrap();
                    (devices.len(), is_stored(&store, &new).await)
                })
            };
            assert_eq!(others.await.unwrap(), (1, true), "not visible to another task");
            assert!(is_stored(&store, &new).await && is_stored(&store, &old).await);
            assert_eq!(store.get_user_devices(other_user()).await?.len(), 1);
            Err(CryptoStoreError::AccountUnset)
        })
        .await;
    assert!(rolled_back.is_err());
    for _ in 0..2 {
        assert!(!is_stored(&store, &new).await && is_stored(&store, &old).await);
        assert!(store.get_user_devices(other_user()).await.unwrap().is_empty());
        store.reopen().await.unwrap();
    }
}

/// A read-only store sees changes of the owner at once.
#[tokio::test]
async fn a_read_only_store_caches_nothing() {
    let environment = Environment::new();
    let owner = environment.open(environment.config.clone()).await;
    let read_only = environment.open(environment.config.clone().access(Access::ReadOnly)).await;
    for count in 1..4 {
        let new = sessions(&owned_room_id!("!room:example.org"), 1);
        assert_eq!(count_found(&read_only, &new).await, 0);
        owner.save_inbound_group_sessions(new.clone(), None).await.unwrap();
        assert_eq!(count_found(&read_only, &new).await, 1, "session {count}");
    }
}

/// The SDK reads each device of a user concurrently, and a user may have thousands of devices.
#[tokio::test]
async fn concurrent_lookups_do_not_each_read_all_devices_of_a_user() {
    const DEVICES: usize = 60;
    let environment = Environment::new();
    let store = environment.open(environment.config.clone()).await;
    let device = |number: usize| {
        let id = OwnedDeviceId::from(format!("DEVICE{number}"));
        DeviceData::from_account(&Account::with_device_id(other_user(), &id))
    };
    let devices: Vec<DeviceData> = (0..DEVICES).map(device).collect();
    let new = DeviceChanges { new: devices.clone(), ..Default::default() };
    store.save_changes(Changes { devices: new, ..Default::default() }).await.unwrap();
    store.close().await.unwrap();

    let bytes = async |config: PostgresStoreConfig| {
        let store = environment.open(config).await;
        let before = environment.proxy.answered();
        let reads = devices.iter().map(|device| store.get_device(other_user(), device.device_id()));
        let found = try_join_all(reads).await.unwrap();
        assert!(found.iter().all(Option::is_some));
        environment.proxy.answered() - before
    };
    let alone = bytes(
        environment
            .config
            .clone()
            .access(OwnershipSettings { cache_bytes: 0, ..without_heartbeats() }),
    )
    .await;
    let cached = bytes(environment.config.clone()).await;
    assert!(cached < 3 * alone, "{cached} bytes, {alone} without the cache");
    let too_large = bytes(
        environment
            .config
            .clone()
            .access(OwnershipSettings { cache_bytes: 10_000, ..without_heartbeats() }),
    )
    .await;
    assert!(too_large < 3 * alone, "{too_large} bytes, {alone} without the cache");
}

/// The statement that reads Olm sessions reads the own device, too.
#[tokio::test]
async fn sessions_are_read_with_the_own_device_that_was_just_saved() {
    let environment = Environment::new();
    let fixture = Fixture::new().await;
    let store = environment.open(environment.config.clone()).await;
    fixture.fill(&store).await;
    let own = DeviceData::from_account(&fixture.account);
    let changes = |devices| Changes { devices, ..Default::default() };
    let gone = DeviceChanges { deleted: vec![own.clone()], ..Default::default() };
    store.save_changes(changes(gone)).await.unwrap();
    store.close().await.unwrap();

    let store = environment.open(environment.config.clone()).await;
    store.load_account().await.unwrap().unwrap();
    let sender_key = fixture.olm_session.sender_key().to_base64();
    let sessions = store.atomically(async {
        let devices = DeviceChanges { new: vec![own], ..Default::default() };
        store.save_changes(changes(devices)).await?;
        Ok::<_, CryptoStoreError>(store.get_sessions(&sender_key).await?)
    });
    assert_eq!(sessions.await.unwrap().map(|sessions| sessions.len()), Some(1));
}
