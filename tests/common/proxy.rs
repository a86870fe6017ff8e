//! A TCP proxy that counts turns of the wire: how often the client had to wait for the server.

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

/// How long the client must be silent before it counts as waiting. Answers are held back until
/// then, so that a message pipelined behind another never looks like an answer to its answer.
const SILENCE: Duration = Duration::from_millis(15);

/// Counts the turns of all its connections together.
pub struct Proxy {
    port: u16,
    turns: Arc<AtomicUsize>,
}

impl Proxy {
    /// Listens on a free port and passes on to `server`. It ends with the process.
    pub fn start(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let turns = Arc::new(AtomicUsize::new(0));
        let counter = turns.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(&server).unwrap());
                pass(client, server, counter.clone());
            }
        });
        Self { port, turns }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn turns(&self) -> usize {
        self.turns.load(Ordering::SeqCst)
    }
}

fn pass(client: TcpStream, server: TcpStream, turns: Arc<AtomicUsize>) {
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
    }
    // Whether the client is still sending, and the signal that it has stopped.
    let sending = Arc::new((Mutex::new(false), Condvar::new()));

    let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let state = sending.clone();
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        let mut silent = true;
        loop {
            from.set_read_timeout((!silent).then_some(SILENCE)).unwrap();
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    silent = false;
                    *state.0.lock().unwrap() = true;
                    if to.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    silent = true;
                    turns.fetch_add(1, Ordering::SeqCst);
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
            let waiting = sending.1.wait_while(sending.0.lock().unwrap(), |sending| *sending);
            drop(waiting.unwrap());
            if count == 0 || to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Both);
    });
}
