//! Rule 7: a session is backed up in a version, and a reset touches no session.

use matrix_sdk_crypto::{
    olm::{Account, InboundGroupSession, SenderDataType},
    store::CryptoStore,
};
use matrix_sdk_postgres::{
    PostgresCryptoStore,
    testing::{self, TestDatabase},
};
use ruma::device_id;
use test_support::{
    Mode, connect,
    fixture::{inbound_session, own_user, room},
};

const MODES: [Mode; 2] = [Mode::Plain, Mode::Key];

async fn store(mode: Mode) -> (TestDatabase, PostgresCryptoStore) {
    let database = testing::database().unwrap();
    let store = mode.open(&database.url(), "bot").await;
    (database, store)
}

fn sessions(count: usize) -> Vec<InboundGroupSession> {
    let account = Account::with_device_id(own_user(), device_id!("DEVICE"));
    (0..count).map(|_| inbound_session(&account, room(), SenderDataType::UnknownDevice)).collect()
}

async fn mark(store: &PostgresCryptoStore, version: &str, sessions: &[InboundGroupSession]) {
    let ids: Vec<_> =
        sessions.iter().map(|session| (session.room_id(), session.session_id())).collect();
    store.mark_inbound_group_sessions_as_backed_up(version, &ids).await.unwrap();
}

/// Number of sessions that the backup of this version contains, and of those it still needs.
async fn state(store: &PostgresCryptoStore, version: &str) -> (usize, usize) {
    let counts = store.inbound_group_session_counts(Some(version)).await.unwrap();
    let needed = store.inbound_group_sessions_for_backup(version, 1000).await.unwrap().len();
    assert_eq!(counts.backed_up + needed, counts.total, "{version}");
    (counts.backed_up, needed)
}

async fn is_backed_up(store: &PostgresCryptoStore, session: &InboundGroupSession) -> bool {
    let id = session.session_id();
    store.get_inbound_group_session(room(), id).await.unwrap().unwrap().backed_up()
}

#[tokio::test]
async fn counts_and_needs_are_per_version() {
    for mode in MODES {
        let (_database, store) = store(mode).await;
        let sessions = sessions(5);
        store.save_inbound_group_sessions(sessions.clone(), None).await.unwrap();
        mark(&store, "1", &sessions[..2]).await;
        mark(&store, "2", &sessions[2..3]).await;
        assert_eq!(state(&store, "1").await, (2, 3), "{mode:?}");
        assert_eq!(state(&store, "2").await, (1, 4));
        assert_eq!(state(&store, "never named").await, (0, 5));
        assert_eq!(store.inbound_group_session_counts(None).await.unwrap().backed_up, 0);
        assert_eq!(store.inbound_group_sessions_for_backup("2", 3).await.unwrap().len(), 3);
        assert_eq!(store.inbound_group_sessions_for_backup("2", 0).await.unwrap().len(), 0);
    }
}

#[tokio::test]
async fn a_mark_for_an_old_version_does_not_count_for_the_new_one() {
    for mode in MODES {
        let (_database, store) = store(mode).await;
        let sessions = sessions(4);
        store.save_inbound_group_sessions(sessions.clone(), None).await.unwrap();
        mark(&store, "old", &sessions[..1]).await;
        store.reset_backup_state().await.unwrap();
        mark(&store, "new", &sessions[1..2]).await;
        // As if the response to an upload arrived after the reset.
        mark(&store, "old", &sessions[2..3]).await;
        assert_eq!(state(&store, "new").await, (1, 3), "{mode:?}");
        // The state of the old version before the reset does not count either.
        assert_eq!(state(&store, "old").await, (1, 3));
    }
}

