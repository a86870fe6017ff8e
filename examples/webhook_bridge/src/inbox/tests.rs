//! Inbox tests on a real PostgreSQL: no duplicates, no losses, order kept.

use matrix_sdk_postgres::{PostgresStoreConfig, testing};

use super::*;
use crate::{membership::Upgrade, responses::Invitation};

pub async fn inbox() -> (Inbox, testing::TestDatabase) {
    let database = testing::database().unwrap();
    let pool = PostgresStoreConfig::new(database.url(), "@bot:x").build_pool().unwrap();
    migrate(&pool).await.unwrap();
    (Inbox::new(pool, "@bot:x"), database)
}

/// For a short time the first migration made the column.
#[tokio::test]
async fn a_database_with_and_without_the_column_waited_is_migrated() {
    let (inbox, _database) = inbox().await;
    for column in ["DROP COLUMN waited", "ALTER COLUMN waited SET DEFAULT false"] {
        let before = format!(
            "DELETE FROM webhook_bridge.schema_migrations WHERE version >= 6;
             SET search_path = webhook_bridge;
             DROP INDEX events_in_room, events_waiting_by_age;
             CREATE INDEX events_waiting_in_room ON events (account, room_id);
             ALTER TABLE events DROP COLUMN sealed;
             ALTER TABLE events {column}"
        );
        inbox.connection().await.unwrap().batch_execute(&before).await.unwrap();
        migrate(&inbox.pool).await.unwrap();
        let read = "SELECT waited FROM webhook_bridge.events";
        inbox.connection().await.unwrap().batch_execute(read).await.unwrap();
    }
}

pub async fn record(inbox: &Inbox, sync: &SyncRecord) -> u64 {
    let mut connection = inbox.connection().await.unwrap();
    let transaction = connection.transaction().await.unwrap();
    let received = inbox.record(&transaction, sync).await.unwrap();
    transaction.commit().await.unwrap();
    received
}

fn event(id: &str, session: &str) -> Received {
    let (event_id, session_id) = (id.to_owned(), Some(session.to_owned()));
    Received { event_id, session_id, json: format!("{{\"event_id\":\"{id}\"}}") }
}

pub fn sync(next_batch: &str, rooms: Vec<RoomChange>) -> SyncRecord {
    SyncRecord { next_batch: next_batch.to_owned(), rooms, ..SyncRecord::default() }
}

pub fn room(events: &[&str]) -> RoomChange {
    RoomChange {
        room_id: "!r:x".to_owned(),
        encrypted: true,
        events: events.iter().map(|id| event(id, "S")).collect(),
        last_event_id: events.last().map(ToString::to_string),
        ..RoomChange::default()
    }
}

fn with_gap(events: &[&str]) -> RoomChange {
    let gap = NewGap {
        from_token: "p1".to_owned(),
        to_token: Some("s1".to_owned()),
        stop_event_id: Some("$1".to_owned()),
    };
    RoomChange { gap: Some(gap), ..room(events) }
}

async fn due(inbox: &Inbox) -> Vec<String> {
    inbox.due("!r:x", 100).await.unwrap().into_iter().map(|queued| queued.event_id).collect()
}

#[tokio::test]
async fn migrations_may_run_concurrently_and_repeatedly() {
    let database = testing::database().unwrap();
    let pool = PostgresStoreConfig::new(database.url(), "a").build_pool().unwrap();
    let all = futures_util::future::join_all((0..8).map(|_| migrate(&pool))).await;
    assert!(all.into_iter().all(|done| done.is_ok()));
}

#[tokio::test]
async fn migrations_do_not_depend_on_the_defaults_of_their_sessions() {
    let database = testing::database().unwrap();
    let pool = PostgresStoreConfig::new(database.url(), "a").build_pool().unwrap();
    for default in [
        "default_transaction_isolation = serializable",
        "default_transaction_read_only = on",
        "lock_timeout = '1ms'",
    ] {
        let alter = format!("ALTER DATABASE {} SET {default}", database.name());
        pool.get().await.unwrap().batch_execute(&alter).await.unwrap();
    }
    let pool = PostgresStoreConfig::new(database.url(), "a").build_pool().unwrap();
    for done in futures_util::future::join_all((0..8).map(|_| migrate(&pool))).await {
        done.unwrap();
    }
}

