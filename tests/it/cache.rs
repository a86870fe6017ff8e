//! Rule 28: what an exclusive owner answers from memory, and when it must not.

use std::time::Duration;

use futures_util::future::{try_join, try_join_all};
use matrix_sdk_crypto::{
    CryptoStoreError, DeviceData,
    olm::{Account, InboundGroupSession, SenderDataType},
    store::{
        CryptoStore,
        types::{Changes, DeviceChanges, PendingChanges},
    },
};
use matrix_sdk_postgres::{
    Access, OwnershipSettings, PoolSettings, PostgresCryptoStore, PostgresStoreConfig,
    testing::{self, TestDatabase},
};
use ruma::{OwnedDeviceId, RoomId, device_id, owned_room_id};
use test_support::{
    Mode, connect,
    fixture::{Fixture, inbound_session, other_user, own_user, room},
    number,
    proxy::Proxy,
    without_heartbeats,
};

/// A database behind a proxy that counts round trips, and a configuration whose heartbeat never comes
/// between.
struct Place {
    database: TestDatabase,
    proxy: Proxy,
    config: PostgresStoreConfig,
}

impl Place {
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
        // The connection is made, and its statements are prepared.
        store.next_batch_token().await.unwrap();
        store
    }

    async fn open_with_cache(&self, cache_bytes: usize) -> PostgresCryptoStore {
        let settings = OwnershipSettings { cache_bytes, ..without_heartbeats() };
        self.open(self.config.clone().access(settings)).await
    }

    /// Round trips of an operation.
    async fn trips<T>(&self, operation: impl Future<Output = T>) -> (usize, T) {
        let before = self.proxy.turns();
        let result = operation.await;
        (self.proxy.turns() - before, result)
    }
}

fn sessions(room_id: &RoomId, count: usize) -> Vec<InboundGroupSession> {
    let account = Account::with_device_id(other_user(), device_id!("BOBSDEVICE"));
    let new = |_| inbound_session(&account, room_id, SenderDataType::UnknownDevice);
    (0..count).map(new).collect()
}

async fn is_there(store: &PostgresCryptoStore, session: &InboundGroupSession) -> bool {
    let found = store.get_inbound_group_session(session.room_id(), session.session_id()).await;
    found.unwrap().is_some()
}

async fn look_all_up(store: &PostgresCryptoStore, sessions: &[InboundGroupSession]) -> usize {
    let mut found = 0;
    for session in sessions {
        found += usize::from(is_there(store, session).await);
    }
    found
}

#[tokio::test]
async fn what_was_saved_or_read_is_not_asked_for_again() {
    let place = Place::new();
    let fixture = Fixture::new().await;
    let store = place.open(place.config.clone()).await;
    fixture.fill(&store).await;
    let reads = async |store: &PostgresCryptoStore| {
        assert_eq!(store.get_user_devices(other_user()).await.unwrap().len(), 1);
        assert!(store.get_user_identity(other_user()).await.unwrap().is_none());
        assert_eq!(store.load_tracked_users().await.unwrap().len(), 1);
        assert_eq!(store.get_unsent_secret_requests().await.unwrap().len(), 1);
        assert!(store.get_inbound_group_session(room(), "unknown").await.unwrap().is_none());
        assert!(is_there(store, &fixture.inbound).await);
        store.load_account().await.unwrap().unwrap();
        store.get_own_device().await.unwrap();
    };
    reads(&store).await;
    assert_eq!(place.trips(reads(&store)).await.0, 0);
    store.close().await.unwrap();

    let store = place.open(place.config.clone()).await;
    assert_eq!(place.trips(reads(&store)).await.0, 8, "one for each");
    assert_eq!(place.trips(reads(&store)).await.0, 0);
    store.close().await.unwrap();

    let store = place.open_with_cache(0).await;
    for _ in 0..2 {
        assert_eq!(place.trips(reads(&store)).await.0, 8, "the cache is off");
    }
}

