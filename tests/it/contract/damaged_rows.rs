//! Rule 9: a row that cannot be read is an error that names its table and holds no data.

use assert_matches::assert_matches;
use matrix_sdk_crypto::{
    DeviceData, LocalTrust,
    store::{
        CryptoStore, CryptoStoreError,
        types::{Changes, DeviceChanges, PendingChanges},
    },
    types::DeviceKeys,
};
use matrix_sdk_postgres::{Error, testing};
use test_support::{
    Mode, connect,
    fixture::{Fixture, own_device, own_user, room},
    reads::{
        TABLES_WITHOUT_DATA, assert_complete, read_all, read_own_device, tables, tables_with_data,
    },
};

/// Replacements for a table's `data` that no encoder of this crate writes.
const DAMAGE: [(&str, &str); 6] = [
    ("nothing", "''::bytea"),
    ("garbage", r"'\xc1deadbeefdeadbeefdeadbeefdeadbeef'::bytea"),
    ("the first half", "substring(data FROM 1 FOR length(data) / 2)"),
    // After the envelope's header, and in the middle of MessagePack or JSON.
    (
        "a changed byte",
        "set_byte(data, length(data) / 2,
                  CASE get_byte(data, length(data) / 2) WHEN 193 THEN 194 ELSE 193 END)",
    ),
    ("a valid value of another type", r"'\x81a178c0'::bytea"),
    ("bytes behind it", "data || 'tail'::bytea"),
];

#[tokio::test]
async fn a_damaged_row_is_an_error_that_names_its_table() {
    for mode in [Mode::Plain, Mode::Key] {
        let database = testing::database().unwrap();
        let (url, fixture) = (database.url(), Fixture::new().await);
        let (store, client) = (mode.open_uncached(&url, "bot").await, connect(&url).await);
        fixture.fill(&store).await;
        assert_complete(&store, &fixture).await;
        for table in tables_with_data(&client).await {
            for (kind, damage) in DAMAGE {
                // A plain value with one changed byte, or with more bytes, may still decode, and a custom value is
                // any bytes.
                let may_pass =
                    mode == Mode::Plain && ["a changed byte", "bytes behind it"].contains(&kind);
                if mode == Mode::Plain && table == "custom_values" {
                    continue;
                }
                let copy = format!(
                    "CREATE TABLE before AS SELECT * FROM matrix_sdk.{table};
                     UPDATE matrix_sdk.{table} SET data = {damage}"
                );
                client.batch_execute(&copy).await.unwrap();
                let mut reads = read_all(&store, &fixture).await;
                reads.extend(read_own_device(&store).await);
                for read in reads {
                    let case = format!("{mode:?} {table} {kind} {}", read.method);
                    match read.found {
                        Err(Error::CorruptRow { table: named, reason }) => {
                            assert_eq!(named, table, "{case}");
                            // A fixed text, so it cannot contain data of the row.
                            assert!(reason.len() < 40, "{case}: {reason}");
                        }
                        // Reads of sessions need the own device's keys.
                        Ok(1..) => assert!(may_pass || read.table != table, "{case} was read"),
                        other => panic!("{case}: {other:?}"),
                    }
                }
                let restore = format!(
                    "TRUNCATE matrix_sdk.{table};
                     INSERT INTO matrix_sdk.{table} OVERRIDING SYSTEM VALUE SELECT * FROM before;
                     DROP TABLE before"
                );
                client.batch_execute(&restore).await.unwrap();
            }
            assert_complete(&store, &fixture).await;
        }
    }
}

#[tokio::test]
async fn the_test_of_damaged_rows_covers_every_table() {
    let database = testing::database().unwrap();
    let (url, fixture) = (database.url(), Fixture::new().await);
    let (store, client) = (Mode::Plain.open_uncached(&url, "bot").await, connect(&url).await);
    let covered: Vec<_> = read_all(&store, &fixture).await.iter().map(|read| read.table).collect();
    let with_data = tables_with_data(&client).await;
    for table in tables(&client).await {
        // Tables that do not belong to an account.
        if ["accounts", "schema_migrations", "heartbeats"].contains(&table.as_str()) {
            continue;
        }
        let has_data = with_data.contains(&table);
        assert_eq!(has_data, !TABLES_WITHOUT_DATA.contains(&table.as_str()), "{table}");
        assert!(!has_data || covered.contains(&table.as_str()), "{table}");
    }
}

