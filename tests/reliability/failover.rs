//! Failover: the primary is killed and the standby promoted while a bot saves.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{
    PostgresCryptoStore, PostgresStoreConfig, Timeouts, testing::PostgresServer,
};
use ruma::user_id;
use test_support::{
    Mode,
    cluster::Cluster,
    connect, eventually, figure, milliseconds, number,
    proxy::{Action, Proxy},
    rounds, seeded,
    stream::stream,
    without_heartbeats,
};
use tokio::task::block_in_place;

use crate::commit::is_begin;

const HOUR: Duration = Duration::from_secs(3600);

async fn open(url: &str) -> PostgresCryptoStore {
    let config = PostgresStoreConfig::new(url, "bot")
        .timeouts(Timeouts { statement: Duration::from_secs(2), ..Default::default() });
    PostgresCryptoStore::open_with_config(&config).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_has_all_acknowledged_saves_and_the_bot_continues() {
    let mut rng = seeded("failover");
    let (mut checked, mut slowest) = (0, Duration::ZERO);
    let failovers = rounds(1, 10);
    for _ in 0..failovers {
        let mut cluster = Cluster::start().await;
        let store = open(&cluster.url()).await;
        let end = Arc::new(AtomicBool::new(false));
        let (saves, count) = stream(&store, &end);
        eventually("the bot saves", || async { count.load(SeqCst) > 20 }).await;
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
            assert!(promoted.elapsed() < Duration::from_secs(60), "no save succeeds again");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        slowest = slowest.max(promoted.elapsed());
        eventually("the bot saves again", || async { count.load(SeqCst) > before + 20 }).await;
        end.store(true, SeqCst);
        let ledger = saves.await.unwrap();
        checked += ledger
            .check(&Mode::Plain.open_read_only(&cluster.url_of(&cluster.standby), "bot").await)
            .await;
        ledger.assert_no_error();
    }
    figure("failovers to a synchronous standby", failovers);
    figure("acknowledged saves checked after it", checked);
    figure("from promotion to the next acknowledged save, at most", format!("{slowest:.1?}"));
}

/// As behind a pooler or a changed address: existing connections lead to a read-only node.
#[tokio::test(flavor = "multi_thread")]
async fn connections_to_a_read_only_node_are_discarded() {
    let cluster = Cluster::start().await;
    let address = |server: &PostgresServer| format!("127.0.0.1:{}", server.port());
    let proxy = Proxy::start(address(&cluster.primary));
    let url = proxy.url(&cluster.url_of(&cluster.primary), cluster.primary.port());
    let store = open(&format!("{url}?target_session_attrs=any")).await;
    store.set_custom_value("key", b"old".to_vec()).await.unwrap();

    proxy.redirect_to(address(&cluster.standby));
    proxy.cut_all();
    let write = tokio::spawn({
        let store = store.clone();
        async move { store.set_custom_value("key", b"new".to_vec()).await }
    });
    let reader = connect(&cluster.url_of(&cluster.standby)).await;
    let ours =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'matrix-sdk-postgres%'";
    eventually("the store is connected to the standby", || async {
        number(&reader, ours).await > 0
    })
    .await;
    assert!(!write.is_finished());
    // Existing connections stay open, and lead to the standby.
    proxy.redirect_to(address(&cluster.primary));
    write.await.unwrap().unwrap();
    eventually("all connections to it are closed", || async { number(&reader, ours).await == 0 })
        .await;
    let other = Mode::Plain.open_read_only(&cluster.url_of(&cluster.primary), "bot").await;
    assert_eq!(other.get_custom_value("key").await.unwrap().unwrap(), b"new");
}

/// A save of unchanged rows checks the ownership. The state of a lagging standby, to which the connection leads,
/// must not be used for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_lagging_standby_is_not_taken_for_a_rolled_back_database() {
    let cluster = Cluster::start().await;
    let address = |server: &PostgresServer| format!("127.0.0.1:{}", server.port());
    let proxy = Proxy::start(address(&cluster.primary));
    let url = proxy.url(&cluster.url_of(&cluster.primary), cluster.primary.port());
    let url = format!("{url}?target_session_attrs=any");
    // Without heartbeats, which would query the standby.
    let config = PostgresStoreConfig::new(&url, "bot").access(without_heartbeats());
    let config = config.timeouts(Timeouts {
        statement: Duration::from_secs(2),
        retry: HOUR,
        ..Default::default()
    });
    let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
    let users = [(user_id!("@bob:example.org"), true)];
    store.save_tracked_users(&users).await.unwrap();
    // Reading makes the row known, so that saving it is a no-op.
    store.load_tracked_users().await.unwrap();

    let reader = connect(&cluster.url_of(&cluster.standby)).await;
    let commits = "SELECT max(commits) FROM matrix_sdk.account_lanes";
    let primary = connect(&cluster.url_of(&cluster.primary)).await;
    let known = number(&primary, commits).await;
    // Until it has replayed the migrations, the table does not exist there.
    let replayed = async || {
        let row = reader.query_one(commits, &[]).await;
        row.is_ok_and(|row| row.get::<_, Option<i64>>(0) == Some(known))
    };
    eventually("it has replayed that", replayed).await;
    reader.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
    let paused = "SELECT count(*) WHERE pg_get_wal_replay_pause_state() = 'paused'";
    eventually("the standby lags", || async { number(&reader, paused).await == 1 }).await;
    store.set_custom_value("key", b"new".to_vec()).await.unwrap();
    assert_eq!(number(&primary, commits).await, known + 1);
    assert_eq!(number(&reader, commits).await, known);

    proxy.redirect_to(address(&cluster.standby));
    proxy.cut_all();
    let checks = Arc::new(AtomicUsize::new(0));
    let count = checks.clone();
    proxy.rule(move |message| {
        count.fetch_add(usize::from(is_begin(message)), SeqCst);
        Action::Pass
    });
    let save = tokio::spawn({
        let store = store.clone();
        async move { store.save_tracked_users(&users).await }
    });
    // A second query follows a refused first one.
    let refused = async || save.is_finished() || checks.load(SeqCst) > 1;
    eventually("the standby has refused the check", refused).await;
    assert!(!save.is_finished(), "the check was made on the lagging standby");
    proxy.redirect_to(address(&cluster.primary));
    save.await.unwrap().unwrap();
    assert_eq!(number(&primary, commits).await, known + 1, "the save was no commit");
    store.set_custom_value("key", b"newer".to_vec()).await.unwrap();
}
