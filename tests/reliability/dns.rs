//! A host name whose address changes.

use std::fs;

use matrix_sdk_postgres::testing::PostgresServer;
use test_support::{
    Mode,
    child_process::{self, ChildProcess},
    directory::Directory,
    figure,
    privileges::has_privileges_for,
    proxy::Proxy,
    stream::Ledger,
};
use tokio::task::block_in_place;

const NAME: &str = "database.test";

/// Runs in the child process: saves and reports acknowledged saves, in a mount name space in which the parent
/// controls the hosts file.
async fn save_until_killed(url: &str) {
    let store = Mode::Plain.open(url, "bot").await;
    let mut ledger = Ledger::default();
    loop {
        ledger.save(&store).await.unwrap();
        child_process::send(ledger.begun - 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_name_that_moves_is_followed() {
    if let Some(url) = child_process::task() {
        return save_until_killed(&url).await;
    }
    if !has_privileges_for("a host name that moves") {
        return;
    }
    let server = PostgresServer::builder().setting("synchronous_commit", "on").start().unwrap();
    let address = format!("127.0.0.1:{}", server.port());
    let first = Proxy::listen("127.0.0.2:0", address.clone());
    let second = Proxy::listen(&format!("127.0.0.3:{}", first.port()), address.clone());
    let url = server.url().replace(&address, &format!("{NAME}:{}", first.port()));

    let directory = Directory::new();
    fs::create_dir(&directory.0).unwrap();
    let hosts = directory.0.join("hosts");
    let leads_to = |address: &str| fs::write(&hosts, format!("{address} {NAME}\n")).unwrap();
    leads_to("127.0.0.2");
    let bind = format!(r#"mount --bind {} /etc/hosts && exec "$@""#, hosts.display());
    let test = "dns::a_host_name_that_moves_is_followed";
    let mut ledger = Ledger::default();
    block_in_place(|| {
        let mut child = ChildProcess::start_wrapped(
            &["unshare", "--mount", "sh", "-c", &bind, "sh"],
            test,
            &url,
        );
        let mut hear = |count: usize| {
            for _ in 0..count {
                let number = child.receive().expect("the child ended without an acknowledged save");
                ledger.acknowledged.insert(number.parse().unwrap());
            }
        };
        for _ in 0..3 {
            hear(50);
            leads_to("127.0.0.3");
            first.refuse(true);
            second.refuse(false);
            hear(50);
            leads_to("127.0.0.2");
            first.refuse(false);
            second.refuse(true);
        }
        hear(50);
        ledger.acknowledged.extend(child.kill().iter().map(|it| it.parse::<u64>().unwrap()));
    });
    ledger.begun = ledger.acknowledged.last().unwrap() + 2;
    let checked = ledger.check(&Mode::Plain.open_read_only(&server.url(), "bot").await).await;
    figure("host name moved to another address 6 times; acknowledged saves checked", checked);
}
