//! Rule 23: leases stand beside the writer lane: one that is taken while the outcome of a commit is being
//! resolved, which fences the lane, is granted once, and disturbs nothing.

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

use crate::commit::{Harmed, is_commit};

const KEY: &str = "lock";
const GENERATIONS: &str = "SELECT coalesce(sum(generation), 0)::bigint FROM matrix_sdk.lease_locks";

/// A store that takes leases while one of its commits is in doubt.
struct Doubtful {
    harmed: Harmed,
    store: PostgresCryptoStore,
    client: Client,
    commits: u64,
    /// The lane's last transaction, which the fence replaces.
    last: Vec<u8>,
}

impl Doubtful {
    /// One that waits so long for an answer.
    async fn new(limit: Duration) -> Self {
        let harmed = Harmed::new().await;
        let url = harmed.proxy.url(&harmed.database.url(), harmed.server.port());
        let config = Mode::Plain
            .config(&url, "bot")
            .timeouts(Timeouts { statement: limit, ..Default::default() });
        // A locked table must not keep a new connection from preparing its statements.
        let config = config
            .access(without_heartbeats())
            .pool(PoolSettings { prepared_statements: false, ..Default::default() });
        let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
        store.set_custom_value("key", b"before".to_vec()).await.unwrap();
        let (commits, client) = (store.commit_count().await.unwrap(), harmed.connect().await);
        let last = last_transaction(&client).await;
        Self { harmed, store, client, commits, last }
    }

    async fn take(&self, holder: &str) -> Result<Option<u64>, Error> {
        self.store.try_take_leased_lock(60_000, KEY, holder).await
    }

    async fn is_resolved(&self) -> bool {
        last_transaction(&self.client).await != self.last
    }

    /// The lease is ours with its first generation, the save was committed once, and writes go on.
    async fn check(&self) {
        assert_eq!(self.store.commit_count().await.unwrap(), self.commits + 1);
        assert_eq!(self.harmed.value("key").await.unwrap(), b"saved");
        assert_eq!(self.take("ours").await.unwrap(), Some(1), "the lease was lost");
        assert_eq!(self.take("other").await.unwrap(), None, "the lease was given away");
        assert_eq!(number(&self.client, GENERATIONS).await, 1);
        self.store.set_custom_value("key", b"later".to_vec()).await.unwrap();
        assert_eq!(self.store.commit_count().await.unwrap(), self.commits + 2);
    }
}

async fn last_transaction(client: &Client) -> Vec<u8> {
    let sql = "SELECT last_transaction FROM matrix_sdk.account_lanes";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// The lease has begun, and waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_the_resolving_overtakes_is_granted_once() {
    for is_extended in [false, true] {
        let doubtful = Arc::new(Doubtful::new(Duration::from_secs(60)).await);
        if is_extended {
            assert_eq!(doubtful.take("ours").await.unwrap(), Some(1));
        }
        let locking = doubtful.harmed.connect().await;
        locking.batch_execute("BEGIN; LOCK TABLE matrix_sdk.lease_locks").await.unwrap();
        let lease = tokio::spawn({
            let doubtful = doubtful.clone();
            async move { doubtful.take("ours").await }
        });
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        eventually("the lease waits", async || number(&doubtful.client, waiting).await == 1).await;
        let done = doubtful.harmed.proxy.once(is_commit, Action::CutAfter);
        doubtful.store.set_custom_value("key", b"saved".to_vec()).await.unwrap();
        assert!(done.load(SeqCst), "no commit was cut");
        assert!(doubtful.is_resolved().await);
        assert!(!lease.is_finished());
        locking.batch_execute("COMMIT").await.unwrap();
        let taken = lease.await.unwrap();
        assert_eq!(taken.unwrap(), Some(1), "extended: {is_extended}");
        doubtful.check().await;
    }
}

/// The lane is fenced, and the answer is not here yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_before_the_answer_of_the_resolving_is_granted_once() {
    let doubtful = Doubtful::new(Duration::from_secs(3)).await;
    let sent = Arc::new(AtomicUsize::new(0));
    let commits = sent.clone();
    doubtful.harmed.proxy.rule(move |message| {
        if !is_commit(message) {
            return Action::Pass;
        }
        match commits.fetch_add(1, SeqCst) {
            // The save's, and that of what is asked about it.
            0 => Action::CutBefore,
            1 => Action::BlackHole,
            _ => Action::Pass,
        }
    });
    let store = doubtful.store.clone();
    let save = tokio::spawn(async move { store.set_custom_value("key", b"saved".to_vec()).await });
    eventually("it is resolved", async || doubtful.is_resolved().await).await;
    assert_eq!(doubtful.take("ours").await.unwrap(), Some(1));
    assert!(sent.load(SeqCst) > 2, "nothing was kept back");
    save.await.unwrap().unwrap();
    doubtful.check().await;
}
