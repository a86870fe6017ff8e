//! A bot that saves one change set after another, and a ledger of the acknowledged saves.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use matrix_sdk_crypto::{
    olm::OlmMessageHash,
    store::{
        CryptoStore,
        types::{Changes, RoomSettings},
    },
};
use matrix_sdk_postgres::{Error, PostgresCryptoStore};
use ruma::{OwnedRoomId, RoomId};
use tokio::task::JoinHandle;

/// The saves that were begun, and those that were acknowledged.
#[derive(Default, Debug, Clone)]
pub struct Ledger {
    pub begun: u64,
    pub acknowledged: BTreeSet<u64>,
    /// Errors that were returned.
    pub errors: Vec<String>,
}

fn hash(number: u64, part: &str) -> OlmMessageHash {
    OlmMessageHash { sender_key: format!("save {number}"), hash: part.to_owned() }
}

fn room(number: u64) -> OwnedRoomId {
    RoomId::parse(format!("!room{number}:example.org")).unwrap()
}

/// Rows of three tables that belong together.
pub fn changes(number: u64) -> Changes {
    Changes {
        message_hashes: vec![hash(number, "first"), hash(number, "second")],
        room_settings: HashMap::from([(room(number), RoomSettings::default())]),
        next_batch_token: Some(number.to_string()),
        ..Default::default()
    }
}

impl Ledger {
    /// Saves once.
    pub async fn save(&mut self, store: &PostgresCryptoStore) -> Result<(), String> {
        let number = self.begun;
        self.begun += 1;
        match store.save_changes(changes(number)).await {
            Ok(()) => {
                self.acknowledged.insert(number);
                Ok(())
            }
            Err(error) => {
                let text = format!("save {number}: {error:?}");
                self.errors.push(text.clone());
                Err(text)
            }
        }
    }

    /// Asserts that each acknowledged save is stored, none is stored in part, and that the token is that of
    /// the last stored save. Needs a store without a cache.
    pub async fn check(&self, store: &PostgresCryptoStore) -> usize {
        let mut last = None;
        for number in 0..self.begun {
            let parts = [
                store.is_message_known(&hash(number, "first")).await.unwrap(),
                store.is_message_known(&hash(number, "second")).await.unwrap(),
                store.get_room_settings(&room(number)).await.unwrap().is_some(),
            ];
            let whole = parts.iter().all(|part| *part);
            assert!(whole || !parts.contains(&true), "save {number} is stored in part: {parts:?}");
            assert!(whole || !self.acknowledged.contains(&number), "save {number} is lost");
            last = if whole { Some(number) } else { last };
        }
        let token = store.next_batch_token().await.unwrap();
        assert_eq!(token, last.map(|number| number.to_string()), "saves were reordered");
        self.acknowledged.len()
    }

    pub fn assert_no_error(&self) {
        assert!(self.errors.is_empty(), "errors were returned: {:#?}", self.errors);
    }
}

/// Saves in a task until `end` is set; counts the acknowledged saves. After an error it reopens the store,
/// as a bot does.
pub fn stream(
    store: &PostgresCryptoStore,
    end: &Arc<AtomicBool>,
) -> (JoinHandle<Ledger>, Arc<AtomicUsize>) {
    let (store, end, count) = (store.clone(), end.clone(), Arc::new(AtomicUsize::new(0)));
    let counter = count.clone();
    let saves = tokio::spawn(async move {
        let mut ledger = Ledger::default();
        while !end.load(SeqCst) {
            match ledger.save(&store).await {
                Ok(()) => drop(counter.fetch_add(1, SeqCst)),
                Err(_) => reopen(&store).await,
            }
        }
        ledger
    });
    (saves, count)
}

/// Reopens the store until that succeeds.
pub async fn reopen(store: &PostgresCryptoStore) {
    super::eventually("the store opens", || async { store.reopen().await.is_ok() }).await;
}

pub fn is_superseded(error: &Error) -> bool {
    matches!(error, Error::Superseded { .. })
}
