use std::{
    fs,
    net::TcpListener,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use super::{
    PostgresServerBuilder, TestDatabase, TestingError,
    binaries::{Binaries, tail},
    directory::{Home, private_directory, problem},
    watchdog::Watchdog,
};

const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a former owner's watchdog may take to stop its server.
const HANDOVER_LIMIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

/// A PostgreSQL server of this process alone. It is stopped when the value is dropped or the
/// process ends, however that happens; throwaway data are removed.
///
/// ```
/// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
/// use matrix_sdk_postgres::testing::PostgresServer;
///
/// let mut server = PostgresServer::start()?;
/// let database = server.create_database()?;
/// assert!(server.version() >= 13);
/// server.kill(); // as a crash would
/// server.start_again()?; // the same data, at the same address
/// # drop(database); Ok(()) }
/// ```
#[derive(Debug)]
pub struct PostgresServer {
    options: PostgresServerBuilder,
    binaries: Binaries,
    home: Home,
    password: String,
    running: Option<Running>,
    port: u16,
}

#[derive(Debug)]
struct Running {
    postmaster: Child,
    watchdog: Watchdog,
    socket_directory: PathBuf,
}

impl PostgresServer {
    pub(super) fn start_with(options: PostgresServerBuilder) -> Result<Self, TestingError> {
        let binaries = Binaries::find(options.bin_directory.as_deref())?;
        let home = match &options.data_directory {
            Some(path) => Home::lasting(path, &binaries)?,
            None => Home::throwaway(&binaries)?,
        };
        let password = home.password()?;
        let mut server = Self { options, binaries, home, password, running: None, port: 0 };
        server.start_again()?;
        Ok(server)
    }

    /// Starts a throwaway server.
    ///
    /// # Errors
    ///
    /// See [`TestingError`].
    pub fn start() -> Result<Self, TestingError> {
        Self::builder().start()
    }

    /// A server with other settings.
    pub fn builder() -> PostgresServerBuilder {
        PostgresServerBuilder::default()
    }

    /// The URL of the database `postgres` over TCP, as superuser, with the password.
    pub fn url(&self) -> String {
        self.database_url("postgres")
    }

    /// The URL of the database `postgres` over the Unix socket, as superuser.
    pub fn socket_url(&self) -> String {
        let directory = self.socket_directory().display().to_string().replace('/', "%2F");
        format!("postgres://postgres@{directory}:{}/postgres", self.port)
    }

    pub(super) fn database_url(&self, name: &str) -> String {
        format!("postgres://postgres:{}@127.0.0.1:{}/{name}", self.password, self.port)
    }

    /// The TCP port on 127.0.0.1, which is also part of the socket's name.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of the Unix socket; empty while the server is stopped.
    pub fn socket_directory(&self) -> &Path {
        self.running.as_ref().map_or(Path::new(""), |running| &running.socket_directory)
    }

    /// The cluster's data directory.
    pub fn data_directory(&self) -> PathBuf {
        self.home.data()
    }

    /// The postmaster's process id, or `None` while the server is stopped.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.postmaster.id())
    }

    /// PostgreSQL's major version.
    pub fn version(&self) -> u32 {
        self.binaries.major
    }

    /// What the server has logged so far.
    pub fn log(&self) -> String {
        fs::read(self.home.log())
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// Creates a fresh database on this server, dropped when the value is dropped.
    ///
    /// # Errors
    ///
    /// [`TestingError::CreateDatabase`] when the server does not answer.
    pub fn create_database(&self) -> Result<TestDatabase, TestingError> {
        TestDatabase::create(&self.url(), Some(self.socket_url()))
    }

    /// Stops the server in order, keeping its data. It can be started again.
    pub fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            signal(&running.postmaster, "INT");
            let _ = running.postmaster.wait();
            running.gone();
        }
    }

    /// Kills the server as a crash would, and waits until its last process is gone.
    pub fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            let pid = running.postmaster.id();
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            let _ = running.postmaster.kill();
            let _ = running.postmaster.wait();
            for child in children.unwrap_or_default().split_whitespace() {
                while Path::new("/proc").join(child).exists() {
                    sleep(PAUSE);
                }
            }
            running.gone();
        }
    }

    /// Starts the server again after [`stop`](Self::stop) or [`kill`](Self::kill), at the same
    /// port if that is still free. Does nothing while it is running.
    ///
    /// # Errors
    ///
    /// See [`TestingError`].
    pub fn start_again(&mut self) -> Result<(), TestingError> {
        if self.running.is_some() {
            return Ok(());
        }
        self.wait_for_former_owner()?;
        let mut last = TestingError::NotReady { log: "no free port".to_owned() };
        for _ in 0..5 {
            if self.port == 0 {
                self.port = free_port();
            }
            match self.launch() {
                Ok(()) => return Ok(()),
                // Somebody else took the port in between.
                Err(error @ TestingError::NotReady { .. })
                    if error.to_string().contains("bind") =>
                {
                    self.port = 0;
                    last = error;
                }
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// A process that was killed leaves its server to its watchdog, which takes a moment.
    fn wait_for_former_owner(&self) -> Result<(), TestingError> {
        let started = Instant::now();
        loop {
            let pid_file = fs::read_to_string(self.home.data().join("postmaster.pid"));
            let pid = pid_file.ok().and_then(|text| text.lines().next()?.trim().parse().ok());
            match pid {
                Some(pid) if is_postgres(pid) => {
                    if started.elapsed() > HANDOVER_LIMIT {
                        return Err(TestingError::InUse { path: self.home.data(), pid });
                    }
                }
                _ => return Ok(()),
            }
            sleep(PAUSE);
        }
    }

    fn launch(&mut self) -> Result<(), TestingError> {
        let log = self.home.log();
        let file = fs::File::create(&log).map_err(|error| problem(&log, &error))?;
        let errors = file.try_clone().map_err(|error| problem(&log, &error))?;
        let socket_directory = private_directory(&self.binaries)?;
        let mut command = self.binaries.command("postgres");
        command
            .arg("-D")
            .arg(self.home.data())
            .arg("-k")
            .arg(&socket_directory)
            .args(["-p", &self.port.to_string()])
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            // Not reached by a Ctrl-C that ends us: the watchdog stops it.
            .process_group(0);
        for (name, value) in self.options.effective_settings() {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let postmaster = command.spawn().map_err(|error| TestingError::Program {
            program: "postgres".to_owned(),
            output: error.to_string(),
        })?;
        let remove = self.home.throwaway.then_some(self.home.path.as_path());
        let watchdog =
            Watchdog::start(postmaster.id(), &self.home.data(), remove, &socket_directory)?;
        let mut running = Running { postmaster, watchdog, socket_directory };
        if let Err(error) = self.wait_until_ready(&mut running) {
            let _ = running.postmaster.kill();
            let _ = running.postmaster.wait();
            running.gone();
            return Err(error);
        }
        self.running = Some(running);
        Ok(())
    }

    fn wait_until_ready(&self, running: &mut Running) -> Result<(), TestingError> {
        let started = Instant::now();
        let not_ready = || TestingError::NotReady { log: tail(&self.log()) };
        loop {
            // The eighth line of postmaster.pid tells the state; an old file has another process id.
            let text = fs::read_to_string(self.home.data().join("postmaster.pid"));
            let text = text.unwrap_or_default();
            let lines: Vec<&str> = text.lines().map(str::trim).collect();
            let ours = lines.first() == Some(&running.postmaster.id().to_string().as_str());
            if ours && lines.get(7) == Some(&"ready") {
                return Ok(());
            }
            let ended = running.postmaster.try_wait().is_ok_and(|status| status.is_some());
            if ended || started.elapsed() > START_LIMIT {
                return Err(not_ready());
            }
            sleep(PAUSE);
        }
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        match self.running.take() {
            Some(mut running) => {
                // The watchdog sees the process until it has been waited for.
                signal(&running.postmaster, if self.home.throwaway { "QUIT" } else { "INT" });
                let _ = running.postmaster.wait();
                running.watchdog.finish();
            }
            None if self.home.throwaway => drop(fs::remove_dir_all(&self.home.path)),
            None => {}
        }
    }
}

impl Running {
    /// After the postmaster has ended.
    fn gone(self) {
        self.watchdog.release();
        let _ = fs::remove_dir_all(&self.socket_directory);
    }
}

fn signal(process: &Child, signal: &str) {
    let _ = Command::new("kill").args(["-s", signal, &process.id().to_string()]).status();
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map_or(0, |address| address.port())
}

/// Whether the process is alive and a PostgreSQL server: process ids are used again.
fn is_postgres(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "postgres")
}
