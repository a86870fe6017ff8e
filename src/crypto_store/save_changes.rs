//! Stages `Changes` as one batch.

use std::sync::Arc;

use matrix_sdk_crypto::{
    olm::InboundGroupSession,
    store::types::{Changes, DeviceChanges, IdentityChanges},
};
use tokio::runtime::Handle;
use tracing::warn;

use super::{
    account_data,
    deferred::{Group, Saves, received_session},
    devices, encrypted_rooms, identities, inbound_group_sessions, key_requests, message_hashes,
    olm_sessions::{self, SessionRow},
    outbound_group_sessions, room_key_bundles, secrets, sync_tokens, withheld,
};
use crate::{
    Error,
    account::{Staging, StoreLane, cancellation::Cancellation, cipher::Codec, write::batch::Batch},
};

/// From this many room keys on, a save takes more than the 4 MB of one statement and is sent in chunks.
const CHUNKED_FROM: usize = 10_000;

/// Room keys per chunk: one chunk is sealed while the server works on the one before.
const CHUNK_SESSIONS: usize = 1_000;

pub(super) async fn save(account: &StoreLane, saves: Saves, changes: Changes) -> Result<(), Error> {
    let (_guard, cancellation) = Cancellation::new();
    let stage = |staging: Staging| async move {
        if saves.may_defer() && defer(&staging.codec, &saves, &cancellation, &changes).await? {
            return Ok(Batch::default());
        }
        stage(&staging.codec, &saves, changes).await
    };
    account.write(stage).await
}

/// Defers a save that records nothing but a received message.
async fn defer(
    codec: &Codec,
    saves: &Saves,
    cancellation: &Cancellation,
    changes: &Changes,
) -> Result<bool, Error> {
    let Some((session, device)) = received_session(changes) else { return Ok(false) };
    let row = SessionRow::of(codec, session).await?;
    if !saves.has_only_received(session.session_id(), &row.sending) {
        return Ok(false);
    }
    saves.record(session.session_id(), row.sending);
    let session = ((Group::OlmSessions(row.sender_key), row.session_id), Some(row.row));
    let device = device.map(|device| devices::row(codec, device)).transpose()?;
    let device = device.map(|(key, row)| (devices::row_key(&key), Some(row)));
    saves.defer(cancellation, std::iter::once(session).chain(device))
}

/// Pickles in the writer lane, so that no later state is overwritten by an earlier one.
async fn stage(codec: &Codec, saves: &Saves, changes: Changes) -> Result<Batch, Error> {
    // Destructured without `..`: a field that upstream adds breaks the build, not the store.
    let Changes {
        private_identity,
        backup_version,
        backup_decryption_key,
        dehydrated_device_pickle_key,
        sessions,
        message_hashes,
        inbound_group_sessions,
        outbound_group_sessions,
        key_requests,
        identities:
            IdentityChanges { new: new_identities, changed: changed_identities, unchanged: _ },
        devices:
            DeviceChanges { new: new_devices, changed: changed_devices, deleted: deleted_devices },
        withheld_session_info,
        room_settings,
        secrets,
        next_batch_token,
        received_room_key_bundles,
        room_key_backups_fully_downloaded,
        rooms_pending_key_bundle,
    } = changes;
    let (mut staged, mut rows) = (Batch::default(), Vec::new());
    let batch = &mut staged;

    if let Some(identity) = &private_identity {
        account_data::stage_identity(batch, codec, identity).await?;
    }
    account_data::stage_backup_keys(batch, codec, backup_version, backup_decryption_key)?;
    if let Some(key) = &dehydrated_device_pickle_key {
        account_data::stage_dehydrated_device_key(batch, codec, key)?;
    }
    if let Some(token) = &next_batch_token {
        sync_tokens::stage(batch, codec, token)?;
    }
    for device in new_devices.iter().chain(&changed_devices) {
        let (key, row) = devices::row(codec, device)?;
        devices::stage(batch, key.each_ref(), row);
        rows.push(devices::row_key(&key));
    }
    for device in &deleted_devices {
        rows.push(devices::stage_delete(batch, codec, device));
    }
    for identity in new_identities.iter().chain(&changed_identities) {
        identities::stage(batch, codec, identity)?;
    }
    for session in &sessions {
        let SessionRow { sender_key, session_id, row, sending } =
            SessionRow::of(codec, session).await?;
        saves.record(session.session_id(), sending);
        olm_sessions::stage(batch, [&sender_key, &session_id], row);
        rows.push((Group::OlmSessions(sender_key), session_id));
    }
    for hash in &message_hashes {
        message_hashes::stage(batch, codec, hash);
    }
    for session in &inbound_group_sessions {
        inbound_group_sessions::stage(batch, codec, session, None).await?;
    }
    for session in &outbound_group_sessions {
        outbound_group_sessions::stage(batch, codec, saves, session).await?;
    }
    rows.extend(key_requests::stage(batch, codec, &key_requests)?);
    for (room_id, entries) in &withheld_session_info {
        for (session_id, entry) in entries {
            withheld::stage(batch, codec, room_id, session_id, entry)?;
        }
    }
    for (room_id, settings) in &room_settings {
        encrypted_rooms::stage(batch, codec, room_id, settings)?;
    }
    for secret in &secrets {
        secrets::stage(batch, codec, secret)?;
    }
    for bundle in &received_room_key_bundles {
        room_key_bundles::stage_received(batch, codec, bundle)?;
    }
    for room_id in &room_key_backups_fully_downloaded {
        room_key_bundles::stage_backed_up(batch, codec, room_id);
    }
    for (room_id, details) in &rooms_pending_key_bundle {
        room_key_bundles::stage_pending(batch, codec, room_id, details.as_ref())?;
    }
    saves.complete(batch, rows, next_batch_token.is_some())?;
    Ok(staged)
}

/// Saves room keys; `version` is the backup version that holds them, if any.
pub(super) async fn save_inbound_group_sessions(
    account: &StoreLane,
    sessions: Vec<InboundGroupSession>,
    version: Option<&str>,
) -> Result<(), Error> {
    let version = version.map(ToOwned::to_owned);
    let mismatched =
        sessions.iter().filter(|session| session.backed_up() != version.is_some()).count();
    if mismatched > 0 {
        warn!(mismatched, "sessions whose backed-up flag does not match the backup version given");
    }
    if sessions.len() < CHUNKED_FROM {
        return account
            .write(|staging| async move {
                stage_sessions(&staging.codec, &sessions, version.as_deref()).await
            })
            .await;
    }
    let (sessions, codec) = (Arc::new(sessions), account.codec.clone());
    let chunks = (0..sessions.len()).step_by(CHUNK_SESSIONS).map(move |start| {
        let (sessions, codec, version) = (sessions.clone(), codec.clone(), version.clone());
        move || {
            let chunk = &sessions[start..sessions.len().min(start + CHUNK_SESSIONS)];
            Handle::current().block_on(stage_sessions(&codec, chunk, version.as_deref()))
        }
    });
    account.write_parts(chunks).await
}

async fn stage_sessions(
    codec: &Codec,
    sessions: &[InboundGroupSession],
    version: Option<&str>,
) -> Result<Batch, Error> {
    let mut batch = Batch::default();
    for session in sessions {
        inbound_group_sessions::stage(&mut batch, codec, session, version).await?;
    }
    Ok(batch)
}
