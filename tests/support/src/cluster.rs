//! A primary and its synchronous standby.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use matrix_sdk_postgres::testing::{PostgresServer, TestDatabase};

use super::eventually;
use crate::{connect, directory::Directory, number};

pub struct Cluster {
    pub primary: PostgresServer,
    pub standby: PostgresServer,
    database: Option<TestDatabase>,
    _directory: Directory,
}

impl Cluster {
    /// Starts both. From then on the primary acknowledges only commits that the standby has.
    pub async fn start() -> Self {
        let builder = || PostgresServer::builder().setting("synchronous_commit", "on");
        let primary = builder().start().unwrap();
        let database = primary.create_database().unwrap();
        let directory = Directory::new();
        copy(&primary, &directory.0);
        let standby = builder().data_directory(&directory.0).start().unwrap();
        let admin = connect(&primary.url()).await;
        let names = "ALTER SYSTEM SET synchronous_standby_names = '*'";
        admin.batch_execute(names).await.unwrap();
        admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        let synchronous = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        let is_synchronous = || async { number(&admin, synchronous).await == 1 };
        eventually("the standby is synchronous", is_synchronous).await;
        Self { primary, standby, database: Some(database), _directory: directory }
    }

    pub fn url_of(&self, server: &PostgresServer) -> String {
        let name = self.database.as_ref().unwrap().name();
        let (server, _) = server.url().rsplit_once('/').map(|(a, b)| (a.to_owned(), b)).unwrap();
        format!("{server}/{name}")
    }

    /// A URL with both servers, which connects to the writable one.
    pub fn url(&self) -> String {
        let primary = format!("127.0.0.1:{}", self.primary.port());
        let both = format!("{primary},127.0.0.1:{}", self.standby.port());
        let url = self.url_of(&self.primary).replace(&primary, &both);
        format!("{url}?target_session_attrs=read-write")
    }
}

/// Makes the standby's directory: a base backup, and the superuser's password.
fn copy(primary: &PostgresServer, to: &PathBuf) {
    fs::create_dir(to).unwrap();
    let home = primary.data_directory().parent().unwrap().to_owned();
    let programs = fs::read_link(format!("/proc/{}/exe", primary.pid().unwrap())).unwrap();
    let status = Command::new(programs.with_file_name("pg_basebackup"))
        .args(["--checkpoint=fast", "--no-sync", "--write-recovery-conf", "--username=postgres"])
        .arg("--host")
        .arg(primary.socket_directory())
        .args(["--port", &primary.port().to_string()])
        .arg("--pgdata")
        .arg(to.join("data"))
        .stdin(Stdio::null())
        .status();
    assert!(status.unwrap().success(), "pg_basebackup");
    fs::copy(home.join("password"), to.join("password")).unwrap();
    let owner = format!("--reference={}", primary.data_directory().display());
    let status = Command::new("chown").arg("-R").arg(owner).arg(to).status();
    assert!(status.unwrap().success(), "chown");
}
