//! A TCP proxy between the store and its server, which parses PostgreSQL's messages and injects a fault at
//! a chosen one.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

/// A message of the client, for which the rule chooses an action.
pub struct Message<'a> {
    pub tag: u8,
    pub body: &'a [u8],
    /// The server's process for this connection.
    pub backend: u32,
}

impl Message<'_> {
    /// Whether it is a simple query that begins with this text.
    pub fn is_query(&self, text: &str) -> bool {
        self.tag == b'Q' && self.body.starts_with(text.as_bytes())
    }

    /// Whether it executes a statement.
    pub fn runs(&self) -> bool {
        matches!(self.tag, b'Q' | b'E')
    }
}

/// What the proxy does with a message.
#[derive(Clone, Debug)]
pub enum Action {
    Pass,
    /// Discards it.
    Drop,
    /// Sends another simple query in its place.
    Instead(&'static str),
    /// Breaks the connection before it.
    CutBefore,
    /// Breaks the connection in the middle of it.
    CutDuring,
    /// Breaks the connection after the server has executed it, and discards the response.
    CutAfter,
    /// Forwards it and breaks the client's end only: the server does not notice.
    CutClient,
    /// Forwards it, and nothing after it in either direction: neither end notices.
    BlackHole,
    /// Forwards it, and delays responses from then on.
    Delay(Duration),
    /// Holds it and all later ones until [`FaultProxy::release`], even after the client has gone.
    Hold,
    /// Forwards it and all later ones, but sends the client an error with this severity and SQLSTATE in the
    /// server's place. Breaks the connection after the response to `COMMIT`.
    ForgedError(&'static str, &'static str),
}

type Rule = Box<dyn FnMut(&Message<'_>) -> Action + Send>;

/// Forwards connections, except where its rule says otherwise. Ends with the process.
#[derive(Clone)]
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    server: Mutex<String>,
    rule: Mutex<Rule>,
    open: Mutex<Vec<TcpStream>>,
    refusing: AtomicBool,
    holding: (Mutex<bool>, Condvar),
}

impl FaultProxy {
    pub fn start(server: String) -> Self {
        Self::listen("127.0.0.1:0", server)
    }

    pub fn listen(address: &str, server: String) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let shared = Arc::new(Shared {
            server: Mutex::new(server),
            rule: Mutex::new(Box::new(|_| Action::Pass)),
            open: Mutex::default(),
            refusing: AtomicBool::new(false),
            holding: (Mutex::new(true), Condvar::new()),
        });
        let proxy = Self { address: listener.local_addr().unwrap(), shared: shared.clone() };
        thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), shared) = (client, shared.clone()) else { continue };
                thread::spawn(move || serve(client, &shared));
            }
        });
        proxy
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// A server's URL, through this proxy.
    pub fn url(&self, url: &str, port: u16) -> String {
        url.replace(&format!("127.0.0.1:{port}"), &self.address.to_string())
    }

    /// Sets the rule for every message that clients send from now on.
    pub fn rule(&self, rule: impl FnMut(&Message<'_>) -> Action + Send + 'static) {
        *self.shared.rule.lock().unwrap() = Box::new(rule);
    }

    /// Applies the action once, to the first message that matches; all others pass.
    pub fn once(
        &self,
        mut matches: impl FnMut(&Message<'_>) -> bool + Send + 'static,
        action: Action,
    ) -> Arc<AtomicBool> {
        let done = Arc::new(AtomicBool::new(false));
        let flag = done.clone();
        self.rule(move |message| match !flag.load(SeqCst) && matches(message) {
            true => {
                flag.store(true, SeqCst);
                action.clone()
            }
            false => Action::Pass,
        });
        done
    }

    /// Forwards new connections to this server from now on.
    pub fn redirect_to(&self, server: String) {
        *self.shared.server.lock().unwrap() = server;
    }

    /// Releases held messages.
    pub fn release(&self) {
        *self.shared.holding.0.lock().unwrap() = false;
        self.shared.holding.1.notify_all();
    }

    /// `true`: breaks all connections and refuses new ones; `false`: accepts them again.
    pub fn refuse(&self, refusing: bool) {
        self.shared.refusing.store(refusing, SeqCst);
        if refusing {
            self.cut_all();
        }
    }

    pub fn cut_all(&self) {
        for stream in self.shared.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

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

fn serve(client: TcpStream, shared: &Shared) {
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
    });
    let answers = link.clone();
    if start_up(&link).is_some() {
        thread::spawn(move || pass_answers(&answers));
        let _ = pass_messages(&link, shared);
    }
    if !link.mute.load(SeqCst) {
        link.cut();
    }
}

/// Forwards the start-up packet. Declines TLS in the server's place.
fn start_up(link: &Link) -> Option<()> {
    loop {
        let mut head = [0; 8];
        (&link.client).read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes(head[..4].try_into().unwrap()) as usize;
        let code = u32::from_be_bytes(head[4..].try_into().unwrap());
        if code == 80_877_103 {
            (&link.client).write_all(b"N").ok()?;
            continue;
        }
        let mut rest = vec![0; length - head.len()];
        (&link.client).read_exact(&mut rest).ok()?;
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
        let Some((tag, bytes)) = message(&link.client) else {
            // Held messages were forwarded before.
            let _ = link.server.shutdown(Shutdown::Write);
            return None;
        };
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
                (&link.client).write_all(&error(severity, code)).ok()?;
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

/// An `ErrorResponse` followed by `ReadyForQuery`.
fn error(severity: &str, code: &str) -> Vec<u8> {
    let fields = format!("S{severity}\0V{severity}\0C{code}\0Mquery timeout\0\0");
    let length = u32::try_from(fields.len() + 4).unwrap().to_be_bytes();
    [b"E", &length[..], fields.as_bytes(), b"Z\0\0\0\x05I"].concat()
}

fn pass_answers(link: &Link) {
    let mut client = &link.client;
    while let Some((tag, bytes)) = message(&link.server) {
        if tag == b'K' {
            link.backend.store(u32::from_be_bytes(bytes[5..9].try_into().unwrap()), SeqCst);
        }
        let delay = *link.delay.lock().unwrap();
        if let Some(delay) = delay {
            thread::sleep(delay);
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
