//! The same room keys in every store.

use std::sync::Arc;

use matrix_sdk_crypto::{
    olm::{Account, SenderDataType},
    store::DynCryptoStore,
};
use ruma::{OwnedRoomId, device_id, user_id};
use test_support::{bot_day::Subject, fixture::inbound_session};

use crate::bench::contenders::{Contender, Distance, Environment};

const SESSIONS_A_ROOM: usize = 50;
const BATCH: usize = 10_000;
/// Maximum number of keys that are looked up: more than a cache holds.
const KEYS: usize = 20_000;

#[derive(Clone)]
pub struct Key {
    pub room_id: OwnedRoomId,
    pub session_id: String,
}

/// Five stores with the same, growing data: a memory store, and a plain and an encrypted one of each other
/// kind. All distances read the same PostgreSQL.
pub struct Dataset {
    memory: Subject,
    account: Account,
    size: usize,
    /// The keys to look up.
    pub keys: Vec<Key>,
}

const STORED: [Contender; 4] = [
    Contender::Sqlite { encrypted: false },
    Contender::Sqlite { encrypted: true },
    Contender::Postgres { distance: Distance::Unix, encrypted: false },
    Contender::Postgres { distance: Distance::Unix, encrypted: true },
];

impl Dataset {
    pub async fn new(environment: &Environment) -> Self {
        Self {
            memory: environment.open(Contender::Memory, "").await,
            account: Account::with_device_id(user_id!("@sender:example.org"), device_id!("DEVICE")),
            size: 0,
            keys: Vec::new(),
        }
    }

    /// Adds room keys until there are `size`.
    pub async fn fill(&mut self, environment: &Environment, size: usize) {
        let mut stores = vec![self.memory.store()];
        for contender in STORED {
            stores.push(environment.open(contender, name(contender)).await.store());
        }
        let step = size.div_ceil(KEYS);
        while self.size < size {
            let batch = self.size..size.min(self.size + BATCH);
            let mut sessions = Vec::with_capacity(batch.len());
            for number in batch {
                let room_id = format!("!room{}:example.org", number / SESSIONS_A_ROOM);
                let room_id: OwnedRoomId = room_id.try_into().unwrap();
                let session = inbound_session(&self.account, &room_id, SenderDataType::DeviceInfo);
                if number % step == 0 {
                    let session_id = session.session_id().to_owned();
                    self.keys.push(Key { room_id, session_id });
                }
                sessions.push(session);
            }
            self.size += sessions.len();
            for store in &stores {
                store.save_inbound_group_sessions(sessions.clone(), None).await.unwrap();
            }
        }
        for store in &stores[1..] {
            store.close().await.unwrap();
        }
        for sql in ["VACUUM ANALYZE", "CHECKPOINT"] {
            environment.execute(sql).await;
        }
    }

    /// A store to look up keys in.
    pub async fn reader(
        &self,
        environment: &Environment,
        contender: Contender,
    ) -> Arc<DynCryptoStore> {
        match contender {
            Contender::Memory => self.memory.store(),
            _ => environment.open_read_only(contender, name(contender)).await.store(),
        }
    }
}

/// The name of the account, and of SQLite's directory.
pub fn name(contender: Contender) -> &'static str {
    if contender.encrypted() { "encrypted" } else { "plain" }
}
