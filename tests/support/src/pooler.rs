//! A pgbouncer in transaction mode.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use matrix_sdk_postgres::testing::PostgresServer;

use crate::directory::Directory;

/// Runs the program until the pipe from this process is closed, at the latest by the process's end.
const RUN_UNTIL_PIPE_CLOSES: &str = r#""$@" & pid=$!; read -r end; kill -s KILL "$pid""#;

/// Whether tests behind PgBouncer run. Without PgBouncer they fail, unless `WITHOUT_PGBOUNCER` is set.
pub fn is_wanted(test: &str) -> bool {
    let wanted = std::env::var_os("WITHOUT_PGBOUNCER").is_none();
    if !wanted {
        println!("NOT TESTED, WITHOUT_PGBOUNCER is set: {test}");
    }
    wanted
}

/// `Old` is 1.18; `New` supports prepared statements.
#[derive(Clone, Copy, Debug)]
pub enum Release {
    Old,
    New,
}

impl Release {
    /// The program named by the environment variable, or fetched by the script.
    fn program(self) -> PathBuf {
        static FETCHED: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
        let name = match self {
            Self::Old => "PGBOUNCER_OLD",
            Self::New => "PGBOUNCER_NEW",
        };
        if let Some(path) = std::env::var_os(name) {
            return path.into();
        }
        let (old, new) = FETCHED.get_or_init(|| {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/pgbouncer");
            let output = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
            assert!(
                output.status.success(),
                "scripts/pgbouncer failed: set PGBOUNCER_OLD and PGBOUNCER_NEW, or WITHOUT_PGBOUNCER=1"
            );
            let text = String::from_utf8(output.stdout).unwrap();
            let (old, new) = text.trim().split_once('\n').unwrap();
            (old.into(), new.into())
        });
        match self {
            Self::Old => old.clone(),
            Self::New => new.clone(),
        }
    }
}

/// A running PgBouncer. It is stopped on drop, or when the process ends.
pub struct Pooler {
    pub port: u16,
    pub version: String,
    shell: Child,
}

impl Pooler {
    /// Starts PgBouncer with few connections to the server, so that clients share them.
    pub fn start(release: Release, server: &PostgresServer) -> Self {
        Self::start_before(release, server, server.port(), "")
    }

    /// The same with `server_port` as the server's port (of a proxy, say), and more settings.
    pub fn start_before(
        release: Release,
        server: &PostgresServer,
        server_port: u16,
        settings: &str,
    ) -> Self {
        let program = release.program();
        let output = Command::new(&program).arg("--version").output().unwrap();
        let version = String::from_utf8(output.stdout).unwrap();
        let version = version.lines().next().unwrap_or_default().to_owned();

        // The files are read at the start only, so they are removed once the pooler listens.
        let directory = Directory::new();
        fs::create_dir(&directory.0).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let users = directory.0.join("users");
        let url = server.url();
        let password = url.split(['@']).next().unwrap().rsplit(':').next().unwrap();
        fs::write(&users, format!("\"postgres\" \"{password}\"\n")).unwrap();
        let prepared = match release {
            Release::Old => "",
            Release::New => "max_prepared_statements = 200\n",
        };
        let configuration = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {}\n\
             pool_mode = transaction\ndefault_pool_size = 3\nmax_client_conn = 1000\n\
             max_db_connections = 3\n{prepared}{settings}",
            server_port,
            users.display()
        );
        let file = directory.0.join("pgbouncer.ini");
        fs::write(&file, configuration).unwrap();
        let mut command = Command::new("sh");
        command
            .args(["-c", RUN_UNTIL_PIPE_CLOSES, "pooler"])
            .arg(&program)
            .arg("--quiet")
            .arg(&file);
        // PgBouncer refuses to run as root, like PostgreSQL.
        let owner = fs::metadata(server.data_directory()).unwrap();
        if fs::metadata("/proc/self").unwrap().uid() == 0 {
            command.uid(owner.uid()).gid(owner.gid());
        }
        let shell = command.stdin(Stdio::piped()).current_dir("/").spawn().unwrap();
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(started.elapsed() < Duration::from_secs(20), "{version} does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { port, version, shell }
    }

    /// A database's URL, through the pooler.
    pub fn url(&self, url: &str, server: &PostgresServer) -> String {
        let (direct, pooled) = (server.port(), self.port);
        url.replace(&format!("127.0.0.1:{direct}"), &format!("127.0.0.1:{pooled}"))
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}
