//! A proxy in front of a server that refuses logins itself, as poolers do.

use std::{
    io::{Read, Write, copy},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

const TLS_REQUEST: [u8; 4] = 80_877_103_u32.to_be_bytes();

/// Ends with the process.
#[derive(Clone)]
pub struct RefusingProxy {
    port: u16,
    state: Arc<State>,
}

struct State {
    /// Number of logins that are still to be refused, and the SQLSTATE.
    refusals: Mutex<(usize, &'static str)>,
    logins: AtomicUsize,
}

impl RefusingProxy {
    pub fn before(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State { refusals: Mutex::new((0, "")), logins: AtomicUsize::new(0) });
        let proxy = Self { port, state: state.clone() };
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, state) = (client.unwrap(), state.clone());
                // The thread ends with its client.
                thread::spawn(move || serve(client, server, &state));
            }
        });
        proxy
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Refuses this number of logins from now on.
    pub fn refuse(&self, logins: usize, sqlstate: &'static str) {
        *self.state.refusals.lock().unwrap() = (logins, sqlstate);
        self.state.logins.store(0, SeqCst);
    }

    /// Number of logins that are still to be refused.
    pub fn left(&self) -> usize {
        self.state.refusals.lock().unwrap().0
    }

    /// Number of logins since [`Self::refuse`].
    pub fn logins(&self) -> usize {
        self.state.logins.load(SeqCst)
    }
}

fn serve(mut client: TcpStream, server: u16, state: &State) -> Option<()> {
    let mut start = packet(&mut client)?;
    while start[4..8] == TLS_REQUEST {
        client.write_all(b"N").ok()?;
        start = packet(&mut client)?;
    }
    state.logins.fetch_add(1, SeqCst);
    if let Some(sqlstate) = state.next_refusal() {
        client.write_all(&refusal(sqlstate)).ok()?;
        return Some(());
    }
    let mut server = TcpStream::connect(("127.0.0.1", server)).ok()?;
    server.write_all(&start).ok()?;
    let (mut from_client, mut to_server) = (client.try_clone().ok()?, server.try_clone().ok()?);
    thread::spawn(move || {
        let _ = copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Both);
    });
    let _ = copy(&mut server, &mut client);
    client.shutdown(Shutdown::Both).ok()
}

impl State {
    fn next_refusal(&self) -> Option<&'static str> {
        let mut refusals = self.refusals.lock().unwrap();
        refusals.0 = refusals.0.checked_sub(1)?;
        Some(refusals.1)
    }
}

/// A packet without a tag, its length included.
fn packet(client: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    client.read_exact(&mut length).ok()?;
    let mut packet = vec![0; u32::from_be_bytes(length) as usize];
    packet[..4].copy_from_slice(&length);
    client.read_exact(&mut packet[4..]).ok()?;
    Some(packet)
}

/// An `ErrorResponse` whose text is not one of PostgreSQL.
fn refusal(sqlstate: &str) -> Vec<u8> {
    let fields = format!("SFATAL\0VFATAL\0C{sqlstate}\0Mno login now\0\0");
    let length = u32::try_from(fields.len() + 4).unwrap();
    [b"E", &length.to_be_bytes()[..], fields.as_bytes()].concat()
}
