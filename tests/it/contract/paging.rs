//! Rule 14: paging with `after_session_id` shows each session once, whatever is written meanwhile.

use std::collections::{BTreeMap, HashSet};

use matrix_sdk_crypto::{
    olm::{Account, InboundGroupSession, SenderDataType},
    store::CryptoStore,
};
use matrix_sdk_postgres::{PostgresCryptoStore, testing};
use ruma::{RoomId, device_id, room_id};
use test_support::{
    Mode,
    fixture::{inbound_session, own_user, room},
};

const KIND: SenderDataType = SenderDataType::DeviceInfo;

fn sessions(account: &Account, count: usize) -> Vec<InboundGroupSession> {
    (0..count).map(|_| inbound_session(account, room(), KIND)).collect()
}

fn account() -> Account {
    Account::with_device_id(own_user(), device_id!("DEVICE"))
}

/// Reads page after page, as the SDK does, and calls `between` after each.
async fn page<F: Future<Output = ()>>(
    store: &PostgresCryptoStore,
    account: &Account,
    limit: usize,
    mut between: impl FnMut(Vec<InboundGroupSession>) -> F,
) -> Vec<InboundGroupSession> {
    let sender_key = account.identity_keys().curve25519;
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let batch = store
            .get_inbound_group_sessions_for_device_batch(sender_key, KIND, after, limit)
            .await
            .unwrap();
        let Some(last) = batch.last() else { return seen };
        after = Some(last.session_id().to_owned());
        seen.extend(batch.iter().cloned());
        between(batch).await;
    }
}

fn ids(sessions: &[InboundGroupSession]) -> HashSet<String> {
    sessions.iter().map(|session| session.session_id().to_owned()).collect()
}

#[tokio::test]
async fn no_session_is_seen_twice_and_none_is_skipped_while_others_are_inserted() {
    for mode in [Mode::Plain, Mode::Key] {
        let database = testing::database().unwrap();
        let url = database.url();
        let writer = mode.open(&url, "bot").await;
        let store = mode.open_read_only(&url, "bot").await;
        let account = account();
        let first = sessions(&account, 60);
        writer.save_inbound_group_sessions(first.clone(), None).await.unwrap();
        // Of other kinds and senders, which are never returned.
        let other_kind = inbound_session(&account, room(), SenderDataType::UnknownDevice);
        let other_sender = inbound_session(&self::account(), room(), KIND);
        writer.save_inbound_group_sessions(vec![other_kind, other_sender], None).await.unwrap();

        let (writer, account) = (&writer, &account);
        let seen = page(&store, account, 7, |batch| async move {
            // New ones are before and after the page's end; known ones are updated.
            let mut changed = sessions(account, 3);
            changed.extend(batch.into_iter().take(2));
            writer.save_inbound_group_sessions(changed, None).await.unwrap();
        })
        .await;
        assert_eq!(ids(&seen).len(), seen.len(), "{mode:?}: a session was returned twice");
        assert!(ids(&seen).is_superset(&ids(&first)), "{mode:?}: a session was skipped");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn paging_is_complete_with_a_concurrent_writer() {
    for mode in [Mode::Plain, Mode::Key] {
        let database = testing::database().unwrap();
        let url = database.url();
        let writer = mode.open(&url, "bot").await;
        let store = mode.open_read_only(&url, "bot").await;
        let (account, extra) = (account(), 40);
        let first = sessions(&account, 100);
        writer.save_inbound_group_sessions(first.clone(), None).await.unwrap();
        let added: Vec<_> = sessions(&account, extra);
        let writing = tokio::spawn(async move {
            for session in added {
                writer.save_inbound_group_sessions(vec![session], None).await.unwrap();
            }
        });
        while !writing.is_finished() {
            let seen = page(&store, &account, 9, |_| async {}).await;
            assert_eq!(ids(&seen).len(), seen.len(), "{mode:?}");
            assert!(ids(&seen).is_superset(&ids(&first)), "{mode:?}");
        }
        writing.await.unwrap();
        let seen = page(&store, &account, 9, |_| async {}).await;
        assert_eq!(seen.len(), first.len() + extra);
    }
}

/// Several rooms may claim one session id, not all of them truthfully: a page must not end between them.
#[tokio::test]
async fn a_page_does_not_end_between_sessions_of_the_same_id() {
    let rooms: [&RoomId; 3] = [room_id!("!a:x.y"), room_id!("!b:x.y"), room_id!("!c:x.y")];
    for mode in [Mode::Plain, Mode::Key] {
        let database = testing::database().unwrap();
        let store = mode.open(&database.url(), "bot").await;
        let account = account();
        let mut all = Vec::new();
        for session in sessions(&account, 5) {
            all.extend(rooms.map(|room_id| {
                let mut session = session.clone();
                session.room_id = room_id.to_owned();
                session
            }));
        }
        store.save_inbound_group_sessions(all, None).await.unwrap();
        for limit in [1, 2, 4] {
            let seen = page(&store, &account, limit, |_| async {}).await;
            let mut count: BTreeMap<_, usize> = BTreeMap::new();
            for session in &seen {
                let place = (session.room_id().to_owned(), session.session_id().to_owned());
                *count.entry(place).or_default() += 1;
            }
            assert_eq!((count.len(), seen.len()), (15, 15), "{mode:?}, limit {limit}");
        }
    }
}