#[tokio::test]
async fn what_is_stored_already_is_not_written_again() {
    let place = Place::new();
    let fixture = Fixture::new().await;
    let store = place.open(place.config.clone()).await;
    fixture.fill(&store).await;
    let users = [(own_user(), false), (other_user(), true)];
    let save = async |store: &PostgresCryptoStore, dirty: bool| {
        let account = Some(fixture.account.deep_clone());
        store.save_pending_changes(PendingChanges { account }).await.unwrap();
        store.save_tracked_users(&[users[0], (users[1].0, dirty)]).await.unwrap();
    };
    store.load_tracked_users().await.unwrap();
    save(&store, true).await;
    // Each asks whether the account is still ours, and commits nothing.
    let commits = store.commit_count().await.unwrap();
    assert_eq!(place.trips(save(&store, true)).await.0, 2);
    assert_eq!(store.commit_count().await.unwrap(), commits);
    assert_eq!(place.trips(save(&store, false)).await.0, 2);
    assert_eq!(store.commit_count().await.unwrap(), commits + 1, "one user has changed");
    store.close().await.unwrap();

    // As at the start of a machine, which loads both.
    let store = place.open(place.config.clone()).await;
    store.load_account().await.unwrap().unwrap();
    assert_eq!(store.load_tracked_users().await.unwrap().len(), 2);
    let commits = store.commit_count().await.unwrap();
    assert_eq!(place.trips(save(&store, false)).await.0, 2);
    assert_eq!(store.commit_count().await.unwrap(), commits);
    assert_eq!(place.trips(save(&store, true)).await.0, 2);
    assert_eq!(store.commit_count().await.unwrap(), commits + 1);

    // Of a user named twice the last one counts, also when it is stored already.
    store.save_tracked_users(&[(users[1].0, false), (users[1].0, true)]).await.unwrap();
    assert!(store.load_tracked_users().await.unwrap().iter().any(|user| user.dirty));

    // Of two changes that are committed together the second is one to the first.
    let both = store.atomically(async {
        store.save_tracked_users(&[(users[1].0, false)]).await?;
        store.save_tracked_users(&[(users[1].0, true)]).await?;
        Ok::<_, CryptoStoreError>(())
    });
    both.await.unwrap();
    store.close().await.unwrap();
    let store = place.open(place.config.clone()).await;
    let tracked = store.load_tracked_users().await.unwrap();
    assert!(tracked.iter().any(|user| user.user_id == users[1].0 && user.dirty));
}

/// Saves that queue share a commit: the second is staged before the first is committed.
#[tokio::test]
async fn of_saves_that_queue_the_last_one_stands() {
    let place = Place::new();
    let store = place.open(place.config.clone()).await;
    store.save_tracked_users(&[(other_user(), true)]).await.unwrap();
    store.load_tracked_users().await.unwrap();
    let (clean, dirty) = ([(other_user(), false)], [(other_user(), true)]);
    for (last, expected) in [(&dirty, true), (&clean, false)] {
        // Keeps the lane busy while the others queue.
        let first = store.set_custom_value("key", vec![1]);
        let saves = [&dirty, &clean, &dirty, &clean, last];
        let saves = try_join_all(saves.map(|users| store.save_tracked_users(users)));
        let (trips, saved) = place.trips(try_join(first, saves)).await;
        saved.unwrap();
        assert!(trips <= 2, "they did not share a commit: {trips} round trips");
        let client = connect(&place.database.url()).await;
        assert_eq!(number(&client, "SELECT count(*) FROM matrix_sdk.tracked_users").await, 1);
        for store in [&store, &place.open(place.config.clone().access(Access::ReadOnly)).await] {
            assert_eq!(store.load_tracked_users().await.unwrap()[0].dirty, expected);
        }
    }
}

#[tokio::test]
async fn the_cache_keeps_to_its_limits() {
    let place = Place::new();
    let saved = sessions(room(), 100);
    let (some, unknown) = (&saved[..50], sessions(room(), 10));

    // A session takes about a kilobyte.
    let store = place.open_with_cache(10_000).await;
    store.save_inbound_group_sessions(saved.clone(), None).await.unwrap();
    look_all_up(&store, some).await;
    let (trips, found) = place.trips(look_all_up(&store, some)).await;
    assert_eq!(found, 50);
    assert!(trips > 30, "all of it was kept: {trips} round trips");
    assert_eq!(place.trips(look_all_up(&store, &some[49..])).await.0, 0, "the last one is kept");
    store.close().await.unwrap();

    // A key takes 16 bytes of an eighth of it.
    for (keys, trips) in [(100, 1), (99, 10)] {
        let store = place.open_with_cache(keys * 16 * 8).await;
        assert_eq!(place.trips(look_all_up(&store, &unknown)).await, (trips, 0), "{keys} keys");
        store.close().await.unwrap();
    }

    // One more than are kept.
    let store = place.open_with_cache(100 * 16 * 8).await;
    look_all_up(&store, &unknown).await;
    store.save_inbound_group_sessions(sessions(room(), 1), None).await.unwrap();
    // The first one was asked for with the keys, and is known since.
    assert_eq!(place.trips(look_all_up(&store, &unknown)).await, (9, 0));
}

