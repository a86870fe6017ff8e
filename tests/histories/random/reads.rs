//! Performs reads on a store and returns the names of the values found.

use std::collections::BTreeSet;

use matrix_sdk_crypto::{
    olm::{InboundGroupSession, SenderDataType},
    store::CryptoStore,
};
use matrix_sdk_postgres::{Error, PostgresCryptoStore};
use serde::Serialize;

use super::{
    fixtures::{Fixtures, device_id, request_id, room_id, secret_name, user_id},
    model::tracked_user,
    results::{Failure, ReadResult},
    steps::{Index, Read},
    strategies::USERS,
    writes::{custom_key, message_hash, version},
};

pub async fn run_read(store: &PostgresCryptoStore, read: &Read) -> ReadResult {
    let answer = match read {
        Read::Pages { sender, known_device, limit } => {
            pages(store, *sender, *known_device, usize::from(*limit)).await
        }
        _ => read_once(store, read).await,
    };
    let mut values = answer.map_err(Failure::from)?;
    values.sort();
    Ok(values)
}

async fn read_once(store: &PostgresCryptoStore, read: &Read) -> Result<Vec<String>, Error> {
    let fixtures = Fixtures::get();
    let session_id = |session: Index| &*fixtures.session_ids[usize::from(session)];
    let found = match *read {
        Read::Account => {
            let account = store.load_account().await?;
            // As a new machine does: one that loads only the account again cannot end a sync
            // (tests/it/deferred/interrupted_sync.rs).
            store.load_identity().await?;
            named(account.map(|account| account.pickle()))
        }
        Read::PrivateIdentity => match store.load_identity().await? {
            Some(identity) => named(Some(identity.pickle().await)),
            None => Vec::new(),
        },
        Read::OlmSessions { sender } => {
            let sender_key = fixtures.sender_keys[usize::from(sender)].to_base64();
            match store.get_sessions(&sender_key).await? {
                Some(sessions) if sessions.is_empty() => vec!["some, but none".to_owned()],
                sessions => {
                    let mut names = Vec::new();
                    for session in sessions.into_iter().flatten() {
                        names.push(fixtures.name_of(&session.pickle().await));
                    }
                    names
                }
            }
        }
        Read::RoomKey { room, session } => {
            let key = store.get_inbound_group_session(&room_id(room), session_id(session)).await?;
            room_keys(key).await
        }
        Read::RoomKeys => room_keys(store.get_inbound_group_sessions().await?).await,
        Read::RoomKeysByRoom { room } => {
            room_keys(store.get_inbound_group_sessions_by_room_id(&room_id(room)).await?).await
        }
        Read::ForBackup { version: of, limit } => {
            let keys = store.inbound_group_sessions_for_backup(&version(of), limit.into()).await?;
            room_keys(keys).await
        }
        Read::Counts { version: of } => {
            let of = of.map(version);
            let counts = store.inbound_group_session_counts(of.as_deref()).await?;
            vec![format!("{} of {}", counts.backed_up, counts.total)]
        }
        Read::Withheld { room, session } => {
            named(store.get_withheld_info(&room_id(room), session_id(session)).await?)
        }
        Read::WithheldByRoom { room } => {
            named(store.get_withheld_sessions_by_room_id(&room_id(room)).await?)
        }
        Read::BackupKeys => {
            let keys = store.load_backup_keys().await?;
            named(keys.decryption_key).into_iter().chain(keys.backup_version).collect()
        }
        Read::DehydratedKey => named(store.load_dehydrated_device_pickle_key().await?),
        Read::OutboundSession { room } => {
            match store.get_outbound_group_session(&room_id(room)).await? {
                Some(session) => named(Some(session.pickle().await)),
                None => Vec::new(),
            }
        }
        Read::TrackedUsers => tracked_users(store).await?,
        Read::Device { user, device } => {
            named(store.get_device(&user_id(user), &device_id(user, device)).await?)
        }
        Read::Devices { user } => {
            let found = store.get_user_devices(&user_id(user)).await?;
            assert!(found.iter().all(|(id, device)| id == device.device_id()), "{found:?}");
            named(found.into_values())
        }
        Read::OwnDevice => named([store.get_own_device().await?]),
        Read::Identity { user } => named(store.get_user_identity(&user_id(user)).await?),
        Read::MessageHash(hash) => yes_or_no(store.is_message_known(&message_hash(hash)).await?),
        Read::Request(id) => named(store.get_outgoing_secret_requests(&request_id(id)).await?),
        Read::RequestByInfo(info) => {
            named(store.get_secret_request_by_info(&secret_name(info).into()).await?)
        }
        Read::UnsentRequests => named(store.get_unsent_secret_requests().await?),
        Read::Secrets(of) => {
            let secrets = store.get_secrets_from_inbox(&secret_name(of)).await?;
            secrets.iter().map(|secret| secret.to_string()).collect()
        }
        Read::RoomSettings { room } => named(store.get_room_settings(&room_id(room)).await?),
        Read::Bundle { room, user } => {
            let (room_id, user_id) = (room_id(room), user_id(user));
            named(store.get_received_room_key_bundle_data(&room_id, &user_id).await?)
        }
        Read::PendingBundle { room } => {
            named(store.get_pending_key_bundle_details_for_room(&room_id(room)).await?)
        }
        Read::PendingBundles => named(store.get_all_rooms_pending_key_bundles().await?),
        Read::Downloaded { room } => {
            yes_or_no(store.has_downloaded_all_room_keys(&room_id(room)).await?)
        }
        Read::Custom(key) => {
            let value = store.get_custom_value(&custom_key(key)).await?;
            value.map(|value| String::from_utf8(value).unwrap()).into_iter().collect()
        }
        Read::SyncToken => store.next_batch_token().await?.into_iter().collect(),
        Read::Pages { .. } => panic!("read by pages()"),
    };
    Ok(found)
}

