//! The throwaway PostgreSQL server in other processes: clean-up when its owner ends, and what it needs from
//! the system. Each test runs itself again as a child process.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::{
        fs::{MetadataExt, PermissionsExt, symlink},
        process::CommandExt,
    },
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use matrix_sdk_postgres::testing::{self, PostgresServer};
use test_support::{child_process, connect, directory::Directory, number};

fn is_child() -> bool {
    child_process::task().is_some()
}

fn test_command(test: &str) -> Command {
    let mut command = child_process::command_with_task(test, "server");
    command.env_remove("DATABASE_URL");
    command
}

/// Starts the child and returns the words of its first line that begins with "child: ".
fn first_line_of(command: &mut Command) -> (Child, Vec<String>) {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let line = lines.find_map(|line| line.split_once("child: ").map(|(_, text)| text.to_owned()));
    // Drains the pipe, so that the child does not block.
    std::thread::spawn(move || lines.for_each(drop));
    (child, line.expect("a line of the child").split(' ').map(str::to_owned).collect())
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..600 {
        if holds() {
            return;
        }
        sleep(Duration::from_millis(50));
    }
    panic!("still not after 30 s: {what}");
}

/// Number of processes with this text in their command line. Zombies have none.
fn processes_naming(text: &str) -> usize {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(text)).count()
}

/// A temporary directory with the permissions of /tmp.
fn temporary() -> Directory {
    let directory = Directory::new();
    fs::create_dir(&directory.0).unwrap();
    fs::set_permissions(&directory.0, fs::Permissions::from_mode(0o1777)).unwrap();
    directory
}

#[test]
fn after_kill_9_of_the_owner_neither_process_nor_data_are_left() {
    if is_child() {
        let server = PostgresServer::start().unwrap();
        println!("child: {}", server.data_directory().parent().unwrap().display());
        loop {
            sleep(Duration::from_secs(60));
        }
    }
    let (mut child, words) = first_line_of(&mut test_command(
        "testing_server_owner::after_kill_9_of_the_owner_neither_process_nor_data_are_left",
    ));
    let home = words[0].as_str();
    assert!(processes_naming(home) >= 2 && Path::new(home).exists());
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("all is gone", || processes_naming(home) == 0 && !Path::new(home).exists());
}

#[test]
fn killing_the_owner_at_any_moment_leaves_nothing() {
    if is_child() {
        PostgresServer::start().unwrap();
        return;
    }
    let name = "testing_server_owner::killing_the_owner_at_any_moment_leaves_nothing";
    let temporary = temporary();
    let path = temporary.0.to_str().unwrap();
    let run = || test_command(name).env("TMPDIR", path).stdout(Stdio::null()).spawn().unwrap();
    let killed_after = |milliseconds| {
        let mut child = run();
        sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        child.wait().unwrap();
    };
    // The first run is killed during `initdb`; later ones copy its template and start the server.
    (0..6).for_each(|moment| killed_after(moment * 60));
    assert!(run().wait().unwrap().success());
    (0..25).for_each(|moment| killed_after(moment * 12));
    eventually("no process is left", || processes_naming(path) == 0);
    // The template stays, and at most an empty directory whose watchdog had not started.
    let left = || {
        let names = fs::read_dir(path).unwrap().flatten().map(|entry| entry.path());
        let others = names.filter(|path| !path.to_string_lossy().contains("template"));
        others.flat_map(fs::read_dir).flatten().flatten().map(|entry| entry.path()).next()
    };
    eventually(&format!("no data are left, as {:?}", left()), || left().is_none());
}

#[tokio::test]
async fn the_shared_server_ends_with_the_process() {
    if is_child() {
        let database = testing::database().unwrap();
        let client = connect(&database.url()).await;
        let row = client.query_one("SHOW data_directory", &[]).await.unwrap();
        println!("child: {}", row.get::<_, String>(0));
        return;
    }
    let (mut child, words) = first_line_of(&mut test_command(
        "testing_server_owner::the_shared_server_ends_with_the_process",
    ));
    assert!(child.wait().unwrap().success());
    let data = words[0].as_str();
    assert!(data.ends_with("/data"), "{data}");
    eventually("all is gone", || processes_naming(data) == 0 && !Path::new(data).exists());
}

#[tokio::test]
async fn a_lasting_server_is_taken_over_from_an_owner_that_was_killed() {
    const PATH: &str = "TESTING_SERVER_PATH";
    if is_child() {
        let path = std::env::var_os(PATH).unwrap();
        let server = PostgresServer::builder().data_directory(path).durable(true).start().unwrap();
        let client = connect(&server.url()).await;
        client.batch_execute("CREATE TABLE kept AS SELECT 7::int8 AS n").await.unwrap();
        println!("child: ready");
        loop {
            sleep(Duration::from_secs(60));
        }
    }
    let directory = Directory::new();
    let (mut child, _) = first_line_of(
        test_command(
            "testing_server_owner::a_lasting_server_is_taken_over_from_an_owner_that_was_killed",
        )
        .env(PATH, &directory.0),
    );
    child.kill().unwrap();
    // The former server still runs.
    let server = PostgresServer::builder().data_directory(&directory.0).start().unwrap();
    child.wait().unwrap();
    assert_eq!(number(&connect(&server.url()).await, "SELECT n FROM kept").await, 7);
}

