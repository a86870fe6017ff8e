//! Failover: the primary is killed and the standby promoted while a bot is busy.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{PostgresCryptoStore, PostgresStoreConfig};
use tokio::task::block_in_place;

use crate::{
    common::{connect, number},
    support::{
        cluster::Cluster,
        eventually, figure, milliseconds,
        proxy::FaultProxy,
        rounds, seeded,
        stream::{observe, stream},
    },
};

async fn open(url: &str) -> PostgresCryptoStore {
    let config = PostgresStoreConfig::new(url, "bot").statement_timeout(Duration::from_secs(2));
    PostgresCryptoStore::open_with_config(&config).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_has_all_that_was_acknowledged_and_the_bot_goes_on() {
    let mut rng = seeded("failover");
    let (mut checked, mut slowest) = (0, Duration::ZERO);
    let failovers = rounds(1, 10);
    for _ in 0..failovers {
        let mut cluster = Cluster::start().await;
        let store = open(&cluster.url()).await;
        let end = Arc::new(AtomicBool::new(false));
        let (saves, count) = stream(&store, &end);
        eventually("the bot is busy", || async { count.load(SeqCst) > 20 }).await;
        let pause = milliseconds(&mut rng, 300);
        block_in_place(|| {
            std::thread::sleep(pause);
            cluster.primary.kill();
        });
        let standby = connect(&cluster.url_of(&cluster.standby)).await;
        standby.batch_execute("SELECT pg_promote(false)").await.unwrap();
        let writable = "SELECT count(*) WHERE NOT pg_is_in_recovery()";
        while number(&standby, writable).await == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (promoted, before) = (Instant::now(), count.load(SeqCst));
        while count.load(SeqCst) == before {
            assert!(promoted.elapsed() < Duration::from_secs(60), "the bot does not go on");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        slowest = slowest.max(promoted.elapsed());
        eventually("the bot is busy again", || async { count.load(SeqCst) > before + 20 }).await;
        end.store(true, SeqCst);
        let ledger = saves.await.unwrap();
        checked += ledger.check(&observe(&cluster.url_of(&cluster.standby), "bot").await).await;
        ledger.assert_no_error();
    }
    figure("failovers to a synchronous standby", failovers);
    figure("acknowledged saves checked after it", checked);
    figure("from promotion to the next acknowledged save, at most", format!("{slowest:.1?}"));
}

/// As behind a pooler or a moved address: the connections that are there lead to a node that only
/// reads.
#[tokio::test(flavor = "multi_thread")]
async fn connections_to_a_read_only_node_are_discarded() {
    let cluster = Cluster::start().await;
    let address = |server: &matrix_sdk_postgres::testing::PostgresServer| {
        format!("127.0.0.1:{}", server.port())
    };
    let proxy = FaultProxy::start(address(&cluster.primary));
    let url = proxy.url(&cluster.url_of(&cluster.primary), cluster.primary.port());
    let store = open(&format!("{url}?target_session_attrs=any")).await;
    store.set_custom_value("key", b"old".to_vec()).await.unwrap();

    proxy.lead_to(address(&cluster.standby));
    proxy.cut_all();
    let write = tokio::spawn({
        let store = store.clone();
        async move { store.set_custom_value("key", b"new".to_vec()).await }
    });
    let reader = connect(&cluster.url_of(&cluster.standby)).await;
    let ours =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'matrix-sdk-postgres'";
    eventually("the store asks the standby", || async { number(&reader, ours).await > 0 }).await;
    assert!(!write.is_finished());
    // Nothing is cut: what leads to the standby goes on leading there.
    proxy.lead_to(address(&cluster.primary));
    write.await.unwrap().unwrap();
    eventually("no connection to it is kept", || async { number(&reader, ours).await == 0 }).await;
    let other = observe(&cluster.url_of(&cluster.primary), "bot").await;
    assert_eq!(other.get_custom_value("key").await.unwrap().unwrap(), b"new");
}
