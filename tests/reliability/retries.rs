//! An operation without a response in time is retried, even if `Timeouts::retry` is shorter than
//! `Timeouts::statement`, because it counts from the first failure.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use matrix_sdk_crypto::{CryptoStoreError, store::CryptoStore};
use matrix_sdk_postgres::{
    OwnershipSettings, PostgresCryptoStore, PostgresStoreConfig, Timeouts, testing::PostgresServer,
};
use test_support::{
    Mode,
    proxy::{Action, Message, Proxy},
    without_heartbeats,
};

use crate::commit::{is_begin, is_commit};

struct Environment {
    _server: PostgresServer,
    proxy: Proxy,
    config: PostgresStoreConfig,
}

impl Environment {
    fn new() -> Self {
        let server = PostgresServer::start().unwrap();
        let proxy = Proxy::start(format!("127.0.0.1:{}", server.port()));
        let url = proxy.url(&server.url(), server.port());
        let config = Mode::Plain
            .config(&url, "bot")
            .access(OwnershipSettings { cache_bytes: 0, ..without_heartbeats() })
            .timeouts(Timeouts {
                statement: Duration::from_secs(1),
                retry: Duration::from_millis(50),
                ..Default::default()
            });
        Self { _server: server, proxy, config }
    }

    async fn open(&self) -> PostgresCryptoStore {
        PostgresCryptoStore::open_with_config(&self.config).await.unwrap()
    }

    /// Runs `work` while the first message that matches gets no response.
    async fn unanswered<T>(
        &self,
        action: Action,
        matches: impl FnMut(&Message<'_>) -> bool + Send + 'static,
        work: impl Future<Output = T>,
    ) -> T {
        let done = self.proxy.once(matches, action);
        let result = work.await;
        assert!(done.load(SeqCst), "no message matched");
        result
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_without_a_response_in_time_are_retried() {
    let environment = Environment::new();
    let store = environment.unanswered(Action::BlackHole, is_begin, environment.open()).await;
    let value = || b"value".to_vec();
    // This COMMIT does not reach the server.
    let save = store.set_custom_value("key", value());
    environment.unanswered(Action::Hold, is_commit, save).await.unwrap();

    let read = store.get_custom_value("key");
    let read = environment.unanswered(Action::BlackHole, |message| message.runs(), read).await;
    assert_eq!(read.unwrap(), Some(value()));

    let within = store.atomically(async {
        store.set_custom_value("other", value()).await?;
        // The read sends the save.
        let read = store.get_custom_value("other");
        let read = environment.unanswered(Action::BlackHole, is_begin, read).await?;
        assert_eq!(read, Some(value()));
        Ok::<_, CryptoStoreError>(())
    });
    within.await.unwrap();
    assert_eq!(store.get_custom_value("other").await.unwrap(), Some(value()));
    assert_eq!(store.commit_count().await.unwrap(), 2);
}
