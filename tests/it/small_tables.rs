//! Rule 28: tables of few rows are read as a whole. After a restart, the messages of each sender and room read that
//! sender's devices and that room's key: the first read loads the key set, the second one all rows.

use matrix_sdk_crypto::{
    CryptoStoreError, DeviceData,
    olm::{Account, InboundGroupSession, SenderDataType},
    store::{
        CryptoStore,
        types::{Changes, DeviceChanges, IdentityChanges, PendingChanges},
    },
    testing::get_other_identity,
};
use matrix_sdk_postgres::{
    Error, OwnershipSettings, PoolSettings, PostgresCryptoStore,
    testing::{self, TestDatabase},
};
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use test_support::{
    Mode, connect,
    fixture::{inbound_session, own_device, own_user},
    proxy::Proxy,
    without_heartbeats,
};

/// Tables of up to this many cache keys, and of up to this many rows, are read as a whole.
const FEW_GROUPS: usize = 256;
const FEW_ROWS: i64 = 1_024;

/// A bot that knows a device of each of some users, and a room key of each in a room of its own; after a restart.
struct Bot {
    database: TestDatabase,
    proxy: Proxy,
    keys: Vec<InboundGroupSession>,
    store: PostgresCryptoStore,
}

impl Bot {
    async fn knowing(users: usize) -> Self {
        Self::with(users, without_heartbeats(), PoolSettings::default()).await
    }

    async fn with(users: usize, access: OwnershipSettings, pool: PoolSettings) -> Self {
        let database = testing::database().unwrap();
        let (proxy, url) = Proxy::before(&database);
        // Without encryption, so that rows can be copied.
        let config = Mode::Plain.config(&url, "bot").access(access).pool(pool);
        let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
        let keys = fill(&store, users).await;
        store.close().await.unwrap();
        let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
        store.load_account().await.unwrap().unwrap();
        Self { database, proxy, keys, store }
    }

    async fn assert_devices(&self, number: usize, expected: usize) {
        let devices = self.store.get_user_devices(&user(number)).await.unwrap();
        assert_eq!(devices.len(), expected, "user {number}");
        assert!(devices.values().all(|device| device.user_id() == user(number)));
    }

    /// Reads the devices of all users, of whom each has one; returns the number of round trips.
    async fn read_devices(&self, users: usize) -> usize {
        self.round_trips(async {
            for number in 0..users {
                self.assert_devices(number, 1).await;
            }
        })
        .await
    }

    async fn assert_key(&self, number: usize, backed_up: bool) {
        let id = self.keys[number].session_id();
        let found = self.store.get_inbound_group_session(&room(number), id).await.unwrap().unwrap();
        assert_eq!((found.session_id(), found.room_id()), (id, &*room(number)));
        assert_eq!(found.backed_up(), backed_up, "room key {number}");
        // Under the room of another, there is none.
        let other = self.store.get_inbound_group_session(&room(number + 1), id).await.unwrap();
        assert!(other.is_none(), "room key {number}");
    }

    async fn round_trips(&self, operation: impl Future<Output = ()>) -> usize {
        self.proxy.count_round_trips(operation).await.0
    }

    async fn save_devices(&self, devices: DeviceChanges) {
        self.store.save_changes(Changes { devices, ..Default::default() }).await.unwrap();
    }

    async fn execute(&self, sql: &str) {
        connect(&self.database.url()).await.batch_execute(sql).await.unwrap();
    }
}

async fn fill(store: &PostgresCryptoStore, users: usize) -> Vec<InboundGroupSession> {
    let own = Account::with_device_id(own_user(), own_device());
    let account = Some(own.deep_clone());
    store.save_pending_changes(PendingChanges { account }).await.unwrap();
    let (mut new, mut keys) = (vec![DeviceData::from_account(&own)], Vec::new());
    for number in 0..users {
        let other = Account::with_device_id(&user(number), own_device());
        new.push(DeviceData::from_account(&other));
        keys.push(inbound_session(&other, &room(number), SenderDataType::DeviceInfo));
    }
    let devices = DeviceChanges { new, ..Default::default() };
    let inbound_group_sessions = keys.clone();
    let changes = Changes { devices, inbound_group_sessions, ..Default::default() };
    store.save_changes(changes).await.unwrap();
    keys
}

