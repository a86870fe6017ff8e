//! The encryption machine: what it wants sent, and what it wants to hear.

use std::{iter, sync::Arc};

use matrix_sdk_crypto::{
    DecryptionSettings, EncryptionSyncChanges, OlmError, OlmMachine, RoomEventDecryptionResult,
    TrustRequirement,
    types::{
        events::room::encrypted::EncryptedEvent,
        requests::{AnyIncomingResponse, AnyOutgoingRequest, OutgoingRequest},
    },
};
use matrix_sdk_postgres::Transaction;
use ruma::{
    OwnedUserId, RoomId, TransactionId, UserId,
    api::client::{
        keys::get_keys, message::send_message_event, sync::sync_events,
        to_device::send_event_to_device,
    },
    serde::Raw,
};
use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard};
use tracing::{debug, error, warn};

use crate::{
    errors::BridgeError,
    homeserver::{Homeserver, HomeserverError},
    keys::Keys,
};

/// Bridges' ghosts and bots are rarely cross-signed, so everybody is decrypted, and marked.
const SETTINGS: DecryptionSettings =
    DecryptionSettings { sender_device_trust_requirement: TrustRequirement::Untrusted };

/// The machine of one run; after an error of the store a new one is made.
pub struct Crypto {
    /// One user at a time: whoever writes while a sync is taken in would wait for its transaction
    /// with the machine's own locks in hand, which that transaction may need. Gone after a rollback.
    machine: Mutex<Option<OlmMachine>>,
    keys: Keys,
    homeserver: Arc<Homeserver>,
    /// The SDK asks that only one key claim be in flight; this covers all its requests.
    sending: Mutex<()>,
}

impl Crypto {
    pub fn new(machine: OlmMachine, keys: Keys, homeserver: Arc<Homeserver>) -> Self {
        Self { machine: Mutex::new(Some(machine)), keys, homeserver, sending: Mutex::default() }
    }

    /// Take in a sync as a whole or not at all: its to-device messages, `people` whose devices are
    /// followed from now on, and what `record` writes in the same transaction. It is given the Megolm
    /// sessions whose keys came with the sync.
    pub async fn receive<T>(
        &self,
        sync: &sync_events::v3::Response,
        people: &[OwnedUserId],
        record: impl AsyncFnOnce(&Transaction, Vec<String>) -> Result<T, BridgeError>,
    ) -> Result<T, BridgeError> {
        let changes = EncryptionSyncChanges {
            to_device_events: sync.to_device.events.clone(),
            changed_devices: &sync.device_lists,
            one_time_keys_counts: &sync.device_one_time_keys_count,
            unused_fallback_keys: sync.device_unused_fallback_key_types.as_deref(),
            next_batch_token: Some(sync.next_batch.clone()),
        };
        let mut slot = self.machine.lock().await;
        // Put back only after the commit: else it would upload keys that were never stored.
        let machine = slot.take().ok_or_else(rolled_back)?;
        let take_in = async {
            let (_, keys) = machine.receive_sync_changes(changes, &SETTINGS).await?;
            machine.update_tracked_users(people.iter().map(AsRef::as_ref)).await?;
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
    ) -> Result<RoomEventDecryptionResult, BridgeError> {
        let machine = self.machine().await?;
        Ok(machine.try_decrypt_room_event(event, room_id, &SETTINGS).await?)
    }

    /// Whether the key of an event has come.
    pub async fn has_key(
        &self,
        event: &Raw<EncryptedEvent>,
        room_id: &RoomId,
    ) -> Result<bool, BridgeError> {
        Ok(self.machine().await?.is_room_key_available(event, room_id).await?)
    }

    /// Send all that the machine wants sent: keys, key queries, to-device messages, and key claims
    /// that mend wedged sessions. What fails now is asked for again next time.
    pub async fn send_outgoing(&self) -> Result<(), BridgeError> {
        let _sending = self.sending.lock().await;
        let missing = self.machine().await?.get_missing_sessions(iter::empty()).await?;
        if let Some((id, claim)) = missing {
            match self.homeserver.send(claim).await {
                Ok(answer) => self.tell(&id, &answer).await?,
                Err(error) => not_sent("a key claim", error)?,
            }
        }
        let requests = self.machine().await?.outgoing_requests().await?;
        for request in requests {
            self.send_one(&request).await?;
        }
        Ok(())
    }

    /// Tell the machine what the homeserver answered. An answer it cannot use is not the store's
    /// fault, and must not stop the bridge.
    async fn tell<'a>(
        &self,
        id: &TransactionId,
        answer: impl Into<AnyIncomingResponse<'a>>,
    ) -> Result<(), BridgeError> {
        match self.machine().await?.mark_request_as_sent(id, answer).await {
            Err(OlmError::Store(error)) => Err(error.into()),
            Err(other) => {
                warn!("the homeserver's answer cannot be used: {other}");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    async fn send_one(&self, request: &OutgoingRequest) -> Result<(), BridgeError> {
        let id = request.request_id();
        // The same four lines for each type: an answer is told to the machine, an error is not.
        macro_rules! exchange {
            ($what:literal, $request:expr) => {
                match self.homeserver.send($request).await {
                    Ok(answer) => self.tell(id, &answer).await?,
                    Err(error) => not_sent($what, error)?,
                }
            };
        }
        match request.request() {
            AnyOutgoingRequest::KeysUpload(upload) => {
                debug!(
                    device_keys = upload.device_keys.is_some(),
                    one_time_keys = upload.one_time_keys.len(),
                    fallback_keys = upload.fallback_keys.len(),
                    "uploading keys"
                );
                exchange!("the key upload", upload.clone());
            }
            AnyOutgoingRequest::KeysQuery(query) => {
                let mut request = get_keys::v3::Request::new();
                request.timeout = query.timeout;
                request.device_keys = query.device_keys.clone();
                exchange!("a key query", request);
            }
            AnyOutgoingRequest::KeysClaim(claim) => exchange!("a key claim", claim.clone()),
            AnyOutgoingRequest::ToDeviceRequest(message) => {
                let request = send_event_to_device::v3::Request::new_raw(
                    message.event_type.clone(),
                    message.txn_id.clone(),
                    message.messages.clone(),
                );
                exchange!("a to-device message", request);
            }
            AnyOutgoingRequest::SignatureUpload(upload) => {
                exchange!("a signature upload", upload.clone());
            }
            AnyOutgoingRequest::RoomMessage(message) => {
                match send_message_event::v3::Request::new(
                    message.room_id.clone(),
                    message.txn_id.clone(),
                    &*message.content,
                ) {
                    Ok(request) => exchange!("a room message", request),
                    Err(error) => warn!("a room message cannot be serialised: {error}"),
                }
            }
        }
        Ok(())
    }
}

fn rolled_back() -> BridgeError {
    BridgeError::Temporary("a sync was rolled back, and its machine is gone".to_owned())
}

/// A request of the machine failed. Only a revoked token ends the run: the rest is tried again.
fn not_sent(what: &str, error: HomeserverError) -> Result<(), BridgeError> {
    if error.revoked_token().is_some() || matches!(error, HomeserverError::Stopped) {
        return Err(error.into());
    }
    if error.status() == Some(400) && error.to_string().contains("One time key") {
        error!(
            "the homeserver has other one-time keys of this device: another process uses it, or \
             the database was set back to an older state. Messages may become unreadable: begin \
             with a new device (set STORE_ACCOUNT to another name)"
        );
    }
    warn!("{what} failed: {error}");
    Ok(())
}
