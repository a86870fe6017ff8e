//! A TCP proxy between the store and its server, which knows PostgreSQL's messages well enough to do
//! harm at a chosen one, to refuse a login, and to count how often a client waits for the server.

mod connection;
mod logins;
mod rule;
mod turns;

use std::{
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
};

use matrix_sdk_postgres::testing::TestDatabase;

pub use self::rule::{Action, Message};
use self::{logins::Logins, rule::Rule, turns::Turns};

/// Passes connections on until its rule says otherwise. Ends with the process.
#[derive(Clone)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    logins: Logins,
    turns: Option<Turns>,
    server: Mutex<String>,
    rule: Mutex<Rule>,
    open: Mutex<Vec<TcpStream>>,
    refusing: AtomicBool,
    holding: (Mutex<bool>, Condvar),
}

impl Proxy {
    pub fn start(server: String) -> Self {
        Self::listen("127.0.0.1:0", server)
    }

    pub fn listen(address: &str, server: String) -> Self {
        Self::new(address, server, None)
    }

    /// Counts the turns of the wire. Answers come late, so nothing else can be measured.
    pub fn counting(server: String) -> Self {
        Self::new("127.0.0.1:0", server, Some(Turns::new()))
    }

    /// Counts the turns before a database's server. Also gives the URL that leads to it this way.
    pub fn before(database: &TestDatabase) -> (Self, String) {
        let url = database.url();
        let (_, place) = url.split_once('@').expect("a URL with a password");
        let address = place.split('/').next().unwrap();
        let proxy = Self::counting(address.to_owned());
        let through = url.replace(address, &proxy.address.to_string());
        (proxy, through)
    }

    fn new(address: &str, server: String, turns: Option<Turns>) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let shared = Arc::new(Shared {
            logins: Logins::default(),
            turns,
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
                // A client that goes away ends its thread.
                thread::spawn(move || connection::serve(client, &shared));
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

    /// Decides on every message that clients send from now on.
    pub fn rule(&self, rule: impl FnMut(&Message<'_>) -> Action + Send + 'static) {
        *self.shared.rule.lock().unwrap() = Box::new(rule);
    }

    /// Does this once, to the first message for which `matches` holds; all others pass.
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

    /// Where new connections lead from now on.
    pub fn lead_to(&self, server: String) {
        *self.shared.server.lock().unwrap() = server;
    }

    /// Lets what is held go on.
    pub fn let_go(&self) {
        *self.shared.holding.0.lock().unwrap() = false;
        self.shared.holding.1.notify_all();
    }

    /// Breaks all connections; takes none until told otherwise.
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

    /// Refuses so many logins from now on, as poolers do.
    pub fn refuse_logins(&self, count: usize, sqlstate: &'static str) {
        self.shared.logins.refuse(count, sqlstate);
    }

    /// How many of them are still to come.
    pub fn refusals_left(&self) -> usize {
        self.shared.logins.refusals_left()
    }

    /// How many logins there were since [`Self::refuse_logins`].
    pub fn logins(&self) -> usize {
        self.shared.logins.count()
    }

    /// How often clients have waited for the server.
    pub fn turns(&self) -> usize {
        self.counted().turns()
    }

    /// The transactions that clients have committed.
    pub fn commits(&self) -> usize {
        self.counted().commits()
    }

    /// The bytes of all answers.
    pub fn answered(&self) -> usize {
        self.counted().answered()
    }

    fn counted(&self) -> &Turns {
        self.shared.turns.as_ref().expect("a proxy that counts")
    }
}