fn user(number: usize) -> OwnedUserId {
    UserId::parse(format!("@user{number}:example.org")).unwrap()
}

fn room(number: usize) -> OwnedRoomId {
    RoomId::parse(format!("!room{number}:example.org")).unwrap()
}

/// A second device of this user.
fn second(number: usize) -> DeviceData {
    DeviceData::from_account(&Account::with_device_id(&user(number), "SECOND".into()))
}

#[tokio::test]
async fn few_rows_take_two_round_trips_and_many_one_each() {
    for (users, expected) in [(20, 2), (FEW_GROUPS - 1, 2), (FEW_GROUPS + 1, 20)] {
        let bot = Bot::knowing(users).await;
        assert_eq!(bot.read_devices(20).await, expected, "devices of {users} users");
        let keys = async {
            for number in 0..20 {
                bot.assert_key(number, false).await;
            }
        };
        assert_eq!(bot.round_trips(keys).await, expected, "{users} room keys");
        bot.store.close().await.unwrap();
    }
}

#[tokio::test]
async fn few_identities_take_two_round_trips() {
    let bot = Bot::knowing(1).await;
    let new = vec![get_other_identity().into()];
    let identities = IdentityChanges { new, ..Default::default() };
    bot.store.save_changes(Changes { identities, ..Default::default() }).await.unwrap();
    bot.execute(
        "INSERT INTO matrix_sdk.user_identities (account_id, user_id, data)
        SELECT account_id, convert_to('@user' || number || ':example.org', 'UTF8'), data
        FROM matrix_sdk.user_identities, generate_series(0, 19) number",
    )
    .await;
    let read = async {
        for number in 0..20 {
            assert!(bot.store.get_user_identity(&user(number)).await.unwrap().is_some());
        }
        assert!(bot.store.get_user_identity(&user(20)).await.unwrap().is_none());
    };
    assert_eq!(bot.round_trips(read).await, 2);
}

#[tokio::test]
async fn a_backup_that_is_reset_shows_in_keys_that_were_read_as_a_whole() {
    let bot = Bot::knowing(5).await;
    let marked = (room(3), bot.keys[3].session_id());
    bot.store
        .mark_inbound_group_sessions_as_backed_up("1", &[(&marked.0, marked.1)])
        .await
        .unwrap();
    for number in 0..5 {
        bot.assert_key(number, number == 3).await;
    }
    bot.store.reset_backup_state().await.unwrap();
    let read = async {
        for number in 0..5 {
            bot.assert_key(number, false).await;
        }
    };
    assert_eq!(bot.round_trips(read).await, 1);
}

#[tokio::test]
async fn rows_that_are_written_meanwhile_are_read_as_written() {
    let bot = Bot::knowing(20).await;
    bot.assert_devices(0, 1).await;
    // Between the read that loads the key set and the one that reads all rows; and afterwards.
    bot.save_devices(DeviceChanges { new: vec![second(2)], ..Default::default() }).await;
    bot.assert_devices(1, 1).await;
    bot.save_devices(DeviceChanges { new: vec![second(3)], ..Default::default() }).await;
    for (number, expected) in [(2, 2), (3, 2), (4, 1)] {
        bot.assert_devices(number, expected).await;
    }
    let deleted = vec![second(2), second(3)];
    bot.save_devices(DeviceChanges { deleted, ..Default::default() }).await;
    bot.read_devices(20).await;
}

