//! Rule 13: a request for the same secret replaces the older one.

use matrix_sdk_crypto::{
    GossipRequest, SecretInfo,
    store::{CryptoStore, types::Changes},
};
use matrix_sdk_postgres::{PostgresCryptoStore, testing};
use ruma::{OwnedTransactionId, events::secret::request::SecretName};
use test_support::{Mode, connect, fixture::key_request, number};

const MODES: [Mode; 2] = [Mode::Plain, Mode::Key];

fn recovery_key() -> SecretInfo {
    SecretName::RecoveryKey.into()
}

fn master_key() -> SecretInfo {
    SecretName::CrossSigningMasterKey.into()
}

async fn save(store: &PostgresCryptoStore, key_requests: Vec<GossipRequest>) {
    store.save_changes(Changes { key_requests, ..Default::default() }).await.unwrap();
}

async fn by_id(store: &PostgresCryptoStore, id: &str) -> Option<GossipRequest> {
    store.get_outgoing_secret_requests(&OwnedTransactionId::from(id)).await.unwrap()
}

async fn id_by_info(store: &PostgresCryptoStore, info: &SecretInfo) -> Option<String> {
    let request = store.get_secret_request_by_info(info).await.unwrap();
    request.map(|request| request.request_id.to_string())
}

#[tokio::test]
async fn a_request_for_the_same_secret_replaces_the_older_one() {
    for mode in MODES {
        let database = testing::database().unwrap();
        let store = mode.open(&database.url(), "bot").await;
        save(
            &store,
            vec![
                key_request("first", recovery_key(), false),
                key_request("msk", master_key(), false),
            ],
        )
        .await;
        save(&store, vec![key_request("second", recovery_key(), false)]).await;
        assert!(by_id(&store, "first").await.is_none(), "{mode:?}");
        assert!(by_id(&store, "second").await.is_some());
        assert!(by_id(&store, "msk").await.is_some());
        assert_eq!(id_by_info(&store, &recovery_key()).await.as_deref(), Some("second"));
        assert_eq!(id_by_info(&store, &master_key()).await.as_deref(), Some("msk"));
        assert_eq!(store.get_unsent_secret_requests().await.unwrap().len(), 2);
    }
}

#[tokio::test]
async fn of_two_requests_for_the_same_secret_in_one_batch_the_last_stays() {
    for mode in MODES {
        let database = testing::database().unwrap();
        let (store, client) =
            (mode.open(&database.url(), "bot").await, connect(&database.url()).await);
        save(&store, vec![key_request("oldest", recovery_key(), false)]).await;
        let requests =
            ["z", "a", "m"].map(|id| key_request(id, recovery_key(), false)).into_iter().collect();
        save(&store, requests).await;
        assert_eq!(id_by_info(&store, &recovery_key()).await.as_deref(), Some("m"), "{mode:?}");
        let count = "SELECT count(*) FROM matrix_sdk.key_requests";
        assert_eq!(number(&client, count).await, 1);
    }
}

#[tokio::test]
async fn the_same_request_saved_again_is_one_row_and_the_newest_wins() {
    for mode in MODES {
        let database = testing::database().unwrap();
        let store = mode.open(&database.url(), "bot").await;
        save(&store, vec![key_request("id", recovery_key(), false)]).await;
        assert_eq!(store.get_unsent_secret_requests().await.unwrap().len(), 1);
        save(&store, vec![key_request("id", recovery_key(), true)]).await;
        assert!(by_id(&store, "id").await.unwrap().sent_out, "{mode:?}");
        assert!(store.get_unsent_secret_requests().await.unwrap().is_empty());
        // The same id with another secret replaces the older request.
        save(&store, vec![key_request("id", master_key(), false)]).await;
        assert_eq!(id_by_info(&store, &recovery_key()).await, None);
        assert_eq!(id_by_info(&store, &master_key()).await.as_deref(), Some("id"));
    }
}

#[tokio::test]
async fn a_request_is_deleted_by_its_id() {
    for mode in MODES {
        let database = testing::database().unwrap();
        let store = mode.open(&database.url(), "bot").await;
        save(
            &store,
            vec![
                key_request("one", recovery_key(), false),
                key_request("other", master_key(), true),
            ],
        )
        .await;
        store.delete_outgoing_secret_requests(&OwnedTransactionId::from("one")).await.unwrap();
        store.delete_outgoing_secret_requests(&OwnedTransactionId::from("nobody's")).await.unwrap();
        assert!(by_id(&store, "one").await.is_none(), "{mode:?}");
        assert_eq!(id_by_info(&store, &recovery_key()).await, None);
        assert_eq!(id_by_info(&store, &master_key()).await.as_deref(), Some("other"));
    }
}
