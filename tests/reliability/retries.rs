//! What is not answered in time is tried again, however short the time for retries is beside it: that
//! counts from the first failure.

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

struct World {
    _server: PostgresServer,
    proxy: Proxy,
    config: PostgresStoreConfig,
}

impl World {
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

    /// Does `work` while the first message for which `matches` holds gets no answer.
    async fn unanswered<T>(
        &self,
        action: Action,
        matches: impl FnMut(&Message<'_>) -> bool + Send + 'static,
        work: impl Future<Output = T>,
    ) -> T {
        let done = self.proxy.once(matches, action);
        let result = work.await;
        assert!(done.load(SeqCst), "nothing went unanswered");
        result
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_answered_in_time_is_tried_again() {
    let world = World::new();
    let store = world.unanswered(Action::BlackHole, is_begin, world.open()).await;
    let value = || b"value".to_vec();
    // The server does not get to see this COMMIT.
    let save = store.set_custom_value("key", value());
    world.unanswered(Action::Hold, is_commit, save).await.unwrap();

    let read = store.get_custom_value("key");
    let read = world.unanswered(Action::BlackHole, |message| message.runs(), read).await;
    assert_eq!(read.unwrap(), Some(value()));

    let within = store.atomically(async {
        store.set_custom_value("other", value()).await?;
        // The save goes to the server with the read.
        let read = store.get_custom_value("other");
        let read = world.unanswered(Action::BlackHole, is_begin, read).await?;
        assert_eq!(read, Some(value()));
        Ok::<_, CryptoStoreError>(())
    });
    within.await.unwrap();
    assert_eq!(store.get_custom_value("other").await.unwrap(), Some(value()));
    assert_eq!(store.commit_count().await.unwrap(), 2);
}
