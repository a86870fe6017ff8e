//! Rule 6: a value is never returned in the place of another.

use assert_matches::assert_matches;
use matrix_sdk_crypto::{
    olm::{Account, SenderDataType},
    store::CryptoStore,
};
use matrix_sdk_postgres::{Error, OpenStoreError, PostgresCryptoStore, testing};
use ruma::{device_id, room_id, user_id};
use test_support::{
    Mode, connect,
    fixture::{Fixture, inbound_session, own_user, room},
    reads::{assert_complete, read_all, tables_with_data},
};

#[tokio::test]
async fn the_right_session_id_in_the_wrong_room_is_none() {
    for mode in [Mode::Plain, Mode::Key] {
        let database = testing::database().unwrap();
        let store = mode.open(&database.url(), "bot").await;
        let fixture = Fixture::new().await;
        fixture.fill(&store).await;
        let (id, wrong) = (fixture.inbound.session_id(), room_id!("!wrong:example.org"));
        assert!(store.get_inbound_group_session(room(), id).await.unwrap().is_some());
        assert!(store.get_inbound_group_session(wrong, id).await.unwrap().is_none(), "{mode:?}");
        assert!(store.get_withheld_info(wrong, id).await.unwrap().is_none());
        assert!(store.get_inbound_group_sessions_by_room_id(wrong).await.unwrap().is_empty());
        assert!(store.get_outbound_group_session(wrong).await.unwrap().is_none());
    }
}

/// A session that claims another room does not replace the one with the same id.
#[tokio::test]
async fn the_same_session_id_in_two_rooms_is_two_sessions() {
    for mode in [Mode::Plain, Mode::Key] {
        let database = testing::database().unwrap();
        let store = mode.open(&database.url(), "bot").await;
        let account = Account::with_device_id(own_user(), device_id!("DEVICE"));
        let session = inbound_session(&account, room(), SenderDataType::UnknownDevice);
        let mut forged = session.clone();
        forged.room_id = room_id!("!elsewhere:example.org").to_owned();
        store.save_inbound_group_sessions(vec![session.clone()], None).await.unwrap();
        store.save_inbound_group_sessions(vec![forged.clone()], None).await.unwrap();
        for session in [session, forged] {
            let id = session.session_id();
            let stored = store.get_inbound_group_session(session.room_id(), id).await.unwrap();
            assert_eq!(stored.unwrap().room_id(), session.room_id(), "{mode:?}");
        }
    }
}

/// An attacker with write access can move sealed values, since encryption alone does not bind them to a row.
#[tokio::test]
async fn two_sealed_rows_swapped_are_errors_that_name_the_table() {
    for mode in [Mode::Passphrase, Mode::Key] {
        let database = testing::database().unwrap();
        let (url, fixture) = (database.url(), Fixture::new().await);
        let (store, client) = (mode.open_uncached(&url, "bot").await, connect(&url).await);
        fixture.fill(&store).await;
        // A second row in the tables in which the fixture has one.
        let account = Account::with_device_id(user_id!("@other:example.org"), device_id!("DEVICE"));
        let elsewhere = room_id!("!elsewhere:example.org");
        let second = inbound_session(&account, elsewhere, SenderDataType::UnknownDevice);
        store.save_inbound_group_sessions(vec![second.clone()], None).await.unwrap();
        store.set_custom_value("other", b"other".to_vec()).await.unwrap();
        store.save_tracked_users(&[(account.user_id(), false)]).await.unwrap();

        let tables = ["megolm_inbound_sessions", "custom_values", "tracked_users", "devices"];
        for table in tables {
            let swap = format!(
                "UPDATE matrix_sdk.{table} t SET data = o.data
                 FROM matrix_sdk.{table} o WHERE o.ctid <> t.ctid"
            );
            assert_eq!(client.execute(&swap, &[]).await.unwrap(), 2, "{table}");
            let error = |read: &test_support::reads::Read| match &read.found {
                Err(Error::CorruptRow { table, reason }) => Some((*table, *reason)),
                _ => None,
            };
            for read in read_all(&store, &fixture).await {
                // Unpickling an Olm session needs the own device.
                let olm = table == "devices" && read.method == "get_sessions";
                let expected = (read.table == table || olm)
                    .then_some((table, "the value belongs to another row"));
                assert_eq!(error(&read), expected, "{mode:?} {table} {}", read.method);
            }
            assert_eq!(client.execute(&swap, &[]).await.unwrap(), 2, "{table}");
            assert_complete(&store, &fixture).await;
        }
    }
}

