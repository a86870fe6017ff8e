//! A network partition, in network name spaces: the isolated owner returns an error, a standby takes over, and the
//! old owner is fenced when the link returns. Needs root.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{
    PoolSettings, PostgresCryptoStore, PostgresStoreConfig, Timeouts, testing::PostgresServer,
};
use test_support::{
    Mode,
    child_process::{self, ChildProcess},
    eventually, figure,
    privileges::{has_privileges_for, run},
    proxy::Proxy,
};
use tokio::task::block_in_place;

const TEST: &str = "partition::a_cut_owner_gives_up_and_is_fenced";
const NEW_NETWORK: [&str; 2] = ["unshare", "--net"];

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_owner_gives_up_and_is_fenced() {
    match child_process::task().as_deref() {
        None if has_privileges_for("a network partition") => {
            let mut database_side =
                ChildProcess::start_wrapped(&NEW_NETWORK, TEST, "database_side");
            let mut lines = Vec::new();
            block_in_place(|| lines.extend(std::iter::from_fn(|| database_side.receive())));
            assert_eq!(lines.pop().as_deref(), Some("done"));
            for line in lines {
                let (what, value) = line.split_once(": ").unwrap();
                figure(what, value);
            }
        }
        None => {}
        Some("database_side") => database_side().await,
        Some(task) => owner(task).await,
    }
}

/// The database's side of the network.
async fn database_side() {
    run("ip link set lo up");
    let server = PostgresServer::builder().setting("synchronous_commit", "on").start().unwrap();
    run("ip link add here type veth peer name there");
    run("ip addr add 10.77.0.1/24 dev here");
    run("ip link set here up");
    let proxy = Proxy::listen("10.77.0.1:0", format!("127.0.0.1:{}", server.port()));
    let url = server
        .url()
        .replace(&format!("127.0.0.1:{}", server.port()), &format!("10.77.0.1:{}", proxy.port()));
    let mut owner = ChildProcess::start_wrapped(&NEW_NETWORK, TEST, &url);
    let pid = owner.child.id();
    assert_eq!(block_in_place(|| owner.receive()).as_deref(), Some("started"));
    run(&format!("ip link set there netns {pid}"));
    let within = |command: &str| run(&format!("nsenter --target {pid} --net {command}"));
    within("ip addr add 10.77.0.2/24 dev there");
    within("ip link set there up");
    owner.child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    for _ in 0..20 {
        assert_eq!(block_in_place(|| owner.receive()).as_deref(), Some("saved"));
    }

    run("ip link set here down");
    let cut = Instant::now();
    let standby = Mode::Plain.open(&server.url(), "bot").await;
    standby.set_custom_value("key", b"the standby's".to_vec()).await.unwrap();
    let taken = cut.elapsed();
    assert!(
        taken < Duration::from_secs(20),
        "the takeover waited for the isolated owner: {taken:?}"
    );
    let last_line = block_in_place(|| {
        std::iter::from_fn(|| owner.receive())
            .find(|line| line != "saved")
            .expect("the isolated owner did not end")
    });
    assert!(last_line.starts_with("gave up"), "{last_line}");
    let gave_up = cut.elapsed();

    run("ip link set here up");
    let fenced = block_in_place(|| owner.receive()).unwrap();
    assert!(fenced.contains("was taken over"), "{fenced}");
    let value = standby.get_custom_value("key").await.unwrap().unwrap();
    assert_eq!(value, b"the standby's");
    standby.set_custom_value("key", b"still the standby's".to_vec()).await.unwrap();
    child_process::send(format!(
        "network cut: the standby has taken over and saved after: {taken:.1?}"
    ));
    child_process::send(format!("network cut: the old owner has given up after: {gave_up:.1?}"));
    child_process::send("done");
}

/// Runs in the owner's process.
async fn owner(url: &str) {
    child_process::send("started");
    let mut line = String::new();
    block_in_place(|| std::io::stdin().read_line(&mut line)).unwrap();
    let second = Duration::from_secs(1);
    let config = PostgresStoreConfig::new(url, "bot")
        .pool(PoolSettings { connect_timeout: Some(second), ..Default::default() })
        .timeouts(Timeouts { statement: second, retry: 3 * second, ..Default::default() });
    let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
    let error = loop {
        match store.set_custom_value("key", b"the old owner's".to_vec()).await {
            Ok(()) => child_process::send("saved"),
            Err(error) => break error,
        }
    };
    child_process::send(format!("gave up: {error:?}"));
    // It tries to reopen, and is refused.
    eventually("the old owner is fenced", || async {
        match store.reopen().await {
            Ok(()) => panic!("the superseded owner took the account back"),
            Err(error) => {
                let text = format!("{error:?}");
                let superseded = text.contains("was taken over");
                if superseded {
                    child_process::send(text);
                }
                superseded
            }
        }
    })
    .await;
}
