//! Wraps the `OlmMachine`: syncs, decryption, and its outgoing requests.

use std::{iter, sync::Arc};

use matrix_sdk_common::deserialized_responses::EncryptionInfo;
use matrix_sdk_crypto::{
    CryptoStoreError, DecryptionSettings, EncryptionSyncChanges, MegolmError, OlmError, OlmMachine,
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

use crate::{errors::BridgeError, keys::Keys, message::is_owner, responses::Sync};

/// Bots and bridged users are rarely cross-signed: decrypt for every sender and report the
/// verification state instead.
const SETTINGS: DecryptionSettings =
    DecryptionSettings { sender_device_trust_requirement: TrustRequirement::Untrusted };

/// The machine of one run; a new one is built after a store error.
pub struct Crypto {
    /// Serialised, to avoid a deadlock: a task that saves during a sync holds the machine's internal
    /// locks while it waits for the sync's transaction, which may need them. `None` after a rollback.
    machine: Mutex<Option<OlmMachine>>,
    keys: Keys,
}

/// The result of decrypting a message.
pub enum Decrypted {
    Result(Box<RoomEventDecryptionResult>),
    /// Permanent: a corrupt row holds its key, or other data that decryption needs.
    Corrupt(String),
}

impl Crypto {
    pub fn new(machine: OlmMachine, keys: Keys) -> Self {
        Self { machine: Mutex::new(Some(machine)), keys }
    }

    /// Process a sync in one transaction: its to-device messages, the tracked users (`people`), and
    /// the rows that `record` writes. `record` receives the ids of the Megolm sessions whose keys came
    /// with the sync. `all_changed` marks the devices of all tracked users as outdated.
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
        // Put back only after the commit: otherwise it would upload keys that were never stored.
        let machine = slot.take().ok_or_else(rolled_back)?;
        let process = async {
            let (_, keys) = machine.receive_sync_changes(changes, &SETTINGS).await?;
            machine.update_tracked_users(people.iter().map(AsRef::as_ref)).await?;
            if all_changed {
                machine.mark_all_tracked_users_as_dirty().await?;
            }
            let sessions = keys.into_iter().map(|key| key.session_id);
            let sessions = sessions.filter(|id| !id.contains('\0')).collect();
            record(&self.keys.transaction().await?, sessions).await
        };
        let processed = self.keys.atomically(process).await?;
        *slot = Some(machine);
        Ok(processed)
    }

    /// The machine; the guard must not be held during a request to the homeserver.
    pub async fn machine(&self) -> Result<MappedMutexGuard<'_, OlmMachine>, BridgeError> {
        let slot = self.machine.lock().await;
        MutexGuard::try_map(slot, Option::as_mut).map_err(|_| rolled_back())
    }

    /// Start tracking the devices of these users.
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
            Err(error) => match corrupt_reason(&error) {
                Some(reason) => Ok(Decrypted::Corrupt(reason)),
                None => Err(error.into()),
            },
        }
    }

    /// What is known of the key that decrypted an event of `owner`, if that is its owner; `None` if it is
    /// not, as far as is known.
    pub async fn owned_key(
        &self,
        room_id: &RoomId,
        session_id: &str,
        owner: &UserId,
    ) -> Result<Option<Arc<EncryptionInfo>>, BridgeError> {
        let machine = self.machine().await?;
        let info = match machine.get_session_encryption_info(room_id, session_id, owner).await {
            Ok(info) if is_owner(&info.verification_state) => info,
            Err(MegolmError::Store(error)) if corrupt_reason(&error).is_none() => {
                return Err(error.into());
            }
            _ => return Ok(None),
        };
        // The key may have come with keys of a device that is not listed, or not any more.
        let Some(device_id) = &info.sender_device else { return Ok(None) };
        let device = machine.get_device(owner, device_id, None).await?;
        Ok(device.map(|_| info))
    }

    /// Whether the room key of an event is stored.
    pub async fn has_key(
        &self,
        event: &Raw<EncryptedEvent>,
        room_id: &RoomId,
    ) -> Result<bool, BridgeError> {
        match self.machine().await?.is_room_key_available(event, room_id).await {
            // Decryption reports the corrupt row.
            Err(error) if corrupt_reason(&error).is_some() => Ok(true),
            available => Ok(available?),
        }
    }

    /// Whether the key of a Megolm session is stored.
    pub async fn has_session(&self, room: &str, session_id: &str) -> Result<bool, BridgeError> {
        let Ok(room) = RoomId::parse(room) else { return Ok(false) };
        match self.keys.has_session(&room, session_id).await {
            // Decryption reports the corrupt row.
            Err(error) if corrupt_reason(&error).is_some() => Ok(true),
            stored => Ok(stored?),
        }
    }

    /// Whether another device of the bot's user is verified.
    pub async fn is_another_device_verified(&self) -> Result<bool, BridgeError> {
        let machine = self.machine().await?;
        match machine.get_user_devices(machine.user_id(), None).await {
            Ok(devices) => Ok(devices.is_any_verified()),
            Err(error) => skip_corrupt(Err(error)),
        }
    }

    /// Requests for the key of an event, which the machine does not return with the others: the cancellation of
    /// the former one, if any, and the new one.
    pub async fn key_request(
        &self,
        event: &Raw<EncryptedEvent>,
        room_id: &RoomId,
    ) -> Result<Vec<OutgoingRequest>, BridgeError> {
        match self.machine().await?.request_room_key(event, room_id).await {
            Ok((cancellation, request)) => Ok(cancellation.into_iter().chain([request]).collect()),
            Err(MegolmError::Store(error)) => skip_corrupt(Err(error)),
            // Not an event that has a session.
            Err(_) => Ok(Vec::new()),
        }
    }

    /// The machine's pending requests except key claims. Each call invalidates earlier key queries.
    pub async fn outgoing_requests(&self) -> Result<Vec<OutgoingRequest>, BridgeError> {
        skip_corrupt(self.machine().await?.outgoing_requests().await)
    }

    /// The key claim for missing or broken Olm sessions, if any.
    pub async fn missing_sessions(
        &self,
    ) -> Result<Option<(OwnedTransactionId, claim_keys::v3::Request)>, BridgeError> {
        skip_corrupt(self.machine().await?.get_missing_sessions(iter::empty()).await)
    }

    /// A key query for one user, in addition to those of [`Self::outgoing_requests`].
    pub async fn query_for_user(
        &self,
        user: &UserId,
    ) -> Result<(OwnedTransactionId, KeysQueryRequest), BridgeError> {
        Ok(self.machine().await?.query_keys_for_users([user]))
    }

    /// Pass the response of a request to the machine. A response that it rejects is logged only: it
    /// must not stop the bridge.
    pub async fn mark_as_sent<'a>(
        &self,
        id: &TransactionId,
        response: impl Into<AnyIncomingResponse<'a>>,
    ) -> Result<(), BridgeError> {
        match self.machine().await?.mark_request_as_sent(id, response).await {
            Err(OlmError::Store(error)) if corrupt_reason(&error).is_none() => Err(error.into()),
            Err(other) => {
                warn!("the homeserver's response to an encryption request was rejected: {other}");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

fn rolled_back() -> BridgeError {
    BridgeError::Temporary("the transaction of a sync was rolled back".to_owned())
}

/// A corrupt row must not stop the bridge from receiving: log it and send nothing.
fn skip_corrupt<T: Default>(result: Result<T, CryptoStoreError>) -> Result<T, BridgeError> {
    result.or_else(|error| match corrupt_reason(&error) {
        Some(reason) => {
            warn!("cannot determine the pending encryption requests: {reason}");
            Ok(T::default())
        }
        None => Err(error.into()),
    })
}

/// The reason, if a store error is caused by a corrupt row and not by a failed query.
fn corrupt_reason(error: &CryptoStoreError) -> Option<String> {
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
