//! Upstream's suite on a store from which everything was pruned that can be.

use std::{collections::BTreeMap, time::Duration};

use matrix_sdk_crypto::store::{CryptoStore, types::Changes};
use matrix_sdk_postgres::{
    PostgresCryptoStore,
    admin::{self, PruneRules},
};
use test_support::{Mode, connect, fixture, fixture::Fixture, number, suite};

const PRUNED: [&str; 6] = [
    "message_hashes",
    "withheld_sessions",
    "key_requests",
    "olm_sessions",
    "megolm_outbound_sessions",
    "megolm_inbound_sessions",
];

fn rules(age: Duration) -> PruneRules {
    PruneRules {
        message_hashes: Some(age),
        withheld_sessions: Some(age),
        sent_requests: Some(age),
        gone_devices: Some(age),
        expired_outbound_sessions: Some(age),
        room_keys: Some(age),
    }
}

/// Of each table that is pruned, a row that is to go.
async fn fill(store: &PostgresCryptoStore, url: &str) {
    let fixture = Fixture::new().await;
    fixture.outbound.invalidate_session();
    let changes = fixture.changes();
    let changes = Changes {
        sessions: changes.sessions,
        message_hashes: changes.message_hashes,
        inbound_group_sessions: changes.inbound_group_sessions,
        outbound_group_sessions: changes.outbound_group_sessions,
        key_requests: vec![fixture::key_request(
            "an-old-request",
            fixture::secret_name().into(),
            true,
        )],
        withheld_session_info: BTreeMap::from_iter(changes.withheld_session_info),
        ..Default::default()
    };
    store.save_changes(changes).await.unwrap();
    let client = connect(url).await;
    for table in PRUNED.iter().filter(|table| **table != "megolm_outbound_sessions") {
        let sql = format!("UPDATE matrix_sdk.{table} SET created_at = now() - interval '1 year'");
        assert_eq!(client.execute(&sql, &[]).await.unwrap(), 1, "{table}");
    }
}

async fn open(name: &str, passphrase: Option<&str>, clear_data: bool) -> PostgresCryptoStore {
    let (url, is_new) = suite::database(format!("pruned {name}"), clear_data).await;
    let config = Mode::Key.config(&url, "upstream");
    let config = if passphrase.is_some() { config.passphrase(passphrase) } else { config };
    let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
    if is_new {
        fill(&store, &url).await;
        // The session to send with was made in this second.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        admin::prune(&config, &rules(Duration::ZERO)).await.unwrap();
        let client = connect(&url).await;
        for table in PRUNED {
            let sql = format!("SELECT count(*) FROM matrix_sdk.{table}");
            assert_eq!(number(&client, &sql).await, 0, "{table}");
        }
    } else {
        // What the suite has just saved is not old.
        admin::prune(&config, &rules(Duration::from_secs(24 * 3600))).await.unwrap();
    }
    store
}

async fn get_store(name: &str, passphrase: Option<&str>, clear_data: bool) -> PostgresCryptoStore {
    open(name, passphrase, clear_data).await
}

matrix_sdk_crypto::cryptostore_integration_tests!();
