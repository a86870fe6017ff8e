//! The size of an inbound session in bytes, including indexes.

use matrix_sdk_crypto::{
    olm::{Account, InboundGroupSession, SenderDataType},
    store::CryptoStore,
};
use matrix_sdk_postgres::{PostgresCryptoStore, testing};
use ruma::{DeviceId, OwnedRoomId, OwnedUserId, RoomId, server_name};
use test_support::{Mode, connect, fixture::inbound_session, number};
use tokio_postgres::Client;

const INSERTED: f64 = 1000.0;
const MARKED: f64 = 1200.0;

/// Number of sessions that the SDK uploads in a request.
const REQUEST: usize = 100;

/// The kind with the largest rows.
const KIND: SenderDataType = SenderDataType::DeviceInfo;

/// One session of each sender in each room, in random order.
fn sessions(senders: usize, rooms: usize) -> Vec<InboundGroupSession> {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let rooms: Vec<OwnedRoomId> =
        (0..rooms).map(|_| RoomId::new_v1(server_name!("example.org"))).collect();
    let mut sessions = Vec::new();
    for number in 0..senders {
        let user_id = OwnedUserId::try_from(format!("@friend{number}:example.org")).unwrap();
        let device_id = format!("DEVICE{number:04}");
        let sender = Account::with_device_id(&user_id, <&DeviceId>::from(device_id.as_str()));
        // One ratchet in many rooms: each row is as large as with a ratchet of its own.
        let session = inbound_session(&sender, &rooms[0], KIND);
        sessions.extend(rooms.iter().map(|room_id| {
            let mut session = session.clone();
            session.room_id = room_id.clone();
            session
        }));
    }
    fastrand::Rng::with_seed(seed).shuffle(&mut sessions);
    sessions
}

async fn vacuum(client: &Client) {
    client.batch_execute("VACUUM matrix_sdk.megolm_inbound_sessions").await.unwrap();
}

async fn bytes_a_session(client: &Client, count: usize) -> f64 {
    vacuum(client).await;
    let size = "SELECT pg_total_relation_size('matrix_sdk.megolm_inbound_sessions')";
    number(client, size).await as f64 / count as f64
}

/// Marks all sessions, as the SDK does while it uploads them. Vacuums whenever a fifth of the rows is dead, like
/// autovacuum, but without its delay.
async fn mark_all(store: &PostgresCryptoStore, client: &Client, count: usize) {
    for request in 1.. {
        let batch = store.inbound_group_sessions_for_backup("1", REQUEST).await.unwrap();
        if batch.is_empty() {
            break;
        }
        let ids: Vec<_> = batch.iter().map(|it| (it.room_id(), it.session_id())).collect();
        store.mark_inbound_group_sessions_as_backed_up("1", &ids).await.unwrap();
        if (request * REQUEST).is_multiple_of(count / 5) {
            vacuum(client).await;
        }
    }
}

async fn measure(mode: Mode, senders: usize, rooms: usize) {
    let database = testing::database().unwrap();
    let (store, client) = (mode.open(&database.url(), "bot").await, connect(&database.url()).await);
    // Vacuumed by the test only.
    let off = "ALTER TABLE matrix_sdk.megolm_inbound_sessions SET (autovacuum_enabled = false)";
    client.batch_execute(off).await.unwrap();
    let sessions = sessions(senders, rooms);
    let count = sessions.len();
    for chunk in sessions.chunks(1000) {
        store.save_inbound_group_sessions(chunk.to_vec(), None).await.unwrap();
    }
    let inserted = bytes_a_session(&client, count).await;
    mark_all(&store, &client, count).await;
    let counts = store.inbound_group_session_counts(Some("1")).await.unwrap();
    assert_eq!((counts.total, counts.backed_up), (count, count));
    let marked = bytes_a_session(&client, count).await;
    println!("{mode:?}, {count} sessions: {inserted:.0} bytes each, {marked:.0} when marked");
    assert!(inserted <= INSERTED, "{mode:?}: {inserted} bytes a session");
    assert!(marked <= MARKED, "{mode:?}: {marked} bytes a session after all were marked");
}

#[tokio::test]
async fn a_session_takes_a_kilobyte_at_most() {
    for mode in [Mode::Plain, Mode::Key] {
        measure(mode, 100, 50).await;
    }
}

#[tokio::test]
async fn one_hundred_thousand_plain_sessions_take_a_kilobyte_each_at_most() {
    measure(Mode::Plain, 1000, 100).await;
}

#[tokio::test]
async fn one_hundred_thousand_encrypted_sessions_take_a_kilobyte_each_at_most() {
    measure(Mode::Key, 1000, 100).await;
}
