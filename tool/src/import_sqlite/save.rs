//! Saves values through the store's ordinary interface.

use std::collections::BTreeMap;

use matrix_sdk_crypto::{
    Account, CryptoStoreError,
    store::{
        CryptoStore,
        types::{Changes, PendingChanges},
    },
};
use matrix_sdk_postgres::{Error, PostgresCryptoStore};

use super::{item::Item, target::MARK};

/// What goes in with the last transaction, which makes the account usable.
#[derive(Default)]
pub struct Last {
    pub account: Option<Account>,
    pub sync_token: Option<String>,
}

/// Saves the values, but for those that come last.
pub async fn save(
    store: &PostgresCryptoStore,
    backup_version: Option<&str>,
    items: Vec<Item>,
    last: &mut Last,
) -> Result<(), Error> {
    let mut changes = Changes::default();
    let (mut backed_up, mut others) = (Vec::new(), Vec::new());
    let mut tracked = Vec::new();
    for item in items {
        match item {
            Item::Device(device) => changes.devices.new.push(*device),
            Item::UserIdentity(identity) => changes.identities.new.push(*identity),
            Item::TrackedUser(user) => tracked.push(user),
            Item::OlmSession(session) => changes.sessions.push(*session),
            Item::InboundSession(session) if session.backed_up() => backed_up.push(*session),
            Item::InboundSession(session) => others.push(*session),
            Item::OutboundSession(session) => changes.outbound_group_sessions.push(*session),
            Item::MessageHash(hash) => changes.message_hashes.push(hash),
            Item::KeyRequest(request) => changes.key_requests.push(*request),
            Item::Secret(secret) => changes.secrets.push(secret),
            Item::Withheld(room_id, session_id, entry) => {
                let entries: &mut BTreeMap<_, _> =
                    changes.withheld_session_info.entry(room_id).or_default();
                entries.insert(session_id, *entry);
            }
            Item::RoomSettings(room_id, settings) => {
                changes.room_settings.insert(room_id, settings);
            }
            Item::RoomKeyBundle(bundle) => changes.received_room_key_bundles.push(*bundle),
            Item::PendingKeyBundle(details) => {
                changes.rooms_pending_key_bundle.insert(details.room_id.clone(), Some(details));
            }
            Item::BackedUpRoom(room_id) => {
                changes.room_key_backups_fully_downloaded.insert(room_id);
            }
            Item::CustomValue(name, value) => store.set_custom_value(&name, value).await?,
            Item::PrivateIdentity(identity) => changes.private_identity = Some(*identity),
            Item::BackupVersion(version) => changes.backup_version = Some(version),
            Item::BackupDecryptionKey(key) => changes.backup_decryption_key = Some(key),
            Item::DehydratedDeviceKey(key) => changes.dehydrated_device_pickle_key = Some(key),
            Item::SyncToken(token) => last.sync_token = Some(token),
            Item::OlmAccount(account) => last.account = account.account(),
        }
    }
    let tracked: Vec<_> = tracked.iter().map(|user| (&*user.user_id, user.dirty)).collect();
    if !tracked.is_empty() {
        store.save_tracked_users(&tracked).await?;
    }
    if !backed_up.is_empty() {
        store.save_inbound_group_sessions(backed_up, backup_version).await?;
    }
    if !others.is_empty() {
        store.save_inbound_group_sessions(others, None).await?;
    }
    store.save_changes(changes).await
}

/// Makes the account usable, and removes the mark of an import that is not finished: one transaction, and the
/// last.
pub async fn finish(store: &PostgresCryptoStore, last: Last) -> Result<(), CryptoStoreError> {
    let Last { account, sync_token } = last;
    let changes = Changes { next_batch_token: sync_token, ..Changes::default() };
    let saved = store.atomically(async {
        store.save_changes(changes).await?;
        store.remove_custom_value(MARK).await?;
        store.save_pending_changes(PendingChanges { account }).await?;
        Ok::<_, CryptoStoreError>(())
    });
    saved.await
}
