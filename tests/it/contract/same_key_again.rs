//! Rules 1, 2 and 3: a value saved again, or twice in one batch, is one row, and the newest wins.

use matrix_sdk_crypto::{
    DeviceData, LocalTrust,
    olm::{Account, SenderDataType},
    store::{
        CryptoStore,
        types::{Changes, DeviceChanges, SecretsInboxItem},
    },
};
use matrix_sdk_postgres::testing;
use ruma::device_id;
use test_support::{
    Mode, connect,
    fixture::{Fixture, SECRET, inbound_session, own_user, room, secret_name},
    number,
    reads::{assert_complete, tables},
};

const MODES: [Mode; 2] = [Mode::Plain, Mode::Key];

async fn rows(client: &tokio_postgres::Client, table: &str) -> i64 {
    number(client, &format!("SELECT count(*) FROM matrix_sdk.{table}")).await
}

#[tokio::test]
async fn everything_saved_again_is_one_row() {
    for mode in MODES {
        let database = testing::database().unwrap();
        let (store, client) =
            (mode.open(&database.url(), "bot").await, connect(&database.url()).await);
        let fixture = Fixture::new().await;
        fixture.fill(&store).await;
        let mut before = Vec::new();
        for table in tables(&client).await {
            before.push((rows(&client, &table).await, table));
        }
        store.save_changes(fixture.changes()).await.unwrap();
        fixture.fill(&store).await;
        for (count, table) in before {
            assert_eq!(rows(&client, &table).await, count, "{mode:?} {table}");
        }
        assert_complete(&store, &fixture).await;
    }
}

#[tokio::test]
async fn an_olm_session_saved_again_keeps_the_newest_ratchet() {
    for mode in MODES {
        let database = testing::database().unwrap();
        let store = mode.open(&database.url(), "bot").await;
        let fixture = Fixture::new().await;
        fixture.fill(&store).await;
        let stored = async || {
            let sender = fixture.olm_session.sender_key().to_base64();
            let sessions = store.get_sessions(&sender).await.unwrap().unwrap();
            assert_eq!(sessions.len(), 1, "{mode:?}");
            serde_json::to_value(sessions[0].pickle().await).unwrap()
        };
        let before = stored().await;

        let mut newer = fixture.olm_session.clone();
        newer.last_use_time = ruma::SecondsSinceUnixEpoch(1_u32.into());
        let sessions = vec![newer.clone()];
        store.save_changes(Changes { sessions, ..Default::default() }).await.unwrap();
        let after = stored().await;
        assert_ne!(before, after);
        assert_eq!(after, serde_json::to_value(newer.pickle().await).unwrap());
    }
}

#[tokio::test]
async fn an_outbound_session_saved_again_keeps_the_newest_index() {
    for mode in MODES {
        let database = testing::database().unwrap();
        let (store, client) =
            (mode.open(&database.url(), "bot").await, connect(&database.url()).await);
        let fixture = Fixture::new().await;
        fixture.fill(&store).await;
        let content = serde_json::from_value(serde_json::json!({ "body": "hello" })).unwrap();
        fixture.outbound.encrypt("m.room.message", &content).await;
        let outbound_group_sessions = vec![fixture.outbound.clone(), fixture.outbound.clone()];
        store
            .save_changes(Changes { outbound_group_sessions, ..Default::default() })
            .await
            .unwrap();
        let stored = store.get_outbound_group_session(room()).await.unwrap().unwrap();
        assert_eq!(stored.message_index().await, 1, "{mode:?}");
        assert_eq!(rows(&client, "megolm_outbound_sessions").await, 1);
    }
}

#[tokio::test]
async fn a_message_hash_saved_again_is_one_row() {
    for mode in MODES {
        let database = testing::database().unwrap();
        let (store, client) =
            (mode.open(&database.url(), "bot").await, connect(&database.url()).await);
        let fixture = Fixture::new().await;
        for _ in 0..2 {
            let message_hashes = vec![fixture.message_hash.clone(); 3];
            store.save_changes(Changes { message_hashes, ..Default::default() }).await.unwrap();
        }
        assert!(store.is_message_known(&fixture.message_hash).await.unwrap());
        assert_eq!(rows(&client, "message_hashes").await, 1, "{mode:?}");
    }
}