#[tokio::test]
async fn a_repeated_sync_changes_nothing() {
    let (inbox, _database) = inbox().await;
    assert_eq!(inbox.sync_position().await.unwrap(), None);
    let first = sync("s1", vec![room(&["$1", "$2"])]);
    assert_eq!(record(&inbox, &first).await, 2);
    inbox.delivered("!r:x", "$1").await.unwrap();
    assert_eq!(record(&inbox, &first).await, 0);
    assert_eq!(due(&inbox).await, ["$2"]);
    assert_eq!(inbox.sync_position().await.unwrap().as_deref(), Some("s1"));
    let known = inbox.known_rooms(&["!r:x".to_owned(), "!other:x".to_owned()]).await.unwrap();
    let last_event_id = Some("$2".into());
    let expected =
        KnownRoom { joined: true, encrypted: true, last_event_id, ..KnownRoom::default() };
    assert_eq!(known.into_iter().collect::<Vec<_>>(), [("!r:x".to_owned(), expected)]);
}

#[tokio::test]
async fn events_after_a_gap_wait_until_it_is_filled() {
    let (inbox, _database) = inbox().await;
    record(&inbox, &sync("s1", vec![room(&["$1"])])).await;
    record(&inbox, &sync("s2", vec![with_gap(&["$6", "$7"])])).await;
    record(&inbox, &sync("s3", vec![room(&["$8"])])).await;
    assert_eq!(due(&inbox).await, ["$1"]);

    let mut gap = inbox.oldest_gap("!r:x").await.unwrap().unwrap();
    let page = vec![event("$5", "S"), event("$4", "S")];
    assert_eq!(inbox.fill(&mut gap, &page, &[], Some("p2".to_owned())).await.unwrap(), 2);
    assert_eq!(due(&inbox).await, ["$1"]);

    // As after a crash: only the stored state is used.
    let mut gap = inbox.oldest_gap("!r:x").await.unwrap().unwrap();
    assert_eq!((gap.from_token.as_str(), gap.filled), ("p2", 2));
    let page = vec![event("$4", "S"), event("$3", "S"), event("$2", "S")];
    assert_eq!(inbox.fill(&mut gap, &page, &[], None).await.unwrap(), 2);
    assert_eq!(due(&inbox).await, ["$1", "$2", "$3", "$4", "$5", "$6", "$7", "$8"]);
    assert!(inbox.rooms_with_gaps().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_message_waits_for_its_key_and_blocks_its_room_for_a_limited_time() {
    let (inbox, _database) = inbox().await;
    let mut change = room(&["$1", "$3"]);
    change.events.insert(1, event("$2", "other"));
    record(&inbox, &sync("s1", vec![change])).await;
    inbox.wait_for_key("!r:x", "$2").await.unwrap();
    assert_eq!(due(&inbox).await, ["$1"]);
    let counts = inbox.counts().await.unwrap();
    assert_eq!((counts.pending, counts.waiting, counts.failed), (2, 1, 0));

    let age = "UPDATE webhook_bridge.events SET received_at = now() - interval '1 hour'";
    inbox.connection().await.unwrap().batch_execute(age).await.unwrap();
    assert_eq!(due(&inbox).await, ["$1", "$3"]);

    let key = SyncRecord { new_sessions: vec!["other".to_owned()], ..sync("s2", vec![]) };
    record(&inbox, &key).await;
    assert_eq!(due(&inbox).await, ["$1", "$2", "$3"]);
    inbox.wait_for_key("!r:x", "$2").await.unwrap();
    assert_eq!(due(&inbox).await, ["$1", "$3"]);
}

#[tokio::test]
async fn a_recent_message_without_a_key_blocks_its_room_once_more_after_a_start() {
    let (inbox, _database) = inbox().await;
    record(&inbox, &sync("s1", vec![room(&["$1", "$2", "$3"])])).await;
    for (id, minutes) in [("$1", 61), ("$2", 59), ("$3", 58)] {
        let age = format!(
            "UPDATE webhook_bridge.events SET received_at = now() - interval '{minutes} minutes'
             WHERE event_id = '{id}'"
        );
        inbox.connection().await.unwrap().batch_execute(&age).await.unwrap();
    }
    let queued = inbox.due("!r:x", 3).await.unwrap();
    let is_held = |inbox: &Inbox| queued.iter().map(|one| inbox.is_held(one)).collect::<Vec<_>>();
    assert_eq!(is_held(&inbox), [false, false, false]);
    inbox.wait_for_key("!r:x", "$1").await.unwrap();
    inbox.wait_for_key("!r:x", "$2").await.unwrap();
    assert_eq!(due(&inbox).await, ["$3"]);
    inbox.hold_rooms();
    assert_eq!(is_held(&inbox), [false, true, true]);
    assert!(due(&inbox).await.is_empty());
    let key = SyncRecord { new_sessions: vec!["S".to_owned()], ..sync("s2", vec![]) };
    record(&inbox, &key).await;
    assert_eq!(due(&inbox).await, ["$1", "$2", "$3"]);
}

#[tokio::test]
async fn dead_letters_are_listed_page_by_page() {
    let (inbox, _database) = inbox().await;
    let ids: Vec<_> = (0..1001).map(|number| format!("${number}")).collect();
    let ids: Vec<_> = ids.iter().map(String::as_str).collect();
    record(&inbox, &sync("s1", vec![room(&ids)])).await;
    // Most of them at the same time, and the last ones first.
    let fail = "UPDATE webhook_bridge.events SET state = 'failed',
        done_at = now() - CASE WHEN position > 900 THEN interval '1 hour' ELSE interval '0' END";
    inbox.connection().await.unwrap().batch_execute(fail).await.unwrap();
    let (mut found, mut page) = (Vec::new(), inbox.dead_letters(None).await.unwrap());
    while let Some(last) = page.last() {
        assert!(page.len() <= 500);
        let next = inbox.dead_letters(Some(last)).await.unwrap();
        found.extend(std::mem::replace(&mut page, next).into_iter().map(|letter| letter.event_id));
    }
    assert_eq!(found, [&ids[900..], &ids[..900]].concat());
}

#[tokio::test]
async fn a_rejected_message_blocks_its_room_until_it_is_dead_lettered() {
    let (inbox, _database) = inbox().await;
    record(&inbox, &sync("s1", vec![room(&["$1", "$2"])])).await;
    inbox.retry_in("!r:x", "$1", std::time::Duration::from_secs(60)).await.unwrap();
    let first = inbox.due("!r:x", 1).await.unwrap().remove(0);
    assert_eq!((first.event_id.as_str(), first.rejections, first.too_early), ("$1", 1, true));
    inbox.failed("!r:x", "$1", "the webhook responded with 400").await.unwrap();
    assert_eq!(due(&inbox).await, ["$2"]);
    inbox.failed("!r:x", "$2", "it cannot be decrypted").await.unwrap();
    assert!(due(&inbox).await.is_empty());
    inbox.retry_rejected().await.unwrap();
    assert_eq!(due(&inbox).await, ["$1"], "only events that the webhook rejected are retried");
    let retried = inbox.due("!r:x", 1).await.unwrap().remove(0);
    assert_eq!((retried.rejections, retried.too_early), (MAX_REJECTIONS - 1, false));
}

#[tokio::test]
async fn redacted_messages_are_not_delivered() {
    let (inbox, _database) = inbox().await;
    record(&inbox, &sync("s1", vec![room(&["$1", "$2"])])).await;
    let change = RoomChange { redacted: vec!["$1".to_owned()], ..room(&["$3"]) };
    record(&inbox, &sync("s2", vec![change])).await;
    assert_eq!(due(&inbox).await, ["$2", "$3"]);
    let stored = "SELECT count(*) FROM webhook_bridge.events WHERE event IS NOT NULL";
    let count: i64 =
        inbox.connection().await.unwrap().query_typed_one(stored, &[]).await.unwrap().get(0);
    assert_eq!(count, 2);
}

#[tokio::test]
async fn bots_in_one_database_are_independent() {
    let (inbox, _database) = inbox().await;
    let other = Inbox::new(inbox.pool.clone(), "@other:x");
    record(&inbox, &sync("s1", vec![room(&["$1"])])).await;
    record(&other, &sync("s9", vec![with_gap(&["$1"])])).await;
    assert_eq!(due(&inbox).await, ["$1"]);
    assert!(due(&other).await.is_empty());
    assert!(inbox.rooms_with_gaps().await.unwrap().is_empty());
    other.delivered("!r:x", "$1").await.unwrap();
    assert_eq!(inbox.counts().await.unwrap().pending, 1);
}

#[tokio::test]
async fn an_invitation_inherits_nothing_from_an_earlier_stay() {
    let (inbox, _database) = inbox().await;
    let invitation =
        Invitation { room_id: "!r:x".into(), invited: "@bot:x".into(), inviter: "@alice:x".into() };
    let upgrade =
        Upgrade { room_id: "!old:x".into(), replacement: "!r:x".into(), by: "@alice:x".into() };
    let invited = || SyncRecord { invitations: vec!["!r:x".into()], ..sync("s1", vec![]) };
    let upgraded = SyncRecord { upgrades: vec![upgrade], inviters: vec![invitation], ..invited() };
    record(&inbox, &upgraded).await;
    let pending = inbox.pending("!r:x").await.unwrap().unwrap();
    assert_eq!(pending.inviter.as_deref(), Some("@alice:x"));
    assert_eq!(pending.upgraded_by.as_deref(), Some("@alice:x"));
    record(&inbox, &sync("s2", vec![room(&["$1"])])).await;
    record(&inbox, &sync("s3", vec![RoomChange { left: true, ..room(&[]) }])).await;
    record(&inbox, &invited()).await;
    let pending = inbox.pending("!r:x").await.unwrap().unwrap();
    assert_eq!((pending.inviter, pending.upgraded_by), (None, None));
}

#[tokio::test]
async fn invitations_and_member_lists_survive_until_done() {
    let (inbox, _database) = inbox().await;
    let invited =
        SyncRecord { invitations: vec!["!r:x".into(), "!s:x".into()], ..sync("s1", vec![]) };
    record(&inbox, &invited).await;
    assert_eq!(inbox.invitations().await.unwrap(), ["!r:x", "!s:x"]);
    // A sync has recorded the join already: the room stays.
    record(&inbox, &sync("s2", vec![room(&["$1"])])).await;
    inbox.forget_invitation("!r:x").await.unwrap();
    let gone = SyncRecord { invitations_gone: vec!["!s:x".into()], ..sync("s3", vec![]) };
    record(&inbox, &gone).await;
    assert!(inbox.invitations().await.unwrap().is_empty());
    assert_eq!(inbox.rooms_without_members(false).await.unwrap(), ["!r:x"]);
    inbox.members_known("!r:x").await.unwrap();
    record(&inbox, &sync("s4", vec![room(&["$2"])])).await;
    assert!(inbox.rooms_without_members(false).await.unwrap().is_empty());
    let missed = RoomChange { members_missed: true, ..room(&["$3"]) };
    record(&inbox, &sync("s5", vec![missed])).await;
    assert_eq!(inbox.rooms_without_members(false).await.unwrap(), ["!r:x"]);
}

#[tokio::test]
async fn waiting_sessions_are_listed_page_by_page() {
    let (inbox, _database) = inbox().await;
    let ids: Vec<_> = (0..SESSIONS * 2 + 1).map(|number| format!("${number}")).collect();
    let events: Vec<_> = ids.iter().map(|id| event(id, &format!("session of {id}"))).collect();
    // Those of a gap have the same position.
    let (filled, synced) = events.split_at(SESSIONS + 500);
    let change = RoomChange { events: synced.to_vec(), ..with_gap(&[]) };
    record(&inbox, &sync("s1", vec![change])).await;
    let mut gap = inbox.oldest_gap("!r:x").await.unwrap().unwrap();
    inbox.fill(&mut gap, filled, &[], None).await.unwrap();
    let wait = "UPDATE webhook_bridge.events SET state = 'waiting'";
    inbox.connection().await.unwrap().batch_execute(wait).await.unwrap();
    let (mut last, mut found) = (None, Vec::new());
    for expected in [SESSIONS, SESSIONS, 1, 0] {
        let page = inbox.waiting_sessions(last.as_ref()).await.unwrap();
        assert_eq!(page.len(), expected);
        last = page.last().cloned().or(last);
        found.extend(page);
    }
    assert!(found.iter().rev().is_sorted_by_key(|session| session.position));
    let found: std::collections::HashSet<_> =
        found.into_iter().map(|session| session.session_id).collect();
    assert_eq!(found.len(), ids.len());
}