/// A value of one table, copied into every other.
#[tokio::test]
async fn a_sealed_value_of_another_table_is_an_error_that_names_the_table() {
    let database = testing::database().unwrap();
    let (url, fixture) = (database.url(), Fixture::new().await);
    let (store, client) = (Mode::Key.open_uncached(&url, "bot").await, connect(&url).await);
    fixture.fill(&store).await;
    for table in tables_with_data(&client).await {
        let from = if table == "custom_values" { "sync_tokens" } else { "custom_values" };
        let copy =
            format!("UPDATE matrix_sdk.{table} SET data = (SELECT data FROM matrix_sdk.{from})");
        client.batch_execute(&copy).await.unwrap();
        let reads = read_all(&store, &fixture).await;
        let mut reads = reads.into_iter().filter(|read| read.table == table);
        assert!(
            reads.all(
                |read| matches!(read.found, Err(Error::CorruptRow { table: t, .. }) if t == table)
            ),
            "{table}"
        );
        fixture.fill(&store).await;
    }
}

/// Rows of one account copied into another, which has a different cipher.
#[tokio::test]
async fn a_sealed_row_of_another_account_is_an_error_that_names_the_table() {
    let database = testing::database().unwrap();
    let (url, fixture) = (database.url(), Fixture::new().await);
    let client = connect(&url).await;
    let (ours, theirs) = (
        Mode::Key.open_uncached(&url, "ours").await,
        Mode::Key.open_uncached(&url, "theirs").await,
    );
    fixture.fill(&ours).await;
    fixture.fill(&theirs).await;
    let copy = "UPDATE matrix_sdk.encrypted_rooms o SET data = t.data
                FROM matrix_sdk.encrypted_rooms t WHERE o.account_id < t.account_id";
    assert_eq!(client.execute(copy, &[]).await.unwrap(), 1);
    assert_matches!(
        ours.get_room_settings(room()).await,
        Err(Error::CorruptRow { table: "encrypted_rooms", .. })
    );
    theirs.get_room_settings(room()).await.unwrap().unwrap();
}

/// Two accounts with one secret, whose ciphers, names or numbers an attacker exchanges. Opening a name never
/// opens the other account.
#[tokio::test]
async fn exchanged_accounts_with_the_same_secret_are_detected() {
    for mode in [Mode::Passphrase, Mode::Key] {
        let database = testing::database().unwrap();
        let (url, fixture) = (database.url(), Fixture::new().await);
        let client = connect(&url).await;
        for name in ["alice", "bob"] {
            let store = mode.open_uncached(&url, name).await;
            fixture.fill(&store).await;
            store.close().await.unwrap();
        }
        let open =
            async |name| PostgresCryptoStore::open_with_config(&mode.config(&url, name)).await;
        let exchange = async |columns: &str| {
            let set = columns.split(", ").map(|column| format!("{column} = o.{column}"));
            let set = set.collect::<Vec<_>>().join(", ");
            let unique =
                "ALTER TABLE matrix_sdk.accounts DROP CONSTRAINT IF EXISTS accounts_name_key";
            client.batch_execute(unique).await.unwrap();
            let sql = format!(
                "UPDATE matrix_sdk.accounts a SET {set}
                 FROM matrix_sdk.accounts o WHERE o.id <> a.id"
            );
            assert_eq!(client.execute(&sql, &[]).await.unwrap(), 2);
        };
        // Exchanging names equals exchanging ciphers and numbers; exchanging numbers equals the other two.
        for columns in ["cipher", "name"] {
            exchange(columns).await;
            for name in ["alice", "bob"] {
                let error = open(name).await.unwrap_err();
                assert_matches!(
                    &error,
                    OpenStoreError::ForeignCipher { account } if account == name,
                    "{mode:?} {columns}"
                );
            }
            exchange(columns).await;
            assert_complete(&open("alice").await.unwrap(), &fixture).await;
        }
        exchange("cipher, name").await;
        for name in ["alice", "bob"] {
            let error = open(name).await.unwrap().load_account().await.unwrap_err();
            assert_matches!(error, Error::CorruptRow { .. }, "{mode:?}");
        }
    }
}
