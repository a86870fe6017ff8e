//! A TCP proxy that counts round trips (how often the client waits for the server), bytes and commits.

use std::{
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use matrix_sdk_postgres::testing::{PostgresServer, TestDatabase};

/// How long the client must be silent before it counts as waiting. Responses are held until then, so that
/// a pipelined message is not taken for a reaction to a response.
const SILENCE: Duration = Duration::from_millis(15);

/// `COMMIT` as a simple query.
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";

/// Counts over all of its connections.
pub struct Proxy {
    port: u16,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    round_trips: AtomicUsize,
    commits: AtomicUsize,
    answered: AtomicUsize,
}

impl Proxy {
    /// Listens on a free port and forwards to `server`. Ends with the process.
    pub fn start(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let counts = Arc::new(Counts::default());
        let counter = counts.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(&server).unwrap());
                pass(client, server, counter.clone());
            }
        });
        Self { port, counts }
    }

    /// A proxy in front of a server, and the URL of a database through it.
    pub fn before(server: &PostgresServer, database: &TestDatabase) -> (Self, String) {
        let address = |port: u16| format!("127.0.0.1:{port}");
        let proxy = Self::start(address(server.port()));
        let url = database.url().replace(&address(server.port()), &address(proxy.port));
        (proxy, url)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn round_trips(&self) -> usize {
        self.counts.round_trips.load(Ordering::SeqCst)
    }

    /// Number of bytes that the server has sent.
    pub fn answered(&self) -> usize {
        self.counts.answered.load(Ordering::SeqCst)
    }

    pub fn commits(&self) -> usize {
        self.counts.commits.load(Ordering::SeqCst)
    }
}

fn pass(client: TcpStream, server: TcpStream, counts: Arc<Counts>) {
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
    }
    // Whether the client is sending, and the signal that it has stopped.
    let sending = Arc::new((Mutex::new(false), Condvar::new()));

    let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let (state, answers) = (sending.clone(), counts.clone());
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        let mut silent = true;
        // The end of the previous bytes, because a message may arrive in two pieces.
        let mut seen = Vec::new();
        loop {
            from.set_read_timeout((!silent).then_some(SILENCE)).unwrap();
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    silent = false;
                    seen.extend_from_slice(&buffer[..count]);
                    let commits = seen.windows(COMMIT.len()).filter(|bytes| *bytes == COMMIT);
                    counts.commits.fetch_add(commits.count(), Ordering::SeqCst);
                    seen.drain(..seen.len().saturating_sub(COMMIT.len() - 1));
                    *state.0.lock().unwrap() = true;
                    if to.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    silent = true;
                    counts.round_trips.fetch_add(1, Ordering::SeqCst);
                    *state.0.lock().unwrap() = false;
                    state.1.notify_all();
                }
                Err(_) => break,
            }
        }
        *state.0.lock().unwrap() = false;
        state.1.notify_all();
        let _ = to.shutdown(std::net::Shutdown::Both);
    });

    let (mut from, mut to) = (server, client);
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(count) = from.read(&mut buffer) {
            answers.answered.fetch_add(count, Ordering::SeqCst);
            let waiting = sending.1.wait_while(sending.0.lock().unwrap(), |sending| *sending);
            drop(waiting.unwrap());
            if count == 0 || to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Both);
    });
}
