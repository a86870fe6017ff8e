//! Reads back from the database what was saved, and compares.

use matrix_sdk_crypto::store::{CryptoStore, types::SecretsInboxItem};
use matrix_sdk_postgres::{Error, PostgresCryptoStore};

use super::item::{Item, PickledAccountOf};

/// What the database has in the place of a value. `store` reads only, so it caches nothing.
async fn find(store: &PostgresCryptoStore, item: &Item) -> Result<Option<Item>, Error> {
    Ok(match item {
        Item::Device(device) => {
            let found = store.get_device(device.user_id(), device.device_id()).await?;
            found.map(|found| Item::Device(Box::new(found)))
        }
        Item::UserIdentity(identity) => {
            let found = store.get_user_identity(identity.user_id()).await?;
            found.map(|found| Item::UserIdentity(Box::new(found)))
        }
        Item::OlmSession(session) => {
            let found = store.get_sessions(&session.sender_key().to_base64()).await?;
            let mut found = found.unwrap_or_default().into_iter();
            let found = found.find(|found| found.session_id() == session.session_id());
            found.map(|found| Item::OlmSession(Box::new(found)))
        }
        Item::InboundSession(session) => {
            let ids = (session.room_id(), session.session_id());
            let found = store.get_inbound_group_session(ids.0, ids.1).await?;
            found.map(|found| Item::InboundSession(Box::new(found)))
        }
        Item::OutboundSession(session) => {
            let found = store.get_outbound_group_session(session.room_id()).await?;
            found.map(|found| Item::OutboundSession(Box::new(found)))
        }
        Item::MessageHash(hash) => store.is_message_known(hash).await?.then(|| item.clone()),
        Item::KeyRequest(request) => {
            let found = store.get_outgoing_secret_requests(&request.request_id).await?;
            found.map(|found| Item::KeyRequest(Box::new(found)))
        }
        Item::Secret(SecretsInboxItem { secret_name, secret }) => {
            let found = store.get_secrets_from_inbox(secret_name).await?;
            found.iter().any(|found| **found == **secret).then(|| item.clone())
        }
        Item::Withheld(room_id, session_id, _) => {
            let found = store.get_withheld_info(room_id, session_id).await?;
            let ids = (room_id.clone(), session_id.clone());
            found.map(|found| Item::Withheld(ids.0, ids.1, Box::new(found)))
        }
        Item::RoomSettings(room_id, _) => {
            let found = store.get_room_settings(room_id).await?;
            found.map(|found| Item::RoomSettings(room_id.clone(), found))
        }
        Item::RoomKeyBundle(bundle) => {
            let ids = (&bundle.bundle_data.room_id, &bundle.sender_user);
            let found = store.get_received_room_key_bundle_data(ids.0, ids.1).await?;
            found.map(|found| Item::RoomKeyBundle(Box::new(found)))
        }
        Item::PendingKeyBundle(details) => {
            let found = store.get_pending_key_bundle_details_for_room(&details.room_id).await?;
            found.map(Item::PendingKeyBundle)
        }
        Item::BackedUpRoom(room_id) => {
            store.has_downloaded_all_room_keys(room_id).await?.then(|| item.clone())
        }
        Item::CustomValue(name, _) => {
            let found = store.get_custom_value(name).await?;
            found.map(|found| Item::CustomValue(name.clone(), found))
        }
        _ => return find_single(store, item).await,
    })
}

/// The values that an account has once. Tracked users are compared all together, elsewhere.
async fn find_single(store: &PostgresCryptoStore, item: &Item) -> Result<Option<Item>, Error> {
    Ok(match item {
        Item::PrivateIdentity(_) => {
            let found = store.load_identity().await?;
            found.map(|found| Item::PrivateIdentity(Box::new(found)))
        }
        Item::BackupVersion(_) => {
            store.load_backup_keys().await?.backup_version.map(Item::BackupVersion)
        }
        Item::BackupDecryptionKey(_) => {
            let keys = store.load_backup_keys().await?;
            keys.decryption_key.map(Item::BackupDecryptionKey)
        }
        Item::DehydratedDeviceKey(_) => {
            let found = store.load_dehydrated_device_pickle_key().await?;
            found.map(Item::DehydratedDeviceKey)
        }
        Item::SyncToken(_) => store.next_batch_token().await?.map(Item::SyncToken),
        Item::OlmAccount(_) => {
            let found = store.load_account().await?;
            let found = found.and_then(|found| PickledAccountOf::new(&found));
            found.map(|found| Item::OlmAccount(Box::new(found)))
        }
        _ => None,
    })
}

/// Whether the database has the same value; of a room key, if `exports` is set, also whether it exports the
/// same.
pub async fn is_there(
    store: &PostgresCryptoStore,
    item: &Item,
    exports: bool,
) -> Result<bool, Error> {
    let Some(found) = find(store, item).await? else { return Ok(false) };
    if exports && !exports_the_same(&found, item).await {
        return Ok(false);
    }
    Ok(found.is_same(item).await)
}

/// Whether the room keys that would be exported are the same.
async fn exports_the_same(found: &Item, item: &Item) -> bool {
    let (Item::InboundSession(found), Item::InboundSession(wanted)) = (found, item) else {
        return true;
    };
    let (found, wanted) = (found.export().await, wanted.export().await);
    found.session_key.to_base64() == wanted.session_key.to_base64()
        && found.sender_claimed_keys == wanted.sender_claimed_keys
        && found.room_id == wanted.room_id
}