/// With one connection the scope's reads use its own; with more, those of unchanged rows do not.
#[tokio::test]
async fn a_scope_sees_its_saves_and_others_what_it_commits() {
    for max_size in [1, 4] {
        let pool = PoolSettings { max_size, ..Default::default() };
        let bot = Bot::with(20, without_heartbeats(), pool).await;
        bot.assert_devices(0, 1).await;
        let scope = bot.store.atomically(async {
            bot.assert_devices(5, 1).await;
            bot.save_devices(DeviceChanges { new: vec![second(1)], ..Default::default() }).await;
            for (number, expected) in [(1, 2), (2, 1), (3, 1), (1, 2)] {
                bot.assert_devices(number, expected).await;
            }
            Ok::<(), CryptoStoreError>(())
        });
        scope.await.unwrap();
        for number in 0..20 {
            bot.assert_devices(number, if number == 1 { 2 } else { 1 }).await;
        }
        bot.store.close().await.unwrap();
    }
}

/// The number of users says little about that of devices, and that of devices little about their size.
#[tokio::test]
async fn many_rows_or_bytes_are_not_read_as_a_whole() {
    // Five users and the bot itself have a device each.
    for (copies, expected) in [(FEW_ROWS - 6, 2), (FEW_ROWS - 5, 5)] {
        let bot = Bot::knowing(5).await;
        bot.execute(&format!(
            "INSERT INTO matrix_sdk.devices (account_id, user_id, device_id, data)
            SELECT account_id, user_id, convert_to(number::text, 'UTF8'), '\\x00'
            FROM matrix_sdk.devices, generate_series(1, {copies}) number
            WHERE user_id = convert_to('{}', 'UTF8')",
            user(4),
        ))
        .await;
        let read = async {
            for number in 0..4 {
                bot.assert_devices(number, 1).await;
            }
            let copies = bot.store.get_user_devices(&user(4)).await;
            assert!(matches!(copies, Err(Error::CorruptRow { table: "devices", .. })));
        };
        assert_eq!(bot.round_trips(read).await, expected, "{copies} copies");
        bot.store.close().await.unwrap();
    }

    for (bytes, expected) in [(500_000, 2), (600_000, 4)] {
        let bot = Bot::knowing(5).await;
        bot.execute(&format!(
            "UPDATE matrix_sdk.devices SET data = decode(repeat('00', {bytes}), 'hex')
            WHERE user_id = convert_to('{}', 'UTF8')",
            user(4),
        ))
        .await;
        assert_eq!(bot.read_devices(4).await, expected, "{bytes} bytes");
        bot.store.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_small_cache_keeps_what_it_has() {
    let access = OwnershipSettings { cache_bytes: 40 << 10, ..without_heartbeats() };
    let bot = Bot::with(100, access, PoolSettings::default()).await;
    assert_eq!(bot.read_devices(20).await, 20);
    // Still cached.
    let account = async { assert!(bot.store.load_account().await.unwrap().is_some()) };
    assert_eq!(bot.round_trips(account).await, 0);
}

/// An operator's change makes the owner forget its cache.
#[tokio::test]
async fn rows_are_read_as_a_whole_again_after_maintenance() {
    let bot = Bot::knowing(20).await;
    for _ in 0..2 {
        assert_eq!(bot.read_devices(20).await, 2);
        bot.execute("UPDATE matrix_sdk.account_lanes SET maintenance = maintenance + 1").await;
        // Its commit sees the maintenance.
        bot.store.set_custom_value("any", vec![1]).await.unwrap();
    }
}

/// Another account has the same users with other devices.
#[tokio::test]
async fn the_rows_of_another_account_are_not_read() {
    let bot = Bot::knowing(5).await;
    let other = Mode::Plain.open(&bot.database.url(), "other").await;
    fill(&other, 5).await;
    let new = (0..5).map(second).collect();
    let devices = DeviceChanges { new, ..Default::default() };
    other.save_changes(Changes { devices, ..Default::default() }).await.unwrap();
    assert_eq!(bot.read_devices(5).await, 2);
    other.close().await.unwrap();
}