/// Rule 2: the sealed forms of one secret differ each time.
#[tokio::test]
async fn the_same_secret_twice_is_one_inbox_entry() {
    for mode in [Mode::Plain, Mode::Passphrase, Mode::Key] {
        let database = testing::database().unwrap();
        let store = mode.open(&database.url(), "bot").await;
        let item = |secret: &str| SecretsInboxItem {
            secret_name: secret_name(),
            secret: secret.to_owned().into(),
        };
        for secrets in [vec![item(SECRET), item(SECRET)], vec![item(SECRET)]] {
            store.save_changes(Changes { secrets, ..Default::default() }).await.unwrap();
        }
        let inbox = store.get_secrets_from_inbox(&secret_name()).await.unwrap();
        assert_eq!(inbox.len(), 1, "{mode:?}");
        assert_eq!(inbox[0].as_str(), SECRET);

        // Another secret of the same name is another entry.
        let secrets = vec![item("another")];
        store.save_changes(Changes { secrets, ..Default::default() }).await.unwrap();
        assert_eq!(store.get_secrets_from_inbox(&secret_name()).await.unwrap().len(), 2);
        store.delete_secrets_from_inbox(&secret_name()).await.unwrap();
        assert!(store.get_secrets_from_inbox(&secret_name()).await.unwrap().is_empty());
    }
}

/// The same device with another trust, to distinguish the two.
fn device(account: &Account, trust: LocalTrust) -> DeviceData {
    DeviceData::new(account.device_keys(), trust)
}

/// Rule 3: PostgreSQL refuses to update a row twice in one `ON CONFLICT` (SQLSTATE 21000).
#[tokio::test]
async fn a_device_both_new_and_changed_is_the_changed_one() {
    for mode in MODES {
        let database = testing::database().unwrap();
        let store = mode.open(&database.url(), "bot").await;
        let account = Account::with_device_id(own_user(), device_id!("TWICE"));
        let devices = DeviceChanges {
            new: vec![device(&account, LocalTrust::Unset), device(&account, LocalTrust::Ignored)],
            changed: vec![
                device(&account, LocalTrust::Verified),
                device(&account, LocalTrust::BlackListed),
            ],
            ..Default::default()
        };
        store.save_changes(Changes { devices, ..Default::default() }).await.unwrap();
        let stored = store.get_device(own_user(), device_id!("TWICE")).await.unwrap().unwrap();
        assert_eq!(stored.local_trust_state(), LocalTrust::BlackListed, "{mode:?}");
        assert_eq!(store.get_user_devices(own_user()).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_device_both_changed_and_deleted_is_gone() {
    for mode in MODES {
        let database = testing::database().unwrap();
        let store = mode.open(&database.url(), "bot").await;
        let account = Account::with_device_id(own_user(), device_id!("TWICE"));
        let of = |trust| vec![device(&account, trust)];
        let devices = DeviceChanges {
            new: of(LocalTrust::Unset),
            changed: of(LocalTrust::Verified),
            deleted: of(LocalTrust::Unset),
        };
        store.save_changes(Changes { devices, ..Default::default() }).await.unwrap();
        let stored = store.get_device(own_user(), device_id!("TWICE")).await.unwrap();
        assert!(stored.is_none(), "{mode:?}");
        assert!(store.get_user_devices(own_user()).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_room_key_twice_in_one_batch_is_the_last_one() {
    for mode in MODES {
        let database = testing::database().unwrap();
        let store = mode.open(&database.url(), "bot").await;
        let account = Account::with_device_id(own_user(), device_id!("DEVICE"));
        let first = inbound_session(&account, room(), SenderDataType::UnknownDevice);
        let mut last = first.clone();
        last.sender_data =
            inbound_session(&account, room(), SenderDataType::DeviceInfo).sender_data;
        store.save_inbound_group_sessions(vec![first, last.clone()], None).await.unwrap();
        let stored = store.get_inbound_group_session(room(), last.session_id()).await.unwrap();
        assert_eq!(stored.unwrap().sender_data_type(), SenderDataType::DeviceInfo, "{mode:?}");
        assert_eq!(store.inbound_group_session_counts(None).await.unwrap().total, 1);
    }
}
