//! Rule 4: batches of 70 000 rows of about 1 kB, of one and of none.

use std::collections::BTreeMap;

use matrix_sdk_crypto::{
    olm::{Account, OlmMessageHash, SenderDataType},
    store::{CryptoStore, types::Changes},
};
use matrix_sdk_postgres::{
    PostgresCryptoStore,
    testing::{self, PostgresServer},
};
use ruma::{OwnedRoomId, OwnedUserId, UserId, device_id};
use test_support::{
    Mode, connect,
    fixture::{inbound_session, own_user, room, withheld},
    number,
};

const MANY: usize = 70_000;

/// Maximum memory of the server process, in bytes.
const SERVER_MEMORY: u64 = 200_000_000;

async fn rows(client: &tokio_postgres::Client, table: &str) -> i64 {
    number(client, &format!("SELECT count(*) FROM matrix_sdk.{table}")).await
}

/// Incompressible letters, different for each number.
fn noise(number: usize, length: usize) -> String {
    let mut random = fastrand::Rng::with_seed(number as u64);
    (0..length).map(|_| random.alphanumeric()).collect()
}

/// Long, so that a row has about a kilobyte.
fn room_id(number: usize) -> OwnedRoomId {
    OwnedRoomId::try_from(format!("!{number}{}:example.org", noise(number, 230))).unwrap()
}

async fn save_room_keys(store: &PostgresCryptoStore, count: usize) {
    let user_id = UserId::parse(format!("@{}:example.org", noise(0, 230))).unwrap();
    let account = Account::with_device_id(&user_id, device_id!("DEVICE"));
    let session = inbound_session(&account, room(), SenderDataType::DeviceInfo);
    // One ratchet in many rooms: each is a row of its own, and cheap to create.
    let sessions = (0..count).map(|number| {
        let mut session = session.clone();
        session.room_id = room_id(number);
        session
    });
    let inbound_group_sessions = sessions.collect();
    store.save_changes(Changes { inbound_group_sessions, ..Default::default() }).await.unwrap();
}

/// The peak memory of the store's server processes in bytes, including the shared buffers that they used.
async fn server_memory(client: &tokio_postgres::Client) -> u64 {
    let sql = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() \
               AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
    let backends = client.query(sql, &[]).await.unwrap();
    let peak = |pid: i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
    };
    backends.iter().map(|row| peak(row.get(0))).max().unwrap()
}

#[tokio::test]
async fn seventy_thousand_room_keys_of_a_kilobyte() {
    // A local server, whose memory the test can read.
    let server = PostgresServer::start().unwrap();
    for mode in [Mode::Plain, Mode::Key] {
        let database = server.create_database().unwrap();
        let (store, client) =
            (mode.open(&database.url(), "bot").await, connect(&database.url()).await);
        save_room_keys(&store, MANY).await;
        let memory = server_memory(&client).await;
        assert!(memory < SERVER_MEMORY, "{mode:?}: {memory} bytes of memory in the server");
        assert_eq!(rows(&client, "megolm_inbound_sessions").await, MANY as i64, "{mode:?}");
        let average = "SELECT avg(length(data))::int8 FROM matrix_sdk.megolm_inbound_sessions";
        let average = number(&client, average).await;
        assert!((900..1100).contains(&average), "{average} bytes a row");
        assert_eq!(store.inbound_group_session_counts(None).await.unwrap().total, MANY);
        // It was one transaction.
        let transactions =
            "SELECT count(DISTINCT xmin::text) FROM matrix_sdk.megolm_inbound_sessions";
        assert_eq!(number(&client, transactions).await, 1);

        let ids: Vec<_> = (0..MANY).map(room_id).collect();
        let id = store.inbound_group_sessions_for_backup("1", 1).await.unwrap()[0].clone();
        let ids: Vec<_> = ids.iter().map(|room_id| (room_id.as_ref(), id.session_id())).collect();
        store.mark_inbound_group_sessions_as_backed_up("1", &ids).await.unwrap();
        assert_eq!(store.inbound_group_session_counts(Some("1")).await.unwrap().backed_up, MANY);
    }
}

#[tokio::test]
async fn seventy_thousand_rows_of_other_tables() {
    for mode in [Mode::Plain, Mode::Key] {
        let database = testing::database().unwrap();
        let (store, client) =
            (mode.open(&database.url(), "bot").await, connect(&database.url()).await);
        let users: Vec<OwnedUserId> = (0..MANY)
            .map(|number| UserId::parse(format!("@{number}:example.org")).unwrap())
            .collect();
        let tracked: Vec<(&UserId, bool)> = users.iter().map(|id| (id.as_ref(), true)).collect();
        store.save_tracked_users(&tracked).await.unwrap();
        assert_eq!(store.load_tracked_users().await.unwrap().len(), MANY, "{mode:?}");

        let hash = |number| OlmMessageHash {
            sender_key: "sender".to_owned(),
            hash: format!("hash {number}"),
        };
        let account = Account::with_device_id(own_user(), device_id!("DEVICE"));
        let entry = withheld("session", account.identity_keys().curve25519);
        let withheld: BTreeMap<_, _> =
            (0..MANY).map(|number| (format!("session {number}"), entry.clone())).collect();
        let changes = Changes {
            message_hashes: (0..MANY).map(hash).collect(),
            withheld_session_info: BTreeMap::from([(room().to_owned(), withheld)]),
            ..Default::default()
        };
        store.save_changes(changes).await.unwrap();
        assert_eq!(rows(&client, "message_hashes").await, MANY as i64, "{mode:?}");
        assert_eq!(rows(&client, "withheld_sessions").await, MANY as i64);
        assert!(store.is_message_known(&hash(MANY - 1)).await.unwrap());
        let last = format!("session {}", MANY - 1);
        assert!(store.get_withheld_info(room(), &last).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn batches_of_one_and_of_none() {
    for mode in [Mode::Plain, Mode::Key] {
        let database = testing::database().unwrap();
        let (store, client) =
            (mode.open(&database.url(), "bot").await, connect(&database.url()).await);
        for count in [0, 1] {
            save_room_keys(&store, count).await;
            let users = [(own_user(), false)];
            store.save_tracked_users(&users[..count]).await.unwrap();
            assert_eq!(rows(&client, "megolm_inbound_sessions").await, count as i64, "{mode:?}");
            assert_eq!(rows(&client, "tracked_users").await, count as i64);
        }
        store.save_changes(Changes::default()).await.unwrap();
        store.mark_inbound_group_sessions_as_backed_up("1", &[]).await.unwrap();
        store.save_inbound_group_sessions(Vec::new(), Some("1")).await.unwrap();
    }
}

/// One value that is larger than the size limit of a statement.
#[tokio::test]
async fn a_single_value_of_twenty_megabytes() {
    for mode in [Mode::Plain, Mode::Key] {
        let database = testing::database().unwrap();
        let store = mode.open(&database.url(), "bot").await;
        let value: Vec<u8> = (0..20_000_000u32).map(|n| (n ^ (n >> 9)) as u8).collect();
        store.set_custom_value("large", value.clone()).await.unwrap();
        assert!(store.get_custom_value("large").await.unwrap().unwrap() == value, "{mode:?}");
    }
}