/// Reads all pages, as the SDK does.
async fn pages(
    store: &PostgresCryptoStore,
    sender: Index,
    known_device: bool,
    limit: usize,
) -> Result<Vec<String>, Error> {
    let sender_key = Fixtures::get().sender_keys[usize::from(sender)];
    let kind = match known_device {
        true => SenderDataType::DeviceInfo,
        false => SenderDataType::UnknownDevice,
    };
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let page = store
            .get_inbound_group_sessions_for_device_batch(sender_key, kind, after, limit)
            .await?;
        let Some(last) = page.last() else { return Ok(seen) };
        after = Some(last.session_id().to_owned());
        // All keys with one session id are on one page, whatever the number of rooms.
        let ids: BTreeSet<&str> = page.iter().map(|key| key.session_id()).collect();
        assert!(ids.len() <= limit, "a page of {} ids, limit {limit}", ids.len());
        seen.extend(room_keys(page).await);
    }
}

async fn room_keys(keys: impl IntoIterator<Item = InboundGroupSession>) -> Vec<String> {
    let mut names = Vec::new();
    for key in keys {
        let mut pickle = key.pickle().await;
        let state = if pickle.backed_up { "backed up" } else { "not backed up" };
        pickle.backed_up = false;
        names.push(format!("{}, {state}", Fixtures::get().name_of(&pickle)));
    }
    names
}

/// Translates the user ids that the store returns into the numbers of the fixtures.
async fn tracked_users(store: &PostgresCryptoStore) -> Result<Vec<String>, Error> {
    let users = store.load_tracked_users().await?;
    let name_of = |id: &ruma::UserId, dirty| match (0..USERS).find(|user| user_id(*user) == id) {
        Some(user) => tracked_user(user, dirty),
        None => id.to_string(),
    };
    Ok(users.iter().map(|user| name_of(&user.user_id, user.dirty)).collect())
}

fn named(values: impl IntoIterator<Item = impl Serialize>) -> Vec<String> {
    values.into_iter().map(|value| Fixtures::get().name_of(&value)).collect()
}

fn yes_or_no(yes: bool) -> Vec<String> {
    vec![yes.to_string()]
}
