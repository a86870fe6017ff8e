//! Rule 27: the account of a process that was killed is free at once, where its end can be seen; that of a living
//! process never is. `process::tests` in the library has the cases that need another `/proc`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use assert_matches::assert_matches;
use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{
    OpenStoreError, OwnershipSettings, PostgresCryptoStore, PostgresStoreConfig, Takeover,
    testing::{self, TestDatabase},
};
use test_support::{
    Mode,
    child_process::{self, ChildProcess},
    connect, number,
    privileges::has_privileges_for,
    process,
    proxy::{Action, Proxy},
};
use tokio::task::block_in_place;

use super::{open, set};

/// Longer than any test: no heartbeat expires by itself.
const HOUR: Duration = Duration::from_secs(3_600);

const PASSPHRASE: &str = "a passphrase";

/// Waits for the former owner.
fn standby(url: &str) -> PostgresStoreConfig {
    config(url, Takeover::WaitUntilFree(HOUR), None)
}

fn refusing(url: &str) -> PostgresStoreConfig {
    config(url, Takeover::RefuseIfAlive, None)
}

fn config(url: &str, takeover: Takeover, instance: Option<&str>) -> PostgresStoreConfig {
    Mode::Plain.config(url, "bot").access(OwnershipSettings {
        takeover,
        heartbeat_interval: HOUR,
        instance: instance.map(str::to_owned),
        ..Default::default()
    })
}

/// Runs in a child process: opens the account of a task `takeover instance url`, where `-` is no instance and
/// `passphrase` an immediate takeover with one, and reports the result. Keeps the account until the process is killed.
async fn child(task: &str) {
    let mut words = task.splitn(3, ' ');
    let takeover = match words.next().unwrap() {
        "refuse" => Takeover::RefuseIfAlive,
        _ => Takeover::Immediate,
    };
    let instance = words.next().filter(|instance| *instance != "-");
    let config = config(words.next().unwrap(), takeover, instance);
    let passphrase = task.starts_with("passphrase ").then_some(PASSPHRASE);
    let opened = open(config.passphrase(passphrase)).await;
    child_process::send(match &opened {
        Ok(_) => "open".to_owned(),
        Err(error) => format!("refused: {error}"),
    });
    std::future::pending().await
}

/// Opens the account, and counts how often that reads the owner: once, unless it polls.
async fn open_and_count_reads(
    database: &TestDatabase,
    config: impl FnOnce(&str) -> PostgresStoreConfig,
) -> (PostgresCryptoStore, usize) {
    let (proxy, through) = Proxy::before(database);
    let reads = Arc::new(AtomicUsize::new(0));
    let counted = reads.clone();
    proxy.rule(move |message| {
        let name: &[u8] = b"account_owners.get";
        // Opening sends the statement without a name; with a name it is only prepared.
        let is_unnamed = message.tag == b'P' && message.body.first() == Some(&0);
        if is_unnamed && message.body.windows(name.len()).any(|part| part == name) {
            counted.fetch_add(1, SeqCst);
        }
        Action::Pass
    });
    let store = open(config(&through)).await.unwrap();
    (store, reads.load(SeqCst))
}

/// A child process of this test that has opened the account, or was refused.
fn start(test: &str, wrapper: &[&str], task: &str) -> (ChildProcess, String) {
    block_in_place(|| {
        let test = format!("ownership::process::{test}");
        let mut child = ChildProcess::start_wrapped(wrapper, &test, task);
        let answer = child.receive().expect("the child ended");
        (child, answer)
    })
}

fn owner(test: &str, task: &str) -> ChildProcess {
    let (child, answer) = start(test, &[], task);
    assert_eq!(answer, "open");
    child
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_is_not_waited_for() {
    if let Some(task) = child_process::task() {
        return child(&task).await;
    }
    let test = "a_killed_process_is_not_waited_for";
    let database = testing::database().unwrap();
    let url = database.url();
    let killed = owner(test, &format!("immediate - {url}"));
    assert_matches!(open(refusing(&url)).await, Err(OpenStoreError::OwnerAlive { .. }));
    block_in_place(|| killed.kill());

    let (store, reads) = open_and_count_reads(&database, standby).await;
    assert_eq!(reads, 1, "the standby has polled");
    let client = connect(&url).await;
    let alive = "SELECT count(*) FROM matrix_sdk.heartbeats WHERE alive_until > clock_timestamp()";
    assert_eq!(number(&client, alive).await, 2, "the heartbeat of the killed process");
    store.close().await.unwrap();
}

/// With a passphrase the owner is read while the key is derived.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_of_an_account_with_a_passphrase_is_not_waited_for() {
    if let Some(task) = child_process::task() {
        return child(&task).await;
    }
    let test = "a_killed_process_of_an_account_with_a_passphrase_is_not_waited_for";
    let database = testing::database().unwrap();
    let url = database.url();
    let killed = owner(test, &format!("passphrase - {url}"));
    block_in_place(|| killed.kill());
    let standby = |url: &str| standby(url).passphrase(Some(PASSPHRASE));
    let (store, reads) = open_and_count_reads(&database, standby).await;
    assert_eq!(reads, 1, "the standby has polled");
    store.close().await.unwrap();
}

