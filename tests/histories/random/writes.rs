//! Performs writes on a store.

use matrix_sdk_crypto::{
    olm::OlmMessageHash,
    store::{
        CryptoStore,
        types::{Changes, PendingChanges, SecretsInboxItem},
    },
};
use matrix_sdk_postgres::{Error, PostgresCryptoStore};

use super::{
    fixtures::{
        Fixtures, bundle, pending_bundle, request, request_id, room_id, room_settings, secret_name,
        user_id,
    },
    steps::{Change, DeviceList, IdentityList, Index, Write, name},
};

pub async fn run_write(store: &PostgresCryptoStore, write: &Write) -> Result<(), Error> {
    let fixtures = Fixtures::get();
    match write {
        Write::Changes(list) => store.save_changes(changes(list)).await,
        Write::Account(form) => {
            let account = form.map(|form| fixtures.account(form));
            store.save_pending_changes(PendingChanges { account }).await
        }
        Write::RoomKeys { keys, version } => {
            let sessions = keys.iter().map(|key| fixtures.room_key(key)).collect();
            let version = version.map(self::version);
            store.save_inbound_group_sessions(sessions, version.as_deref()).await
        }
        Write::MarkBackedUp { version, keys } => {
            let keys: Vec<_> = keys
                .iter()
                .map(|(room, session)| {
                    (room_id(*room), &*fixtures.session_ids[usize::from(*session)])
                })
                .collect();
            let keys: Vec<_> = keys.iter().map(|(room, session)| (&**room, *session)).collect();
            let version = self::version(*version);
            store.mark_inbound_group_sessions_as_backed_up(&version, &keys).await
        }
        Write::ResetBackup => store.reset_backup_state().await,
        Write::DeleteDehydratedKey => store.delete_dehydrated_device_pickle_key().await,
        Write::TrackedUsers(users) => {
            let users: Vec<_> =
                users.iter().map(|(user, dirty)| (user_id(*user), *dirty)).collect();
            let users: Vec<_> = users.iter().map(|(user, dirty)| (&**user, *dirty)).collect();
            store.save_tracked_users(&users).await
        }
        Write::DeleteRequest(id) => store.delete_outgoing_secret_requests(&request_id(*id)).await,
        Write::DeleteSecrets(name) => store.delete_secrets_from_inbox(&secret_name(*name)).await,
        Write::SetCustom { key, value } => {
            store.set_custom_value(&custom_key(*key), name("value", &[*value]).into_bytes()).await
        }
        Write::RemoveCustom(key) => store.remove_custom_value(&custom_key(*key)).await,
    }
}

fn changes(list: &[Change]) -> Changes {
    let mut changes = Changes::default();
    for change in list {
        add(&mut changes, change);
    }
    changes
}

fn add(changes: &mut Changes, change: &Change) {
    let fixtures = Fixtures::get();
    match *change {
        Change::PrivateIdentity(form) => {
            changes.private_identity = Some(fixtures.private_identity(form));
        }
        Change::BackupVersion(version) => changes.backup_version = Some(self::version(version)),
        Change::BackupKey(form) => changes.backup_decryption_key = Some(fixtures.backup_key(form)),
        Change::DehydratedKey(form) => {
            changes.dehydrated_device_pickle_key = Some(fixtures.dehydrated_key(form));
        }
        Change::OlmSession { sender, session, form } => {
            changes.sessions.push(fixtures.olm_session(sender, session, form));
        }
        Change::MessageHash(hash) => changes.message_hashes.push(message_hash(hash)),
        Change::RoomKey(key) => changes.inbound_group_sessions.push(fixtures.room_key(&key)),
        Change::OutboundSession { room, form } => {
            changes.outbound_group_sessions.push(fixtures.outbound_session(room, form));
        }
        Change::Request { id, info, sent_out } => {
            changes.key_requests.push(request(id, info, sent_out));
        }
        Change::Identity { user, form, list } => {
            let list = match list {
                IdentityList::New => &mut changes.identities.new,
                IdentityList::Changed => &mut changes.identities.changed,
                IdentityList::Unchanged => &mut changes.identities.unchanged,
            };
            list.push(fixtures.identity(user, form));
        }
        Change::Device { user, device, form, list } => {
            let list = match list {
                DeviceList::New => &mut changes.devices.new,
                DeviceList::Changed => &mut changes.devices.changed,
                DeviceList::Deleted => &mut changes.devices.deleted,
            };
            list.push(fixtures.device(user, device, form));
        }
        Change::Withheld { room, session, form } => {
            let entries = changes.withheld_session_info.entry(room_id(room)).or_default();
            let session_id = fixtures.session_ids[usize::from(session)].clone();
            entries.insert(session_id, fixtures.withheld(room, session, form));
        }
        Change::RoomSettings { room, form } => {
            changes.room_settings.insert(room_id(room), room_settings(form));
        }
        Change::Secret { name: kind, secret } => changes.secrets.push(SecretsInboxItem {
            secret_name: secret_name(kind),
            secret: name("secret", &[secret]).into(),
        }),
        Change::SyncToken(form) => changes.next_batch_token = Some(name("token", &[form])),
        Change::Bundle { room, user, form } => {
            changes.received_room_key_bundles.push(bundle(room, user, form));
        }
        Change::Downloaded(room) => {
            changes.room_key_backups_fully_downloaded.insert(room_id(room));
        }
        Change::PendingBundle { room, form } => {
            let details = form.map(|form| pending_bundle(room, form));
            changes.rooms_pending_key_bundle.insert(room_id(room), details);
        }
    }
}

pub fn version(version: Index) -> String {
    name("version", &[version])
}

pub fn custom_key(key: Index) -> String {
    name("custom key", &[key])
}

/// All hashes have the same sender.
pub fn message_hash(hash: Index) -> OlmMessageHash {
    OlmMessageHash { sender_key: "sender".to_owned(), hash: name("hash", &[hash]) }
}
