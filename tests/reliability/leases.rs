//! Rule 23: leases do not use the writer lane. A lease taken while a commit of unknown outcome is resolved, which
//! fences the lane, is granted once and does not disturb the lane.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{Error, PoolSettings, PostgresCryptoStore, Timeouts};
use test_support::{Mode, eventually, number, proxy::Action, without_heartbeats};
use tokio_postgres::Client;

use crate::commit::{ProxiedStore, is_commit};

const KEY: &str = "lock";
const GENERATIONS: &str = "SELECT coalesce(sum(generation), 0)::bigint FROM matrix_sdk.lease_locks";

/// A store that takes leases while one of its commits has an unknown outcome.
struct UnresolvedCommit {
    proxied: ProxiedStore,
    store: PostgresCryptoStore,
    client: Client,
    commits: u64,
    /// The lane's last transaction, which the fence replaces.
    last: Vec<u8>,
}

impl UnresolvedCommit {
    /// `limit`: the store's time limit for a response.
    async fn new(limit: Duration) -> Self {
        let proxied = ProxiedStore::new().await;
        let url = proxied.proxy.url(&proxied.database.url(), proxied.server.port());
        let config = Mode::Plain
            .config(&url, "bot")
            .timeouts(Timeouts { statement: limit, ..Default::default() });
        // Unnamed statements, because a locked table would block a new connection that prepares them.
        let config = config
            .access(without_heartbeats())
            .pool(PoolSettings { prepared_statements: false, ..Default::default() });
        let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
        store.set_custom_value("key", b"before".to_vec()).await.unwrap();
        let (commits, client) = (store.commit_count().await.unwrap(), proxied.connect().await);
        let last = last_transaction(&client).await;
        Self { proxied, store, client, commits, last }
    }

    async fn take(&self, holder: &str) -> Result<Option<u64>, Error> {
        self.store.try_take_leased_lock(60_000, KEY, holder).await
    }

    async fn is_resolved(&self) -> bool {
        last_transaction(&self.client).await != self.last
    }

    /// Asserts that the lease has its first generation, the save was committed once, and writes continue.
    async fn check(&self) {
        assert_eq!(self.store.commit_count().await.unwrap(), self.commits + 1);
        assert_eq!(self.proxied.value("key").await.unwrap(), b"saved");
        assert_eq!(self.take("ours").await.unwrap(), Some(1), "the lease was lost");
        assert_eq!(
            self.take("other").await.unwrap(),
            None,
            "the lease was granted to another holder"
        );
        assert_eq!(number(&self.client, GENERATIONS).await, 1);
        self.store.set_custom_value("key", b"later".to_vec()).await.unwrap();
        assert_eq!(self.store.commit_count().await.unwrap(), self.commits + 2);
    }
}

async fn last_transaction(client: &Client) -> Vec<u8> {
    let sql = "SELECT last_transaction FROM matrix_sdk.account_lanes";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// The lease has begun, and waits for a lock.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_overtaken_by_the_fence_is_granted_once() {
    for is_extended in [false, true] {
        let unresolved = Arc::new(UnresolvedCommit::new(Duration::from_secs(60)).await);
        if is_extended {
            assert_eq!(unresolved.take("ours").await.unwrap(), Some(1));
        }
        let locking = unresolved.proxied.connect().await;
        locking.batch_execute("BEGIN; LOCK TABLE matrix_sdk.lease_locks").await.unwrap();
        let lease = tokio::spawn({
            let unresolved = unresolved.clone();
            async move { unresolved.take("ours").await }
        });
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        eventually("the lease waits", async || number(&unresolved.client, waiting).await == 1)
            .await;
        let done = unresolved.proxied.proxy.once(is_commit, Action::CutAfter);
        unresolved.store.set_custom_value("key", b"saved".to_vec()).await.unwrap();
        assert!(done.load(SeqCst), "no commit was cut");
        assert!(unresolved.is_resolved().await);
        assert!(!lease.is_finished());
        locking.batch_execute("COMMIT").await.unwrap();
        let taken = lease.await.unwrap();
        assert_eq!(taken.unwrap(), Some(1), "extended: {is_extended}");
        unresolved.check().await;
    }
}

/// The lane is fenced, and the response has not arrived yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_taken_before_the_response_to_the_fence_is_granted_once() {
    let unresolved = UnresolvedCommit::new(Duration::from_secs(3)).await;
    let sent = Arc::new(AtomicUsize::new(0));
    let commits = sent.clone();
    unresolved.proxied.proxy.rule(move |message| {
        if !is_commit(message) {
            return Action::Pass;
        }
        match commits.fetch_add(1, SeqCst) {
            // The messages of the save and of its resolution.
            0 => Action::CutBefore,
            1 => Action::BlackHole,
            _ => Action::Pass,
        }
    });
    let store = unresolved.store.clone();
    let save = tokio::spawn(async move { store.set_custom_value("key", b"saved".to_vec()).await });
    eventually("the outcome is resolved", async || unresolved.is_resolved().await).await;
    assert_eq!(unresolved.take("ours").await.unwrap(), Some(1));
    assert!(sent.load(SeqCst) > 2, "no message was held");
    save.await.unwrap().unwrap();
    unresolved.check().await;
}
