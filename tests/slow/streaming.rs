//! Reads of many rows: decoded as they arrive, on a connection that is returned to the pool.

use std::time::Duration;

use futures_util::poll;
use matrix_sdk_crypto::{
    olm::{Account, InboundGroupSession, SenderDataType},
    store::CryptoStore,
};
use matrix_sdk_postgres::{Access, Error, PoolSettings, PostgresCryptoStore, testing};
use peak_alloc::PeakAlloc;
use ruma::device_id;
use test_support::{
    Mode, child_process, connect,
    fixture::{inbound_session, own_user, room},
    number,
};
use tokio::time::sleep;
use tokio_postgres::Client;

/// Counts the allocated bytes and their peak.
#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

const MANY: usize = 100_000;

fn session() -> InboundGroupSession {
    let account = Account::with_device_id(own_user(), device_id!("DEVICE"));
    inbound_session(&account, room(), SenderDataType::DeviceInfo)
}

/// Stores one session, and copies of its row under other ids.
async fn fill(store: &PostgresCryptoStore, client: &Client, count: usize) {
    store.save_inbound_group_sessions(vec![session()], None).await.unwrap();
    let columns = "backup_generation, sender_data_type, sender_key, data";
    let copy = format!(
        "INSERT INTO matrix_sdk.megolm_inbound_sessions (account_id, room_id, session_id, {columns})
         SELECT account_id, room_id, sha256(i::text::bytea), {columns}
         FROM matrix_sdk.megolm_inbound_sessions, generate_series(2, {count}) i"
    );
    client.batch_execute(&copy).await.unwrap();
}

/// The server's processes for the store, whose pool has one connection.
async fn backends(client: &Client) -> Vec<i32> {
    let sql = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() \
               AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// The sessions that a read returns, and the peak of allocated bytes.
async fn measure(
    read: impl Future<Output = Result<Vec<InboundGroupSession>, Error>>,
) -> (usize, usize) {
    let before = ALLOCATED.current_usage();
    ALLOCATED.reset_peak_usage();
    let sessions = read.await.unwrap();
    let peak = ALLOCATED.peak_usage() - before;
    let decoded = ALLOCATED.current_usage() - before;
    assert_eq!(sessions.len(), MANY);
    println!("{decoded} bytes decoded, {peak} at the peak");
    (decoded, peak)
}

/// Runs in a process of its own, because the allocator counts for the whole program.
#[tokio::test]
async fn one_hundred_thousand_room_keys_are_decoded_while_they_arrive() {
    let name = "streaming::one_hundred_thousand_room_keys_are_decoded_while_they_arrive";
    if child_process::run_alone(name) {
        return;
    }
    let database = testing::database().unwrap();
    let url = database.url();
    let client = connect(&url).await;
    let store = Mode::Plain.open(&url, "bot").await;
    fill(&store, &client, MANY).await;
    store.close().await.unwrap();
    // A read-only store has no heartbeat, and so no connection except the pool's.
    let config = Mode::Plain
        .config(&url, "bot")
        .pool(PoolSettings { max_size: 1, ..Default::default() })
        .access(Access::ReadOnly);
    let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();

    let rows = "SELECT sum(length(data)) FROM matrix_sdk.megolm_inbound_sessions";
    let rows = usize::try_from(number(&client, rows).await).unwrap();
    for (decoded, peak) in [
        measure(store.get_inbound_group_sessions()).await,
        measure(store.get_inbound_group_sessions_by_room_id(room())).await,
    ] {
        assert!(peak < decoded * 5 / 2, "{decoded} bytes decoded, {peak} at the peak");
        // The rows were not all in memory at once.
        assert!(peak - decoded < rows / 4, "{} bytes in addition to those decoded", peak - decoded);
    }

    // The connection was returned to the pool each time.
    let before = backends(&client).await;
    assert_eq!(before.len(), 1);
    assert_eq!(store.get_custom_value("nothing").await.unwrap(), None);
    assert_eq!(backends(&client).await, before);

    // The read is dropped while the server has more rows than fit into the socket's buffers.
    let mut read = Box::pin(store.get_inbound_group_sessions());
    let stuck = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'ClientWrite'";
    while number(&client, stuck).await == 0 {
        assert!(poll!(&mut read).is_pending());
    }
    drop(read);
    // The next read gets a new connection.
    assert_eq!(store.get_custom_value("nothing").await.unwrap(), None);
    assert!(backends(&client).await.iter().any(|pid| *pid != before[0]));
    while backends(&client).await.contains(&before[0]) {
        sleep(Duration::from_millis(10)).await;
    }
    let after = backends(&client).await;
    assert_eq!(after.len(), 1);
    assert_eq!(store.get_custom_value("nothing").await.unwrap(), None);
    assert_eq!(backends(&client).await, after);
}