/// Its parent has not called `wait`, so the process still has a number.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_is_not_waited_for_as_a_zombie() {
    if let Some(task) = child_process::task() {
        return child(&task).await;
    }
    let test = "a_killed_process_is_not_waited_for_as_a_zombie";
    let database = testing::database().unwrap();
    let url = database.url();
    let mut killed = owner(test, &format!("immediate - {url}"));
    killed.child.kill().unwrap();
    block_in_place(|| {
        while process::state(killed.child.id()) != Some('Z') {
            std::thread::yield_now();
        }
    });
    open(refusing(&url)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_living_process_is_waited_for() {
    if let Some(task) = child_process::task() {
        return child(&task).await;
    }
    let test = "a_living_process_is_waited_for";
    let database = testing::database().unwrap();
    let url = database.url();
    let living = owner(test, &format!("immediate - {url}"));
    let is_refused = async || {
        assert_matches!(open(refusing(&url)).await, Err(OpenStoreError::OwnerAlive { .. }));
    };
    is_refused().await;
    let stopped = process::Stopped::new(living.child.id());
    is_refused().await;
    drop(stopped);

    // What is not known of the process, or belongs to another machine, does not count as its end.
    let client = connect(&url).await;
    let change = async |change: &str| {
        let sql = format!("UPDATE matrix_sdk.heartbeats SET {change}");
        client.batch_execute(&sql).await.unwrap();
    };
    change("started = started - 1, host = sha256('another machine')").await;
    is_refused().await;
    change("host = NULL").await;
    is_refused().await;
    change("process = NULL").await;
    is_refused().await;
    drop(living);
}

/// The number of a process that has ended is given to another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_with_the_number_of_a_former_one_is_not_taken_for_it() {
    if let Some(task) = child_process::task() {
        return child(&task).await;
    }
    let test = "a_process_with_the_number_of_a_former_one_is_not_taken_for_it";
    let database = testing::database().unwrap();
    let url = database.url();
    let _living = owner(test, &format!("immediate - {url}"));
    let client = connect(&url).await;
    let earlier = "UPDATE matrix_sdk.heartbeats SET started = started - 1";
    client.batch_execute(earlier).await.unwrap();
    open(refusing(&url)).await.unwrap();
}

/// An opening by the process itself, or by its copy in a cloned machine: whatever `/proc` shows there.
#[tokio::test]
async fn the_same_random_id_is_alive() {
    let database = testing::database().unwrap();
    let url = database.url();
    let _store = open(refusing(&url)).await.unwrap();
    let client = connect(&url).await;
    let gone = "UPDATE matrix_sdk.heartbeats SET started = started - 1";
    client.batch_execute(gone).await.unwrap();
    assert_matches!(open(refusing(&url)).await, Err(OpenStoreError::OwnerAlive { .. }));
}

/// Two containers of one host: equal host name, boot id and process number.
#[tokio::test(flavor = "multi_thread")]
async fn processes_of_different_namespaces_never_take_from_one_another() {
    if let Some(task) = child_process::task() {
        return child(&task).await;
    }
    if !has_privileges_for("processes of equal number") {
        return;
    }
    let test = "processes_of_different_namespaces_never_take_from_one_another";
    let database = testing::database().unwrap();
    let url = database.url();
    let container = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let task = format!("refuse - {url}");
    let (first, answer) = start(test, &container, &task);
    assert_eq!(answer, "open");
    let client = connect(&url).await;
    let number_one =
        "SELECT count(*) FROM matrix_sdk.heartbeats WHERE pid = 1 AND host IS NOT NULL";
    assert_eq!(number(&client, number_one).await, 1);

    // In another container, in one that sees the host's processes, and outside.
    let outer_proc = ["unshare", "--pid", "--fork", "--kill-child"];
    for wrapper in [&container[..], &outer_proc[..], &[]] {
        let (_child, answer) = start(test, wrapper, &task);
        assert!(answer.starts_with("refused: "), "{wrapper:?}: {answer}");
    }
    // Killed: no container but its own could know, so its heartbeat decides.
    block_in_place(|| first.kill());
    let (_child, answer) = start(test, &container, &task);
    assert!(answer.starts_with("refused: "), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_does_not_wait_for_its_former_process() {
    if let Some(task) = child_process::task() {
        return child(&task).await;
    }
    let test = "an_instance_does_not_wait_for_its_former_process";
    let database = testing::database().unwrap();
    let url = database.url();
    let refusing = |instance| config(&url, Takeover::RefuseIfAlive, instance);
    let without = owner(test, &format!("immediate - {url}"));
    for instance in [None, Some("bot-0")] {
        let opened = open(refusing(instance)).await;
        assert_matches!(opened, Err(OpenStoreError::OwnerAlive { .. }), "{instance:?}");
    }
    drop(without);

    let _former = owner(test, &format!("immediate bot-0 {url}"));
    for instance in [None, Some("bot-1"), Some("bot")] {
        let opened = open(refusing(instance)).await;
        assert_matches!(opened, Err(OpenStoreError::OwnerAlive { .. }), "{instance:?}");
    }
    let standby = |url: &str| config(url, Takeover::WaitUntilFree(HOUR), Some("bot-0"));
    let (store, reads) = open_and_count_reads(&database, standby).await;
    assert_eq!(reads, 1, "the standby has polled");
    // The name is the newest owner's.
    store.close().await.unwrap();
    let _next = owner(test, &format!("refuse bot-1 {url}"));
    let opened = open(refusing(Some("bot-0"))).await;
    assert_matches!(opened, Err(OpenStoreError::OwnerAlive { .. }));
    open(refusing(Some("bot-1"))).await.unwrap();
}

/// Its name says nothing of an account that is opened twice in one process.
#[tokio::test]
async fn an_instance_does_not_take_from_its_own_process() {
    let database = testing::database().unwrap();
    let config = config(&database.url(), Takeover::RefuseIfAlive, Some("bot-0"));
    let first = open(config.clone()).await.unwrap();
    assert_matches!(open(config.clone()).await, Err(OpenStoreError::OwnerAlive { .. }));
    set(&first, b"still the owner").await.unwrap();
    first.close().await.unwrap();
    open(config).await.unwrap();
}
