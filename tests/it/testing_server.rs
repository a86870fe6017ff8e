//! The throwaway PostgreSQL server that all other tests use.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    os::unix::{fs::MetadataExt, process::CommandExt},
    process::Command,
    thread::sleep,
    time::Duration,
};

use assert_matches::assert_matches;
use matrix_sdk_postgres::testing::{self, PostgresServer, TestingError};
use test_support::{connect, directory::Directory, number};

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

/// PostgreSQL (since 15) drops no database during a login, and that may be a task's which cannot continue before the
/// value is dropped.
#[test]
fn dropping_a_database_does_not_wait_for_a_login_that_waits_for_it() {
    let server = PostgresServer::start().unwrap();
    let database = server.create_database().unwrap();
    let url: tokio_postgres::Config = server.url().parse().unwrap();
    let mut login = TcpStream::connect(("127.0.0.1", url.get_ports()[0])).unwrap();
    let user = url.get_user().unwrap();
    let parameters = format!("user\0{user}\0database\0{}\0\0", database.name());
    let length = u32::try_from(parameters.len() + 8).unwrap();
    let startup = [&length.to_be_bytes()[..], &[0, 3, 0, 0], parameters.as_bytes()].concat();
    login.write_all(&startup).unwrap();
    // The server requests a password.
    let mut answer = [0; 1];
    login.read_exact(&mut answer).unwrap();
    assert_eq!(answer, *b"R");
    drop(database);
    // It would have closed the connection after its `authentication_timeout`.
    login.set_nonblocking(true).unwrap();
    let mut rest = Vec::new();
    let open = login.read_to_end(&mut rest).unwrap_err();
    assert_eq!(open.kind(), ErrorKind::WouldBlock);
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
    server.restart().unwrap();
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
        assert_eq!(pid, server.pid());
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

#[tokio::test]
async fn the_address_stays_the_same_however_the_server_ended() {
    let mut server = PostgresServer::start().unwrap();
    let before = (server.url(), server.socket_url());
    server.stop();
    assert_eq!(server.pid(), None);
    server.start_again().unwrap();
    server.kill();
    server.start_again().unwrap();
    let pid = server.pid().unwrap();
    Command::new("sh").args(["-c", &format!("kill -9 {pid}")]).status().unwrap();
    // PostgreSQL cannot be started again until the children of the killed server have ended.
    while fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
        sleep(Duration::from_millis(5));
    }
    server.start_again().unwrap();
    assert_ne!(server.pid(), Some(pid));
    assert_eq!((server.url(), server.socket_url()), before);
    connect(&before.0).await.batch_execute("SELECT").await.unwrap();
    connect(&before.1).await.batch_execute("SELECT").await.unwrap();
}

#[tokio::test]
async fn the_password_is_asked_for_over_tcp_and_never_shown() {
    let server = PostgresServer::start().unwrap();
    let url = server.url();
    let password = url.rsplit_once(':').unwrap().0.split('@').next().unwrap();
    let password = password.rsplit(':').next().unwrap();
    assert_eq!(password.len(), 32);
    let wrong = url.replace(password, "wrong");
    assert!(tokio_postgres::connect(&wrong, tokio_postgres::NoTls).await.is_err());
    let database = server.create_database().unwrap();
    assert!(database.url().contains(password));
    assert!(!format!("{server:?} {database:?}").contains(password));
}

#[test]
fn a_directory_with_other_files_is_refused_and_left_alone() {
    let directory = Directory::new();
    fs::create_dir(&directory.0).unwrap();
    fs::write(directory.0.join("precious"), "").unwrap();
    let before = fs::metadata(&directory.0).unwrap();
    let started = PostgresServer::builder().data_directory(&directory.0).start();
    assert_matches!(started, Err(TestingError::Directory { problem, .. }) => {
        assert!(problem.contains("precious"), "{problem}");
    });
    let after = fs::metadata(&directory.0).unwrap();
    assert_eq!((before.uid(), before.mode()), (after.uid(), after.mode()));
    assert_eq!(fs::read_dir(&directory.0).unwrap().count(), 1);
}

#[test]
fn an_interrupted_creation_starts_over() {
    let directory = Directory::new();
    fs::create_dir_all(directory.0.join("data.new-1/base")).unwrap();
    fs::write(directory.0.join("data.new-1/PG_VERSION"), "15").unwrap();
    fs::write(directory.0.join("password"), "half").unwrap();
    let server = PostgresServer::builder().data_directory(&directory.0).start().unwrap();
    server.create_database().unwrap();
    assert!(!directory.0.join("data.new-1").exists());
}

/// After a container's restart, an unrelated process can have the id in the lock file.
#[test]
fn a_lock_file_that_names_another_program_is_no_obstacle() {
    let directory = Directory::new();
    let builder = PostgresServer::builder().data_directory(&directory.0);
    let mut server = builder.clone().start().unwrap();
    server.kill();
    let file = server.data_directory().join("postmaster.pid");
    drop(server);
    let owner = fs::metadata(&file).unwrap();
    let text = fs::read_to_string(&file).unwrap();
    let mut command = Command::new("sleep");
    command.arg("60");
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        command.uid(owner.uid());
    }
    let mut other = command.spawn().unwrap();
    fs::write(&file, format!("{}\n{}", other.id(), text.split_once('\n').unwrap().1)).unwrap();
    let started = builder.start();
    let alive = other.try_wait().unwrap().is_none();
    other.kill().unwrap();
    other.wait().unwrap();
    started.unwrap().create_database().unwrap();
    assert!(alive, "the other program was ended");
}

#[test]
fn a_crashed_server_leaves_no_shared_memory() {
    let mut server = PostgresServer::start().unwrap();
    let creator = server.pid().unwrap().to_string();
    // The fifth column is the id of the process that created the segment.
    let left = || {
        let segments = fs::read_to_string("/proc/sysvipc/shm").unwrap();
        segments.lines().any(|line| line.split_whitespace().nth(4) == Some(&creator))
    };
    assert!(left());
    server.kill();
    drop(server);
    assert!(!left());
}