#[tokio::test]
async fn an_ordinary_user_and_root_can_both_start_one() {
    if is_child() {
        let server = PostgresServer::start().unwrap();
        let database = server.create_database().unwrap();
        connect(&database.socket_url()).await.batch_execute("SELECT").await.unwrap();
        connect(&database.url()).await.batch_execute("SELECT").await.unwrap();
        assert_ne!(fs::metadata(server.data_directory()).unwrap().uid(), 0);
        return;
    }
    let name = "testing_server_owner::an_ordinary_user_and_root_can_both_start_one";
    child_process::passes(&mut test_command(name));
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        // Other users may not be able to enter the build directory.
        let temporary = temporary();
        let program = temporary.0.join("test");
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        let child = test_command(name);
        let mut command = Command::new(program);
        command.args(child.get_args()).env("TMPDIR", &temporary.0);
        let variables = child.get_envs().filter_map(|(name, value)| Some((name, value?)));
        command.envs(variables).env_remove("DATABASE_URL");
        child_process::passes(command.current_dir("/").uid(65534).gid(65534));
    }
}

#[test]
fn neither_procps_nor_a_short_temporary_directory_is_needed() {
    if is_child() {
        let mut server = PostgresServer::start().unwrap();
        server.restart().unwrap();
        server.kill();
        server.start_again().unwrap();
        server.create_database().unwrap();
        return;
    }
    let name = "testing_server_owner::neither_procps_nor_a_short_temporary_directory_is_needed";
    // The programs of an image without procps and util-linux.
    let programs = temporary();
    for program in ["sh", "cp", "rm", "sleep", "test"] {
        symlink(Path::new("/bin").join(program), programs.0.join(program)).unwrap();
    }
    child_process::passes(test_command(name).env("PATH", &programs.0));
    let long = temporary();
    let path = long.0.join("x".repeat(100));
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o1777)).unwrap();
    child_process::passes(test_command(name).env("TMPDIR", path));
}

#[test]
fn a_pg_bin_without_binaries_is_an_error_with_the_install_line() {
    if is_child() {
        println!("child: {}", testing::database().unwrap_err());
        return;
    }
    let name = "testing_server_owner::a_pg_bin_without_binaries_is_an_error_with_the_install_line";
    let empty = temporary();
    let text = child_process::passes(test_command(name).env("PG_BIN", &empty.0));
    assert!(text.contains("apt-get install postgresql") && text.contains("PG_BIN"), "{text}");
}

#[tokio::test]
async fn database_url_is_used_and_a_missing_privilege_is_reported() {
    if is_child() {
        match testing::database() {
            Ok(database) => {
                let client = connect(&database.url()).await;
                let row = client.query_one("SHOW data_directory", &[]).await.unwrap();
                println!("child: on {} {}", row.get::<_, String>(0), database.url());
            }
            Err(error) => println!("child: {error}"),
        }
        return;
    }
    let name = "testing_server_owner::database_url_is_used_and_a_missing_privilege_is_reported";
    let server = PostgresServer::start().unwrap();
    let client = connect(&server.url()).await;
    client
        .batch_execute("CREATE ROLE poor LOGIN; GRANT ALL ON DATABASE postgres TO poor")
        .await
        .unwrap();

    let on_it = format!("child: on {}", server.data_directory().display());
    let with_options = format!("{}?application_name=mine", server.url());
    let words = format!(
        "host={} port={} user=postgres dbname=postgres",
        server.socket_directory().display(),
        server.port()
    );
    for (url, kept) in [(with_options, "application_name=mine"), (words, "user=postgres")] {
        let text = child_process::passes(test_command(name).env("DATABASE_URL", &url));
        assert!(text.contains(&on_it) && text.contains(kept), "{text}");
    }
    let left = "SELECT count(*) FROM pg_database WHERE datname LIKE 'mxsp%'";
    assert_eq!(number(&client, left).await, 0);

    let poor = server.socket_url().replace("//postgres@", "//poor@");
    let text = child_process::passes(test_command(name).env("DATABASE_URL", poor));
    assert!(text.contains("CREATEDB"), "{text}");
    let text = child_process::passes(
        test_command(name).env("DATABASE_URL", "postgres://me:hush@127.0.0.1:1/postgres"),
    );
    assert!(!text.contains("CREATEDB") && !text.contains("hush"), "{text}");
}
