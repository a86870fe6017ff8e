//! Round trips on the wire: how often a client had to wait for the server. And the transactions that it
//! committed.

use std::{
    io::ErrorKind,
    net::TcpStream,
    sync::{
        Condvar, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::runtime::Handle;

/// How long the client must be silent before it counts as waiting. Answers are held back until
/// then, so that a message pipelined behind another never looks like an answer to its answer.
const SILENCE: Duration = Duration::from_millis(15);

/// A client whose runtime has work to do is not waiting, however busy the machine is; for so many
/// silences. A test may keep its runtime busy itself, until it sees an answer.
const SILENCES_WHILE_BUSY: usize = 40;

/// How a transaction is committed: `COMMIT` as a simple query.
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";

/// Whether a client is sending, and the signal that it has stopped.
#[derive(Default)]
pub(super) struct Sending(Mutex<bool>, Condvar);

impl Sending {
    pub(super) fn begin(&self) {
        *self.0.lock().unwrap() = true;
    }

    pub(super) fn end(&self) {
        *self.0.lock().unwrap() = false;
        self.1.notify_all();
    }

    pub(super) fn wait_until_silent(&self) {
        drop(self.1.wait_while(self.0.lock().unwrap(), |sending| *sending).unwrap());
    }

    fn is_on(&self) -> bool {
        *self.0.lock().unwrap()
    }
}

/// What a proxy waits for before it reads on.
#[derive(PartialEq)]
pub(super) enum WaitFor {
    Silence,
    Message,
}

/// Counts what all connections of a proxy do together.
pub(super) struct RoundTrips {
    /// The runtime of the clients.
    runtime: Option<Handle>,
    round_trips: AtomicUsize,
    commits: AtomicUsize,
    answered: AtomicUsize,
}

impl RoundTrips {
    pub(super) fn new() -> Self {
        Self {
            runtime: Handle::try_current().ok(),
            round_trips: AtomicUsize::new(0),
            commits: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
        }
    }

    pub(super) fn round_trips(&self) -> usize {
        self.round_trips.load(SeqCst)
    }

    pub(super) fn commits(&self) -> usize {
        self.commits.load(SeqCst)
    }

    pub(super) fn answered(&self) -> usize {
        self.answered.load(SeqCst)
    }

    pub(super) fn answer(&self, bytes: usize) {
        self.answered.fetch_add(bytes, SeqCst);
    }

    pub(super) fn look_at(&self, message: &[u8]) {
        if message == COMMIT {
            self.commits.fetch_add(1, SeqCst);
        }
    }

    /// Counts a round trip if the client that was sending is silent now, and waits for what it sends next.
    pub(super) fn wait_for_message(&self, client: &TcpStream, sending: &Sending, what: WaitFor) {
        if sending.is_on() {
            client.set_read_timeout(Some(SILENCE)).unwrap();
            if self.is_silent(client) {
                self.round_trips.fetch_add(1, SeqCst);
                sending.end();
            }
            client.set_read_timeout(None).unwrap();
        }
        if what == WaitFor::Message {
            // Also returns when the client has gone.
            let _ = client.peek(&mut [0]);
            sending.begin();
        }
    }

    fn is_silent(&self, client: &TcpStream) -> bool {
        for _ in 0..SILENCES_WHILE_BUSY {
            match client.peek(&mut [0]) {
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    if self.is_idle() {
                        return true;
                    }
                }
                // It sends on, or has gone.
                _ => return false,
            }
        }
        true
    }

    /// Whether all of the runtime's threads are parked: their counts are odd then.
    fn is_idle(&self) -> bool {
        let Some(runtime) = &self.runtime else { return true };
        let metrics = runtime.metrics();
        (0..metrics.num_workers()).all(|worker| metrics.worker_park_unpark_count(worker) % 2 == 1)
    }
}
