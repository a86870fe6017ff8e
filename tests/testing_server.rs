//! The throwaway PostgreSQL that all other tests stand on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use assert_matches::assert_matches;
use common::{connect, number};
use matrix_sdk_postgres::testing::{self, PostgresServer, TestingError};

/// A directory that whoever runs PostgreSQL can enter, removed at the end.
struct Directory(std::path::PathBuf);

impl Directory {
    fn new() -> Self {
        let name = format!("mxsp-test-{}-{:?}", std::process::id(), std::thread::current().id());
        Self(std::env::temp_dir().join(name.replace(['(', ')'], "-")))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn is_alive(pid: u32) -> bool {
    // A process that ended and was not waited for is still listed, as a zombie.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}

#[tokio::test]
async fn databases_are_independent_and_gone_after_use() {
    let server = PostgresServer::start().unwrap();
    let (first, second) = (server.create_database().unwrap(), server.create_database().unwrap());
    let client = connect(&first.url()).await;
    client.batch_execute("CREATE TABLE only_here ()").await.unwrap();
    let other = connect(&second.socket_url()).await;
    assert!(other.batch_execute("SELECT FROM only_here").await.is_err());
    let encoding =
        "SELECT count(*) FROM pg_database WHERE encoding = 6 AND datname = current_database()";
    assert_eq!(number(&other, encoding).await, 1);
    drop((first, second, client, other));
    let client = connect(&server.url()).await;
    let left = "SELECT count(*) FROM pg_database WHERE datname LIKE 'mxsp%'";
    assert_eq!(number(&client, left).await, 0);
}

#[tokio::test]
async fn the_shared_server_gives_each_test_its_own_database() {
    let (first, second) = (testing::database().unwrap(), testing::database().unwrap());
    assert_ne!(first.name(), second.name());
    for database in [&first, &second] {
        let client = connect(&database.url()).await;
        assert_eq!(
            number(&client, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").await,
            0
        );
    }
}

#[tokio::test]
async fn data_survive_a_stop_and_a_kill_and_a_second_owner() {
    let directory = Directory::new();
    let builder = PostgresServer::builder().data_directory(&directory.0).durable(true);
    let mut server = builder.clone().start().unwrap();
    connect(&server.url())
        .await
        .batch_execute("CREATE TABLE kept (n int8); INSERT INTO kept VALUES (1)")
        .await
        .unwrap();
    let address = server.url();
    server.stop();
    assert_eq!(server.pid(), None);
    server.start_again().unwrap();
    assert_eq!(server.url(), address);
    connect(&address).await.batch_execute("INSERT INTO kept VALUES (2)").await.unwrap();
    server.kill();
    server.start_again().unwrap();
    assert_eq!(number(&connect(&address).await, "SELECT sum(n)::int8 FROM kept").await, 3);
    drop(server);

    let server = builder.start().unwrap();
    let client = connect(&server.url()).await;
    assert_eq!(number(&client, "SELECT sum(n)::int8 FROM kept").await, 3);
    assert_eq!(
        number(&client, "SELECT count(*) FROM pg_settings WHERE name = 'fsync' AND setting = 'on'")
            .await,
        1
    );
}

#[test]
fn a_directory_in_use_is_refused() {
    let directory = Directory::new();
    let builder = PostgresServer::builder().data_directory(&directory.0);
    let server = builder.clone().start().unwrap();
    assert_matches!(builder.start(), Err(TestingError::InUse { pid, .. }) => {
        assert_eq!(Some(pid), server.pid());
    });
}

#[test]
fn missing_binaries_are_an_error_with_the_install_line() {
    let started = PostgresServer::builder().bin_directory(std::env::temp_dir()).start();
    assert_matches!(started, Err(error @ TestingError::NoBinaries { .. }) => {
        assert!(error.to_string().contains("apt-get install postgresql"), "{error}");
    });
}

#[test]
fn a_setting_that_postgresql_refuses_is_reported_with_its_log() {
    let started = PostgresServer::builder().setting("no_such_setting", "1").start();
    assert_matches!(started, Err(TestingError::NotReady { log }) => {
        assert!(log.contains("no_such_setting"), "{log}");
    });
}

/// Runs this test again as a child process, which holds a server until it is killed.
#[test]
fn after_kill_9_of_the_owner_neither_process_nor_data_are_left() {
    const CHILD: &str = "TESTING_SERVER_CHILD";
    if std::env::var_os(CHILD).is_some() {
        let server = PostgresServer::start().unwrap();
        let home = server.data_directory();
        let (home, socket) = (home.parent().unwrap(), server.socket_directory());
        println!("\nserver {} {} {}", server.pid().unwrap(), home.display(), socket.display());
        loop {
            sleep(Duration::from_secs(60));
        }
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "after_kill_9_of_the_owner_neither_process_nor_data_are_left"])
        .arg("--nocapture")
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines.map(Result::unwrap).find(|line| line.starts_with("server ")).unwrap();
    let [_, pid, home, socket] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
    let pid: u32 = pid.parse().unwrap();
    assert!(is_alive(pid) && Path::new(home).exists());
    child.kill().unwrap();
    child.wait().unwrap();
    for _ in 0..600 {
        if !is_alive(pid) && !Path::new(home).exists() && !Path::new(socket).exists() {
            return;
        }
        sleep(Duration::from_millis(50));
    }
    panic!("left behind: process {} home {}", is_alive(pid), Path::new(home).exists());
}
