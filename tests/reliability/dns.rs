//! A host name that moves to another address.

use std::fs;

use matrix_sdk_postgres::testing::PostgresServer;
use test_support::{
    Mode,
    again::{self, Again},
    directory::Directory,
    figure,
    privileges::may_try,
    proxy::Proxy,
    stream::{Ledger, observe},
};
use tokio::task::block_in_place;

const NAME: &str = "database.test";

/// The child's side: saves, and says what was acknowledged, in a mount namespace whose hosts file
/// is the parent's.
async fn save_until_killed(url: &str) {
    let store = Mode::Plain.open(url, "bot").await;
    let mut ledger = Ledger::default();
    loop {
        ledger.save(&store).await.unwrap();
        again::say(ledger.begun - 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_moves_is_followed() {
    if let Some(url) = again::task() {
        return save_until_killed(&url).await;
    }
    if !may_try("a host name that moves") {
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
    let test = "dns::a_name_that_moves_is_followed";
    let mut ledger = Ledger::default();
    block_in_place(|| {
        let mut child = Again::within(&["unshare", "--mount", "sh", "-c", &bind, "sh"], test, &url);
        let mut hear = |count: usize| {
            for _ in 0..count {
                let number = child.hear().expect("a save that is acknowledged");
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
    let checked = ledger.check(&observe(&server.url(), "bot").await).await;
    figure("host name moved to another address 6 times; acknowledged saves checked", checked);
}
