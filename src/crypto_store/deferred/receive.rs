//! Recognises saves that record nothing but a received message.

use matrix_sdk_crypto::{
    DeviceData,
    olm::Session,
    store::types::{Changes, DeviceChanges, IdentityChanges},
};

/// The session, and the changed device if any, of a save that holds nothing else.
pub(crate) fn received_session(changes: &Changes) -> Option<(&Session, Option<&DeviceData>)> {
    // Destructured without `..`: a field that upstream adds breaks the build, not the store.
    let Changes {
        private_identity: None,
        backup_version: None,
        backup_decryption_key: None,
        dehydrated_device_pickle_key: None,
        sessions,
        message_hashes,
        inbound_group_sessions,
        outbound_group_sessions,
        key_requests,
        identities: IdentityChanges { new: new_identities, changed: changed_identities, unchanged },
        devices: DeviceChanges { new: new_devices, changed: changed_devices, deleted },
        withheld_session_info,
        room_settings,
        secrets,
        next_batch_token: None,
        received_room_key_bundles,
        room_key_backups_fully_downloaded,
        rooms_pending_key_bundle,
    } = changes
    else {
        return None;
    };
    let is_alone = message_hashes.is_empty()
        && inbound_group_sessions.is_empty()
        && outbound_group_sessions.is_empty()
        && key_requests.is_empty()
        && new_identities.is_empty()
        && changed_identities.is_empty()
        && unchanged.is_empty()
        && new_devices.is_empty()
        && deleted.is_empty()
        && withheld_session_info.is_empty()
        && room_settings.is_empty()
        && secrets.is_empty()
        && received_room_key_bundles.is_empty()
        && room_key_backups_fully_downloaded.is_empty()
        && rooms_pending_key_bundle.is_empty();
    match (is_alone, sessions.as_slice(), changed_devices.as_slice()) {
        (true, [session], []) => Some((session, None)),
        (true, [session], [device]) => Some((session, Some(device))),
        _ => None,
    }
}