/// An import, or an operator, beside a live owner.
#[tokio::test]
async fn maintenance_beside_the_owner_is_seen() {
    const RAISE: &str = "UPDATE matrix_sdk.account_lanes SET maintenance = maintenance + 1";
    let place = Place::new();
    let beating = place.config.clone().access(OwnershipSettings {
        heartbeat_interval: Duration::from_millis(50),
        ..Default::default()
    });
    for (config, by_write) in [(place.config.clone(), true), (beating, false)] {
        let client = connect(&place.database.url()).await;
        let store = place.open(config).await;
        let session = &sessions(room(), 1)[0];
        store.save_inbound_group_sessions(vec![session.clone()], None).await.unwrap();
        assert!(is_there(&store, session).await);
        let delete = "DELETE FROM matrix_sdk.megolm_inbound_sessions";
        client.execute(delete, &[]).await.unwrap();
        assert!(is_there(&store, session).await, "nobody has said so");
        client.execute(RAISE, &[]).await.unwrap();
        if by_write {
            store.set_custom_value("key", vec![1]).await.unwrap();
            assert!(!is_there(&store, session).await);
        } else {
            while is_there(&store, session).await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn what_was_not_committed_is_not_answered() {
    let place = Place::new();
    let store = place.open(place.config.clone()).await;
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
                    (devices.len(), is_there(&store, &new).await)
                })
            };
            assert_eq!(others.await.unwrap(), (1, true), "other tasks see it, too");
            assert!(is_there(&store, &new).await && is_there(&store, &old).await);
            assert_eq!(store.get_user_devices(other_user()).await?.len(), 1);
            Err(CryptoStoreError::AccountUnset)
        })
        .await;
    assert!(rolled_back.is_err());
    for _ in 0..2 {
        assert!(!is_there(&store, &new).await && is_there(&store, &old).await);
        assert!(store.get_user_devices(other_user()).await.unwrap().is_empty());
        store.reopen().await.unwrap();
    }
}

/// One that only looks: what the owner changes is seen at once.
#[tokio::test]
async fn observers_keep_nothing() {
    let place = Place::new();
    let owner = place.open(place.config.clone()).await;
    let observer = place.open(place.config.clone().access(Access::ReadOnly)).await;
    for count in 1..4 {
        let new = sessions(&owned_room_id!("!room:example.org"), 1);
        assert_eq!(look_all_up(&observer, &new).await, 0);
        owner.save_inbound_group_sessions(new.clone(), None).await.unwrap();
        assert_eq!(look_all_up(&observer, &new).await, 1, "session {count}");
    }
}

/// The SDK asks for each device of a user at once, and anybody may have thousands of them.
#[tokio::test]
async fn devices_asked_for_together_are_not_all_read_for_each() {
    const DEVICES: usize = 60;
    let place = Place::new();
    let store = place.open(place.config.clone()).await;
    let device = |number: usize| {
        let id = OwnedDeviceId::from(format!("DEVICE{number}"));
        DeviceData::from_account(&Account::with_device_id(other_user(), &id))
    };
    let devices: Vec<DeviceData> = (0..DEVICES).map(device).collect();
    let new = DeviceChanges { new: devices.clone(), ..Default::default() };
    store.save_changes(Changes { devices: new, ..Default::default() }).await.unwrap();
    store.close().await.unwrap();

    let bytes = async |config: PostgresStoreConfig| {
        let store = place.open(config).await;
        let before = place.proxy.answered();
        let reads = devices.iter().map(|device| store.get_device(other_user(), device.device_id()));
        let found = try_join_all(reads).await.unwrap();
        assert!(found.iter().all(Option::is_some));
        place.proxy.answered() - before
    };
    let alone = bytes(
        place.config.clone().access(OwnershipSettings { cache_bytes: 0, ..without_heartbeats() }),
    )
    .await;
    let cached = bytes(place.config.clone()).await;
    assert!(cached < 3 * alone, "{cached} bytes, {alone} without the cache");
    let too_large = bytes(
        place
            .config
            .clone()
            .access(OwnershipSettings { cache_bytes: 10_000, ..without_heartbeats() }),
    )
    .await;
    assert!(too_large < 3 * alone, "{too_large} bytes, {alone} without the cache");
}

/// The statement that reads Olm sessions reads our own device, too.
#[tokio::test]
async fn sessions_are_read_with_the_own_device_that_was_just_saved() {
    let place = Place::new();
    let fixture = Fixture::new().await;
    let store = place.open(place.config.clone()).await;
    fixture.fill(&store).await;
    let own = DeviceData::from_account(&fixture.account);
    let changes = |devices| Changes { devices, ..Default::default() };
    let gone = DeviceChanges { deleted: vec![own.clone()], ..Default::default() };
    store.save_changes(changes(gone)).await.unwrap();
    store.close().await.unwrap();

    let store = place.open(place.config.clone()).await;
    store.load_account().await.unwrap().unwrap();
    let sender_key = fixture.olm_session.sender_key().to_base64();
    let sessions = store.atomically(async {
        let devices = DeviceChanges { new: vec![own], ..Default::default() };
        store.save_changes(changes(devices)).await?;
        Ok::<_, CryptoStoreError>(store.get_sessions(&sender_key).await?)
    });
    assert_eq!(sessions.await.unwrap().map(|sessions| sessions.len()), Some(1));
}
