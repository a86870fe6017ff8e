//! Rule 28: rows that are read ahead. Before the SDK encrypts for many devices, it reads the devices, and then their
//! Olm sessions one by one: these are fetched with the first of them, and returned as the database has them when
//! they are asked for.

use futures_util::{FutureExt as _, future::join_all};
use matrix_sdk_crypto::{
    CryptoStoreError, DeviceData,
    olm::{Account, Session},
    store::{
        CryptoStore,
        types::{Changes, DeviceChanges, PendingChanges},
    },
};
use matrix_sdk_postgres::{
    Error, OwnershipSettings, PoolSettings, PostgresCryptoStore, PostgresStoreConfig,
    testing::{self, TestDatabase},
};
use ruma::{OwnedUserId, UserId};
use test_support::{
    Mode, connect,
    fixture::{own_device, own_user},
    proxy::{Action, Proxy},
    values::{copy_of, olm_session, received_session},
    without_heartbeats,
};

const USERS: usize = 20;

/// A bot that has a session with a device of each user, after a restart.
struct Room {
    database: TestDatabase,
    proxy: Proxy,
    config: PostgresStoreConfig,
    store: PostgresCryptoStore,
    own: Account,
    others: Vec<Account>,
    sessions: Vec<Session>,
}

impl Room {
    async fn new() -> Self {
        Self::with_cache(16 << 20).await
    }

    async fn with_cache(cache_bytes: usize) -> Self {
        let database = testing::database().unwrap();
        let (proxy, url) = Proxy::before(&database);
        let config = Mode::Key
            .config(&url, "bot")
            .pool(PoolSettings { max_size: 1, ..Default::default() })
            .access(OwnershipSettings { cache_bytes, ..without_heartbeats() });
        let own = Account::with_device_id(own_user(), own_device());
        let (mut others, mut sessions, mut devices) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..USERS {
            let mut other = Account::with_device_id(&user(number), own_device());
            sessions.push(olm_session(&own, &mut other));
            devices.push(DeviceData::from_account(&other));
            others.push(other);
        }
        devices.push(DeviceData::from_account(&own));
        let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
        let account = Some(own.deep_clone());
        store.save_pending_changes(PendingChanges { account }).await.unwrap();
        let devices = DeviceChanges { new: devices, ..Default::default() };
        let changes = Changes { sessions: sessions.clone(), devices, ..Default::default() };
        store.save_changes(changes).await.unwrap();
        store.close().await.unwrap();
        let store = reopened(&config).await;
        Self { database, proxy, config, store, own, others, sessions }
    }

    /// Reads the devices of all users.
    async fn read_devices(&self) {
        for number in 0..USERS {
            assert_eq!(self.store.get_user_devices(&user(number)).await.unwrap().len(), 1);
        }
        self.store.get_user_devices(own_user()).await.unwrap();
    }

    fn sender(&self, number: usize) -> String {
        self.sessions[number].sender_key().to_base64()
    }

    /// The sessions of a user, each as its pickle.
    async fn read(&self, number: usize) -> Vec<String> {
        let sessions = self.store.get_sessions(&self.sender(number)).await.unwrap();
        let mut pickles = Vec::new();
        for session in sessions.unwrap_or_default() {
            pickles.push(pickle(&session).await);
        }
        pickles.sort();
        pickles
    }

    async fn assert_read(&self, number: usize, expected: &[&Session]) {
        let mut pickles = Vec::new();
        for session in expected {
            pickles.push(pickle(session).await);
        }
        pickles.sort();
        assert_eq!(self.read(number).await, pickles, "user {number}");
    }

    /// The user's sessions are those from before the restart.
    async fn assert_unchanged(&self, number: usize) {
        self.assert_read(number, &[&self.sessions[number]]).await;
    }

    /// The number of round trips of an operation.
    async fn round_trips(&self, operation: impl Future<Output = ()>) -> usize {
        self.proxy.count_round_trips(operation).await.0
    }

    async fn save(&self, session: &Session) {
        let sessions = vec![session.clone()];
        self.store.save_changes(Changes { sessions, ..Default::default() }).await.unwrap();
    }

    /// A copy of a user's session that has encrypted a message.
    async fn used(&self, number: usize) -> Session {
        let session = copy_of(&self.own, &self.sessions[number]).await;
        session.inner.lock().await.encrypt("hello").unwrap();
        session
    }
}

fn user(number: usize) -> OwnedUserId {
    UserId::parse(format!("@user{number}:example.org")).unwrap()
}

async fn pickle(session: &Session) -> String {
    serde_json::to_string(&session.pickle().await).unwrap()
}

async fn reopened(config: &PostgresStoreConfig) -> PostgresCryptoStore {
    let store = PostgresCryptoStore::open_with_config(config).await.unwrap();
    store.load_account().await.unwrap().unwrap();
    store.get_own_device().await.unwrap();
    store
}

#[tokio::test]
async fn the_sessions_of_devices_that_were_read_take_one_round_trip() {
    let room = Room::new().await;
    room.read_devices().await;
    let all = async {
        for number in 0..USERS {
            room.assert_unchanged(number).await;
        }
    };
    assert_eq!(room.round_trips(all).await, 1);
    // Each was returned once: nothing is cached.
    room.read_devices().await;
    for number in [3, 7] {
        let again = room.assert_unchanged(number);
        assert_eq!(room.round_trips(again).await, 1);
    }
}

