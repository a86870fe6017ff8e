//! Starting and stopping a server, whatever state it is in.

use std::{
    net::TcpListener,
    thread::sleep,
    time::{Duration, Instant},
};

use super::PostgresServer;
use crate::testing::{
    TestingError,
    binaries::tail,
    directory::random_hex,
    process::{self, PAUSE, Postmaster},
};

/// Throwaway and persistent: the latter may need crash recovery.
const START_LIMIT: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(600));
/// How long to wait for the server's port, and for a former server's end.
const FORMER_SERVER_LIMIT: Duration = Duration::from_secs(10);

impl PostgresServer {
    /// Starts the server again after [`stop`](Self::stop), [`kill`](Self::kill) or its own end,
    /// with the same data at the same address. Does nothing while it is running.
    ///
    /// # Errors
    ///
    /// See [`TestingError`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), matrix_sdk_postgres::testing::TestingError> {
    /// # use matrix_sdk_postgres::testing::PostgresServer;
    /// let mut server = PostgresServer::start()?;
    /// server.kill();
    /// server.start_again()?;
    /// # Ok(()) }
    /// ```
    pub fn start_again(&mut self) -> Result<(), TestingError> {
        if self.postmaster.as_mut().is_some_and(|postmaster| !postmaster.has_ended()) {
            return Ok(());
        }
        self.postmaster = None;
        process::wait_for_former(&self.directory.data(), FORMER_SERVER_LIMIT)?;
        let known = self.port != 0;
        let started = Instant::now();
        loop {
            if !known {
                self.port = free_port()?;
            }
            let before = self.log().len();
            let Err(error) = self.launch() else { return Ok(()) };
            // The address may be in use by clients already, so the port is kept and waited for.
            let taken = self.log().get(before..).is_some_and(|log| log.contains("could not bind"));
            if !taken || started.elapsed() > FORMER_SERVER_LIMIT {
                return Err(error);
            }
            sleep(PAUSE);
        }
    }

    fn launch(&mut self) -> Result<(), TestingError> {
        let mut command = self.binaries.command("postgres");
        command.arg("-D").arg(self.directory.data()).arg("-k").arg(self.socket_directory());
        command.args(["-p", &self.port.to_string()]).args(&self.arguments);
        let log = self.directory.log();
        let watchdog = &mut self.directory.scratch.watchdog;
        let postmaster = Postmaster::start(&command, &self.binaries, &log, watchdog)?;
        self.postmaster = Some(postmaster);
        let ready = self.wait_until_ready();
        if ready.is_err() {
            self.kill();
        }
        ready
    }

    fn wait_until_ready(&mut self) -> Result<(), TestingError> {
        let (throwaway, persistent) = START_LIMIT;
        let limit = if self.directory.throwaway() { throwaway } else { persistent };
        let started = Instant::now();
        while let Some(postmaster) = &mut self.postmaster {
            if process::is_ready(&self.directory.data(), postmaster.id()) {
                return Ok(());
            }
            if postmaster.has_ended() || started.elapsed() > limit {
                break;
            }
            sleep(PAUSE);
        }
        Err(TestingError::NotReady { log: tail(&self.log()) })
    }

    pub(super) fn end(&mut self, how: impl FnOnce(&mut Postmaster)) {
        if let Some(mut postmaster) = self.postmaster.take() {
            how(&mut postmaster);
            // The process id may be reused soon. If the watchdog has ended, it stops nothing anyway.
            let _ = self.directory.scratch.watchdog.watch(None);
        }
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        if self.directory.throwaway() {
            // A crash leaves the lock file and shared memory, which only a new start removes.
            if process::pid_in(&self.directory.data()).is_some() {
                let _ = self.start_again();
            }
            self.end(|postmaster| postmaster.stop("QUIT"));
        } else {
            self.stop();
        }
    }
}

/// A free port below the ephemeral range, so that no outgoing connection takes it while the server is
/// stopped.
fn free_port() -> Result<u16, TestingError> {
    const LOWEST: u16 = 10_240;
    const COUNT: u16 = 20_480;
    for _ in 0..100 {
        let random = u16::from_str_radix(&random_hex(2)?, 16).unwrap_or_default();
        let port = LOWEST + random % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(TestingError::NotReady { log: "no free port on 127.0.0.1".to_owned() })
}
