//! The encryption machine: what it wants sent, and what it wants to hear.

use std::iter;

use matrix_sdk_crypto::{
    CryptoStoreError, DecryptionSettings, EncryptionSyncChanges, OlmError, OlmMachine,
    RoomEventDecryptionResult, TrustRequirement,
    types::{
        events::room::encrypted::EncryptedEvent,
        requests::{AnyIncomingResponse, KeysQueryRequest, OutgoingRequest},
    },
};
use matrix_sdk_postgres::{Error as StoreError, Transaction};
use ruma::{
    OwnedTransactionId, OwnedUserId, RoomId, TransactionId, UserId, api::client::keys::claim_keys,
    serde::Raw,
};
use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard};
use tracing::warn;

use crate::{answers::Sync, errors::BridgeError, keys::Keys};

/// Bridges' ghosts and bots are rarely cross-signed, so everybody is decrypted, and marked.
const SETTINGS: DecryptionSettings =
    DecryptionSettings { sender_device_trust_requirement: TrustRequirement::Untrusted };

/// The machine of one run; after an error of the store a new one is made.
pub struct Crypto {
    /// One user at a time: whoever writes while a sync is taken in would wait for its transaction
    /// with the machine's own locks in hand, which that transaction may need. Gone after a rollback.
    machine: Mutex<Option<OlmMachine>>,
    keys: Keys,
}

/// What the machine makes of a message.
pub enum Decrypted {
    Result(Box<RoomEventDecryptionResult>),
    /// Its key, or something else it needs, is stored in a way that cannot be read: neither the
    /// message nor time will change that.
    Unreadable(String),
}

impl Crypto {
    pub fn new(machine: OlmMachine, keys: Keys) -> Self {
        Self { machine: Mutex::new(Some(machine)), keys }
    }

    /// Take in a sync as a whole or not at all: its to-device messages, `people` whose devices are
    /// followed from now on, and what `record` writes in the same transaction. It is given the Megolm
    /// sessions whose keys came with the sync. With `all_changed`, all devices are asked about again.
    pub async fn receive<T>(
        &self,
        sync: &Sync,
        people: &[OwnedUserId],
        all_changed: bool,
        record: impl AsyncFnOnce(&Transaction, Vec<String>) -> Result<T, BridgeError>,
    ) -> Result<T, BridgeError> {
        let changes = EncryptionSyncChanges {
            to_device_events: sync.to_device.clone(),
            changed_devices: &sync.device_lists,
            one_time_keys_counts: &sync.one_time_keys,
            unused_fallback_keys: sync.unused_fallback_keys.as_deref(),
            next_batch_token: Some(sync.next_batch.clone()),
        };
        let mut slot = self.machine.lock().await;
        // Put back only after the commit: else it would upload keys that were never stored.
        let machine = slot.take().ok_or_else(rolled_back)?;
        let take_in = async {
            let (_, keys) = machine.receive_sync_changes(changes, &SETTINGS).await?;
            machine.update_tracked_users(people.iter().map(AsRef::as_ref)).await?;
            if all_changed {
                machine.mark_all_tracked_users_as_dirty().await?;
            }
            let sessions = keys.into_iter().map(|key| key.session_id);
            let sessions = sessions.filter(|id| !id.contains('\0')).collect();
            record(&self.keys.transaction().await?, sessions).await
        };
        let taken_in = self.keys.atomically(take_in).await?;
        *slot = Some(machine);
        Ok(taken_in)
    }

    async fn machine(&self) -> Result<MappedMutexGuard<'_, OlmMachine>, BridgeError> {
        let slot = self.machine.lock().await;
        MutexGuard::try_map(slot, Option::as_mut).map_err(|_| rolled_back())
    }

    /// Follow these users' devices from now on.
    pub async fn track(&self, users: &[OwnedUserId]) -> Result<(), BridgeError> {
        let users = users.iter().map(AsRef::<UserId>::as_ref);
        Ok(self.machine().await?.update_tracked_users(users).await?)
    }

    pub async fn decrypt(
        &self,
        event: &Raw<EncryptedEvent>,
        room_id: &RoomId,
    ) -> Result<Decrypted, BridgeError> {
        let machine = self.machine().await?;
        match machine.try_decrypt_room_event(event, room_id, &SETTINGS).await {
            Ok(result) => Ok(Decrypted::Result(Box::new(result))),
            Err(error) => match corrupt(&error) {
                Some(reason) => Ok(Decrypted::Unreadable(reason)),
                None => Err(error.into()),
            },
        }
    }

    /// Whether the key of an event has come.
    pub async fn has_key(
        &self,
        event: &Raw<EncryptedEvent>,
        room_id: &RoomId,
    ) -> Result<bool, BridgeError> {
        match self.machine().await?.is_room_key_available(event, room_id).await {
            // That shows when it is decrypted.
            Err(error) if corrupt(&error).is_some() => Ok(true),
            available => Ok(available?),
        }
    }

    /// What it wants sent, but for key claims. Asking again forgets key queries in flight.
    pub async fn outgoing_requests(&self) -> Result<Vec<OutgoingRequest>, BridgeError> {
        or_nothing(self.machine().await?.outgoing_requests().await)
    }

    /// The claim that repairs broken Olm sessions.
    pub async fn missing_sessions(
        &self,
    ) -> Result<Option<(OwnedTransactionId, claim_keys::v3::Request)>, BridgeError> {
        or_nothing(self.machine().await?.get_missing_sessions(iter::empty()).await)
    }

    /// A key query for one user, beside those of [`Self::outgoing_requests`].
    pub async fn query_about(
        &self,
        user: &UserId,
    ) -> Result<(OwnedTransactionId, KeysQueryRequest), BridgeError> {
        Ok(self.machine().await?.query_keys_for_users([user]))
    }

    /// Tell the machine what the homeserver answered. An answer it cannot use is not the store's
    /// fault, and must not stop the bridge.
    pub async fn tell<'a>(
        &self,
        id: &TransactionId,
        answer: impl Into<AnyIncomingResponse<'a>>,
    ) -> Result<(), BridgeError> {
        match self.machine().await?.mark_request_as_sent(id, answer).await {
            Err(OlmError::Store(error)) if corrupt(&error).is_none() => Err(error.into()),
            Err(other) => {
                warn!("an answer of the homeserver cannot be used: {other}");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

fn rolled_back() -> BridgeError {
    BridgeError::Temporary("a sync was rolled back, and its machine is gone".to_owned())
}

/// What is stored and cannot be read must not keep the bridge from receiving.
fn or_nothing<T: Default>(result: Result<T, CryptoStoreError>) -> Result<T, BridgeError> {
    result.or_else(|error| match corrupt(&error) {
        Some(reason) => {
            warn!("what is to be sent cannot be told: {reason}");
            Ok(T::default())
        }
        None => Err(error.into()),
    })
}

/// Whether an error of the store is about what is stored, and not about storing.
fn corrupt(error: &CryptoStoreError) -> Option<String> {
    match error {
        CryptoStoreError::Backend(backend) => match backend.downcast_ref::<StoreError>() {
            Some(error @ StoreError::CorruptRow { .. }) => Some(error.to_string()),
            _ => None,
        },
        CryptoStoreError::UnpicklingError
        | CryptoStoreError::Pickle(_)
        | CryptoStoreError::SessionCreation(_)
        | CryptoStoreError::IdentifierValidation(_)
        | CryptoStoreError::Serialization(_) => Some(error.to_string()),
        _ => None,
    }
}