/// The row decodes, but the session cannot be unpickled: the own device has no keys.
#[tokio::test]
async fn a_failed_unpickle_is_an_error_that_names_its_table() {
    for mode in [Mode::Plain, Mode::Key] {
        let database = testing::database().unwrap();
        let (url, fixture) = (database.url(), Fixture::new().await);
        let store = mode.open_uncached(&url, "bot").await;
        fixture.fill(&store).await;
        let keyless = DeviceKeys::new(
            own_user().to_owned(),
            own_device().to_owned(),
            Vec::new(),
            Default::default(),
            Default::default(),
        );
        let changed = vec![DeviceData::new(keyless, LocalTrust::Unset)];
        let devices = DeviceChanges { changed, ..Default::default() };
        store.save_changes(Changes { devices, ..Default::default() }).await.unwrap();
        let sender = fixture.olm_session.sender_key().to_base64();
        assert_matches!(
            store.get_sessions(&sender).await,
            Err(Error::CorruptRow { table: "olm_sessions", reason: "the pickle is invalid" })
        );
    }
}

#[tokio::test]
async fn a_missing_own_device_is_an_error_that_names_its_table() {
    for mode in [Mode::Plain, Mode::Key] {
        let database = testing::database().unwrap();
        let (url, fixture) = (database.url(), Fixture::new().await);
        let store = mode.open_uncached(&url, "bot").await;
        fixture.fill(&store).await;
        let devices = DeviceChanges {
            deleted: vec![DeviceData::from_account(&fixture.account)],
            ..Default::default()
        };
        store.save_changes(Changes { devices, ..Default::default() }).await.unwrap();
        assert!(store.get_device(own_user(), own_device()).await.unwrap().is_none());
        let sender = fixture.olm_session.sender_key().to_base64();
        assert_matches!(
            store.get_own_device().await,
            Err(Error::CorruptRow { table: "devices", .. })
        );
        assert_matches!(
            store.get_sessions(&sender).await,
            Err(Error::CorruptRow { table: "devices", .. })
        );
        // Without sessions the own device is not needed.
        assert_matches!(store.get_sessions("somebody else").await, Ok(None));
    }
}

#[tokio::test]
async fn account_unset_only_when_no_account_is_set() {
    for mode in [Mode::Plain, Mode::Key] {
        let database = testing::database().unwrap();
        let (url, fixture) = (database.url(), Fixture::new().await);
        let store = mode.open_uncached(&url, "bot").await;
        // The machine saves its own device before the account.
        store.save_changes(fixture.changes()).await.unwrap();
        let sender = fixture.olm_session.sender_key().to_base64();
        assert_matches!(store.get_sessions(&sender).await, Err(Error::AccountUnset));
        assert_matches!(store.get_outbound_group_session(room()).await, Err(Error::AccountUnset));
        assert_matches!(store.get_own_device().await, Err(Error::AccountUnset));
        assert_matches!(
            CryptoStoreError::from(Error::AccountUnset),
            CryptoStoreError::AccountUnset
        );

        let account = Some(fixture.account.deep_clone());
        store.save_pending_changes(PendingChanges { account }).await.unwrap();
        assert_eq!(store.get_sessions(&sender).await.unwrap().unwrap().len(), 1);
        assert_eq!(store.get_own_device().await.unwrap().device_id(), own_device());

        // Another store of the account has it once the account was loaded.
        let other = mode.open_uncached(&url, "bot").await;
        assert_matches!(other.get_own_device().await, Err(Error::AccountUnset));
        other.load_account().await.unwrap().unwrap();
        assert_eq!(other.get_own_device().await.unwrap().device_id(), own_device());
        // Pending changes without an account do not delete it.
        other.save_pending_changes(PendingChanges { account: None }).await.unwrap();
        assert_eq!(other.get_own_device().await.unwrap().device_id(), own_device());
    }
}

/// A damaged row among many fails this read only: writes continue.
#[tokio::test]
async fn a_damaged_row_fails_the_read_but_not_the_store() {
    for mode in [Mode::Plain, Mode::Key] {
        let database = testing::database().unwrap();
        let (url, fixture) = (database.url(), Fixture::new().await);
        let (store, client) = (mode.open(&url, "bot").await, connect(&url).await);
        fixture.fill(&store).await;
        let damage = "INSERT INTO matrix_sdk.megolm_inbound_sessions
                (account_id, room_id, session_id, sender_key, sender_data_type, backup_generation, data)
             SELECT account_id, room_id, 'another', sender_key, sender_data_type, 0, ''
             FROM matrix_sdk.megolm_inbound_sessions";
        client.batch_execute(damage).await.unwrap();
        assert_matches!(
            store.get_inbound_group_sessions().await,
            Err(Error::CorruptRow { table: "megolm_inbound_sessions", .. })
        );
        store.set_custom_value("key", b"value".to_vec()).await.unwrap();
        assert_eq!(store.get_custom_value("key").await.unwrap().unwrap(), b"value", "{mode:?}");
    }
}