#[tokio::test]
async fn a_stale_session_saved_after_a_reset_does_not_count() {
    for mode in MODES {
        let (_database, store) = store(mode).await;
        let sessions = sessions(2);
        for session in &sessions {
            session.mark_as_backed_up();
        }
        store.save_inbound_group_sessions(sessions[..1].to_vec(), Some("1")).await.unwrap();
        assert!(is_backed_up(&store, &sessions[0]).await, "{mode:?}");
        assert_eq!(state(&store, "1").await, (1, 0));

        store.reset_backup_state().await.unwrap();
        // Both copies in the SDK's memory are still marked as backed up; only the store has the reset.
        let inbound_group_sessions = sessions.clone();
        let changes = matrix_sdk_crypto::store::types::Changes {
            inbound_group_sessions,
            ..Default::default()
        };
        store.save_changes(changes).await.unwrap();
        for session in &sessions {
            assert!(!is_backed_up(&store, session).await, "{mode:?}");
        }
        assert_eq!(state(&store, "1").await, (0, 2));
        assert_eq!(state(&store, "2").await, (0, 2));
    }
}

#[tokio::test]
async fn a_session_saved_again_without_being_backed_up_needs_a_backup_again() {
    for mode in MODES {
        let (_database, store) = store(mode).await;
        let sessions = sessions(2);
        store.save_inbound_group_sessions(sessions.clone(), None).await.unwrap();
        mark(&store, "1", &sessions).await;
        assert_eq!(state(&store, "1").await, (2, 0), "{mode:?}");
        // A better copy of the key was received: the backup contains the worse one.
        store.save_inbound_group_sessions(sessions[..1].to_vec(), None).await.unwrap();
        assert_eq!(state(&store, "1").await, (1, 1));
        assert!(!is_backed_up(&store, &sessions[0]).await);
        // Saved again as backed up, it keeps its version.
        sessions[1].mark_as_backed_up();
        store.save_inbound_group_sessions(sessions[1..].to_vec(), None).await.unwrap();
        assert_eq!(state(&store, "1").await, (1, 1));
        assert!(is_backed_up(&store, &sessions[1]).await);
    }
}

#[tokio::test]
async fn a_reset_makes_everything_need_a_backup_and_touches_no_session_row() {
    for mode in MODES {
        let (database, store) = store(mode).await;
        let client = connect(&database.url()).await;
        let sessions = sessions(50);
        store.save_inbound_group_sessions(sessions.clone(), None).await.unwrap();
        mark(&store, "1", &sessions).await;
        let places = async || {
            let sql =
                "SELECT xmin::text || ' ' || ctid::text FROM matrix_sdk.megolm_inbound_sessions
                       ORDER BY session_id";
            let rows = client.query(sql, &[]).await.unwrap();
            rows.iter().map(|row| row.get(0)).collect::<Vec<String>>()
        };
        let before = places().await;
        store.reset_backup_state().await.unwrap();
        assert_eq!(places().await, before, "{mode:?}");
        assert_eq!(state(&store, "1").await, (0, 50));
        assert_eq!(state(&store, "2").await, (0, 50));
        let stored = store.get_inbound_group_sessions().await.unwrap();
        assert!(stored.iter().all(|session| !session.backed_up()));
    }
}

#[tokio::test]
async fn a_version_named_again_after_a_reset_starts_empty() {
    for mode in MODES {
        let (_database, store) = store(mode).await;
        let sessions = sessions(3);
        store.save_inbound_group_sessions(sessions.clone(), None).await.unwrap();
        mark(&store, "1", &sessions[..2]).await;
        store.reset_backup_state().await.unwrap();
        mark(&store, "1", &sessions[2..]).await;
        assert_eq!(state(&store, "1").await, (1, 2), "{mode:?}");
        // Twice, because a generation is never reused.
        store.reset_backup_state().await.unwrap();
        assert_eq!(state(&store, "1").await, (0, 3));
        mark(&store, "1", &sessions[..1]).await;
        assert_eq!(state(&store, "1").await, (1, 2));
    }
}

#[tokio::test]
async fn marking_an_unknown_session_is_ignored() {
    for mode in MODES {
        let (_database, store) = store(mode).await;
        let sessions = sessions(2);
        store.save_inbound_group_sessions(sessions[..1].to_vec(), None).await.unwrap();
        mark(&store, "1", &sessions).await;
        assert_eq!(state(&store, "1").await, (1, 0), "{mode:?}");
        mark(&store, "1", &[]).await;
    }
}