#[tokio::test]
async fn without_a_cache_every_read_is_a_query() {
    let room = Room::with_cache(0).await;
    room.read_devices().await;
    for number in 0..3 {
        let read = room.assert_unchanged(number);
        assert_eq!(room.round_trips(read).await, 1);
    }
}

#[tokio::test]
async fn concurrent_readers_get_their_own_sessions() {
    for _ in 0..5 {
        let room = Room::new().await;
        room.read_devices().await;
        let readers = (0..USERS).map(|number| room.assert_unchanged(number));
        join_all(readers).await;
    }
}

#[tokio::test]
async fn a_session_saved_in_between_is_returned_as_it_was_saved() {
    let room = Room::new().await;
    room.read_devices().await;
    room.assert_unchanged(0).await;
    let used = room.used(1).await;
    room.save(&used).await;
    room.assert_read(1, &[&used]).await;

    // A save that is committed while the sessions are fetched: they are not kept.
    room.store.close().await.unwrap();
    let room = Room { store: reopened(&room.config).await, ..room };
    room.read_devices().await;
    let used = room.used(2).await;
    let (reading, saving) = (room.assert_unchanged(0), room.save(&used));
    futures_util::join!(reading, saving);
    room.assert_read(2, &[&used]).await;
}

#[tokio::test]
async fn a_deferred_session_is_returned_with_the_others() {
    let room = Room::new().await;
    room.read_devices().await;
    room.assert_unchanged(0).await;
    // It has only received, so it is deferred to the save of the sync's token.
    let [received, _] = received_session(&room.own, &room.others[1]).await;
    let commits = room.proxy.commits();
    room.save(&received).await;
    assert_eq!(room.proxy.commits(), commits);
    room.assert_read(1, &[&room.sessions[1], &received]).await;

    let [received, _] = received_session(&room.own, &room.others[2]).await;
    room.save(&received).await;
    let next_batch_token = Some("token".to_owned());
    room.store.save_changes(Changes { next_batch_token, ..Default::default() }).await.unwrap();
    room.assert_read(2, &[&room.sessions[2], &received]).await;
}

#[tokio::test]
async fn a_scope_reads_its_own_saves() {
    let room = Room::new().await;
    room.read_devices().await;
    room.assert_unchanged(0).await;
    let used = room.used(1).await;
    let scope = room.store.atomically(async {
        room.save(&used).await;
        room.assert_read(1, &[&used]).await;
        room.assert_unchanged(2).await;
        Err::<(), _>(CryptoStoreError::AccountUnset)
    });
    scope.await.unwrap_err();
    room.assert_unchanged(1).await;

    // Rows that a scope's connection has read are not kept for others.
    let room = Room::new().await;
    room.read_devices().await;
    let used = room.used(1).await;
    let scope = room.store.atomically(async {
        room.save(&used).await;
        room.assert_unchanged(0).await;
        Err::<(), _>(CryptoStoreError::AccountUnset)
    });
    scope.await.unwrap_err();
    room.assert_unchanged(1).await;
}

#[tokio::test]
async fn a_dropped_reader_disturbs_no_other() {
    for polls in 0..4 {
        let room = Room::new().await;
        room.read_devices().await;
        let sender = room.sender(0);
        let mut dropped = room.store.get_sessions(&sender);
        for _ in 0..polls {
            let _ = (&mut dropped).now_or_never();
            tokio::task::yield_now().await;
        }
        drop(dropped);
        for number in 0..USERS {
            room.assert_unchanged(number).await;
        }
    }
}

#[tokio::test]
async fn a_broken_connection_is_replaced() {
    let room = Room::new().await;
    room.read_devices().await;
    let cut = room.proxy.once(|message| message.tag == b'S', Action::CutAfter);
    for number in 0..USERS {
        room.assert_unchanged(number).await;
    }
    assert!(cut.load(std::sync::atomic::Ordering::SeqCst));
}

#[tokio::test]
async fn a_corrupt_row_fails_its_own_reader_only() {
    let room = Room::new().await;
    let client = connect(&room.database.url()).await;
    let sql = "UPDATE matrix_sdk.olm_sessions SET data = '\\x00' WHERE sender_key = (
                   SELECT sender_key FROM matrix_sdk.olm_sessions LIMIT 1)";
    assert_eq!(client.execute(sql, &[]).await.unwrap(), 1);
    room.read_devices().await;
    let mut failed = 0;
    for number in 0..USERS {
        match room.store.get_sessions(&room.sender(number)).await {
            Ok(sessions) => assert_eq!(sessions.unwrap().len(), 1),
            Err(Error::CorruptRow { table: "olm_sessions", .. }) => failed += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(failed, 1);
}

#[tokio::test]
async fn rows_of_before_a_takeover_are_gone_after_reopening() {
    let room = Room::new().await;
    room.read_devices().await;
    room.assert_unchanged(0).await;
    let other = reopened(&room.config).await;
    let used = room.used(1).await;
    let changes = Changes { sessions: vec![used.clone()], ..Default::default() };
    other.save_changes(changes).await.unwrap();
    other.close().await.unwrap();
    let token = Some("token".to_owned());
    let changes = Changes { next_batch_token: token, ..Default::default() };
    assert!(room.store.save_changes(changes).await.is_err());
    assert!(room.store.get_sessions(&room.sender(1)).await.is_err());
    let room = Room { store: reopened(&room.config).await, ..room };
    room.assert_read(1, &[&used]).await;
}
