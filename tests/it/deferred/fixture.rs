//! A session created by a received message, and a store that defers it.

use matrix_sdk_crypto::{
    DeviceData, LocalTrust,
    olm::{Account, Session},
    store::{
        CryptoStore,
        types::{Changes, DeviceChanges, PendingChanges},
    },
};
use matrix_sdk_postgres::{
    Access, Error, PostgresCryptoStore,
    testing::{self, TestDatabase},
};
use ruma::{device_id, user_id};
use test_support::{
    Mode,
    fixture::{own_device, own_user},
    values::received_session,
};

/// An account with its device, and a session created by a message of another device.
pub struct DeferredSession {
    pub database: TestDatabase,
    pub store: PostgresCryptoStore,
    pub own: Account,
    pub other: DeviceData,
    pub session: Session,
}

impl DeferredSession {
    pub async fn new() -> Self {
        let database = testing::database().unwrap();
        let store = Mode::Key.open(&database.url(), "bot").await;
        let own = Account::with_device_id(own_user(), own_device());
        let other = Account::with_device_id(user_id!("@other:example.org"), device_id!("OTHER"));
        let account = Some(own.deep_clone());
        store.save_pending_changes(PendingChanges { account }).await.unwrap();
        let devices = vec![DeviceData::from_account(&own), DeviceData::from_account(&other)];
        let devices = DeviceChanges { new: devices, ..Default::default() };
        store.save_changes(Changes { devices, ..Default::default() }).await.unwrap();
        let [session, _] = received_session(&own, &other).await;
        Self { database, store, own, other: DeviceData::from_account(&other), session }
    }

    /// Saves what the SDK saves when the message is received.
    pub async fn receive(&self) {
        let devices = DeviceChanges {
            changed: vec![self.other_with_trust(LocalTrust::Ignored)],
            ..Default::default()
        };
        let sessions = vec![self.session.clone()];
        self.store.save_changes(Changes { sessions, devices, ..Default::default() }).await.unwrap();
    }

    /// Reopens the store and loads what the SDK loads for a new machine.
    pub async fn build_machine(&self) {
        self.store.reopen().await.unwrap();
        self.store.load_account().await.unwrap();
        self.store.load_identity().await.unwrap();
    }

    pub async fn save_session(&self) {
        let sessions = vec![self.session.clone()];
        self.store.save_changes(Changes { sessions, ..Default::default() }).await.unwrap();
    }

    pub async fn save_token(&self) {
        self.try_save_token().await.unwrap();
    }

    pub async fn try_save_token(&self) -> Result<(), Error> {
        let next_batch_token = Some("s1".to_owned());
        self.store.save_changes(Changes { next_batch_token, ..Default::default() }).await
    }

    pub async fn encrypt(&self) {
        self.session.inner.lock().await.encrypt("hello").unwrap();
    }

    /// The stored session, as another store reads it.
    pub async fn stored(&self) -> Option<Session> {
        let config = Mode::Key.config(&self.database.url(), "bot").access(Access::ReadOnly);
        let read_only = PostgresCryptoStore::open_with_config(&config).await.unwrap();
        read_only.load_account().await.unwrap().unwrap();
        session_in(&read_only, &self.session).await
    }

    /// Whether the stored session equals the one in memory.
    pub async fn is_stored(&self) -> bool {
        let Some(stored) = self.stored().await else { return false };
        pickle(&stored).await == pickle(&self.session).await
    }

    /// The other device with a changed trust.
    pub fn other_with_trust(&self, trust: LocalTrust) -> DeviceData {
        DeviceData::new(self.other.as_device_keys().clone(), trust)
    }

    /// The trust of the other device, which distinguishes the versions of its row.
    pub async fn trust(&self) -> LocalTrust {
        let (user_id, device_id) = (self.other.user_id(), self.other.device_id());
        let device = self.store.get_device(user_id, device_id).await.unwrap().unwrap();
        let all = self.store.get_user_devices(user_id).await.unwrap();
        assert_eq!(all[device_id].local_trust_state(), device.local_trust_state());
        device.local_trust_state()
    }
}

pub async fn pickle(session: &Session) -> serde_json::Value {
    serde_json::to_value(session.pickle().await).unwrap()
}

pub async fn session_in(store: &PostgresCryptoStore, session: &Session) -> Option<Session> {
    let found = store.get_sessions(&session.sender_key().to_base64()).await.unwrap();
    found.into_iter().flatten().find(|found| found.session_id() == session.session_id())
}
