//! One connection through the proxy: its start, and its messages both ways.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    Shared,
    round_trips::{Sending, WaitFor},
    rule::{Action, Message},
};

/// One connection through the proxy.
struct Link {
    client: TcpStream,
    server: TcpStream,
    backend: AtomicU32,
    /// Number of responses (`ReadyForQuery`) that are outstanding.
    owed: AtomicI64,
    /// Whether responses are discarded.
    mute: AtomicBool,
    delay: Mutex<Option<Duration>>,
    /// Whether the client is sending, where round trips are counted.
    sending: Sending,
}

impl Link {
    fn wait_for_answers(&self) {
        let started = Instant::now();
        while self.owed.load(SeqCst) > 0 && started.elapsed() < Duration::from_secs(20) {
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn cut(&self) {
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }
}

pub(super) fn serve(client: TcpStream, shared: &Arc<Shared>) {
    let address = shared.server.lock().unwrap().clone();
    let Ok(server) = TcpStream::connect(address) else { return };
    if shared.refusing.load(SeqCst) {
        return;
    }
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
        shared.open.lock().unwrap().push(stream.try_clone().unwrap());
    }
    let link = Arc::new(Link {
        client,
        server,
        backend: AtomicU32::new(0),
        owed: AtomicI64::new(1),
        mute: AtomicBool::new(false),
        delay: Mutex::new(None),
        sending: Sending::default(),
    });
    if start_up(&link, shared).is_some() {
        let (answers, of_answers) = (link.clone(), shared.clone());
        thread::spawn(move || pass_answers(&answers, &of_answers));
        let _ = pass_messages(&link, shared);
    }
    link.sending.end();
    if !link.mute.load(SeqCst) {
        link.cut();
    }
}

/// Forwards the start-up packet, unless logins are refused. Declines TLS in the server's place.
fn start_up(link: &Link, shared: &Shared) -> Option<()> {
    loop {
        let mut head = [0; 8];
        (&link.client).read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes(head[..4].try_into().unwrap()) as usize;
        let code = u32::from_be_bytes(head[4..].try_into().unwrap());
        if code == 80_877_103 {
            if let Some(round_trips) = &shared.round_trips {
                link.sending.begin();
                round_trips.wait_for_message(&link.client, &link.sending, WaitFor::Silence);
                round_trips.answer(1);
            }
            (&link.client).write_all(b"N").ok()?;
            continue;
        }
        let mut rest = vec![0; length - head.len()];
        (&link.client).read_exact(&mut rest).ok()?;
        if let Some(sqlstate) = shared.logins.next_refusal() {
            (&link.client).write_all(&error("FATAL", sqlstate, "no login now")).ok()?;
            return None;
        }
        if shared.round_trips.is_some() {
            link.sending.begin();
        }
        (&link.server).write_all(&[&head[..], &rest].concat()).ok()?;
        return Some(());
    }
}

/// Reads one message: its tag, and all of its bytes.
fn message(mut from: &TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut bytes = vec![0; 5];
    from.read_exact(&mut bytes).ok()?;
    let length = u32::from_be_bytes(bytes[1..].try_into().unwrap()) as usize;
    bytes.resize(length + 1, 0);
    from.read_exact(&mut bytes[5..]).ok()?;
    Some((bytes[0], bytes))
}

fn pass_messages(link: &Link, shared: &Shared) -> Option<()> {
    let mut is_forged = false;
    loop {
        if let Some(round_trips) = &shared.round_trips {
            round_trips.wait_for_message(&link.client, &link.sending, WaitFor::Message);
        }
        let Some((tag, bytes)) = message(&link.client) else {
            // Held messages were forwarded before.
            let _ = link.server.shutdown(Shutdown::Write);
            return None;
        };
        if let Some(round_trips) = &shared.round_trips {
            round_trips.look_at(&bytes);
        }
        let backend = link.backend.load(SeqCst);
        let action = {
            let mut rule = shared.rule.lock().unwrap();
            rule(&Message { tag, body: &bytes[5..], backend })
        };
        if matches!(action, Action::Drop) {
            continue;
        }
        if matches!(tag, b'Q' | b'S') {
            link.owed.fetch_add(1, SeqCst);
        }
        let mut server = &link.server;
        match action {
            Action::CutBefore => return None,
            Action::CutDuring => {
                server.write_all(&bytes[..bytes.len() / 2]).ok()?;
                return None;
            }
            Action::CutAfter => {
                link.mute.store(true, SeqCst);
                server.write_all(&bytes).ok()?;
                link.wait_for_answers();
                link.cut();
                return None;
            }
            Action::CutClient | Action::BlackHole => {
                link.mute.store(true, SeqCst);
                server.write_all(&bytes).ok()?;
                if matches!(action, Action::CutClient) {
                    let _ = link.client.shutdown(Shutdown::Both);
                }
                return None;
            }
            Action::Hold => {
                link.mute.store(true, SeqCst);
                let (holding, released) = &shared.holding;
                drop(released.wait_while(holding.lock().unwrap(), |holding| *holding).unwrap());
            }
            Action::ForgedError(severity, code) => {
                link.mute.store(true, SeqCst);
                is_forged = true;
                let ready = b"Z\0\0\0\x05I";
                let response = [&error(severity, code, "gave up")[..], ready].concat();
                (&link.client).write_all(&response).ok()?;
            }
            Action::Delay(delay) => *link.delay.lock().unwrap() = Some(delay),
            Action::Instead(text) => {
                let length = u32::try_from(text.len() + 5).unwrap().to_be_bytes();
                server.write_all(&[b"Q", &length[..], text.as_bytes(), b"\0"].concat()).ok()?;
                continue;
            }
            Action::Pass | Action::Drop => {}
        }
        server.write_all(&bytes).ok()?;
        if is_forged && bytes.starts_with(b"Q\0\0\0\x0bCOMMIT") {
            link.wait_for_answers();
            link.cut();
            return None;
        }
    }
}

/// An `ErrorResponse` of PostgreSQL.
fn error(severity: &str, code: &str, text: &str) -> Vec<u8> {
    let fields = format!("S{severity}\0V{severity}\0C{code}\0M{text}\0\0");
    let length = u32::try_from(fields.len() + 4).unwrap().to_be_bytes();
    [b"E", &length[..], fields.as_bytes()].concat()
}

fn pass_answers(link: &Link, shared: &Shared) {
    let mut client = &link.client;
    while let Some((tag, bytes)) = message(&link.server) {
        if tag == b'K' {
            link.backend.store(u32::from_be_bytes(bytes[5..9].try_into().unwrap()), SeqCst);
        }
        let delay = *link.delay.lock().unwrap();
        if let Some(delay) = delay {
            thread::sleep(delay);
        }
        if let Some(round_trips) = &shared.round_trips {
            round_trips.answer(bytes.len());
            link.sending.wait_until_silent();
        }
        // A response counts once it was written to the client.
        let given = link.mute.load(SeqCst) || client.write_all(&bytes).is_ok();
        if tag == b'Z' {
            link.owed.fetch_sub(1, SeqCst);
        }
        if !given {
            break;
        }
    }
    link.cut();
}
