//! A TCP proxy between the store and its server, which parses PostgreSQL's messages: it injects a fault at a
//! chosen one, refuses logins, and counts round trips.

mod connection;
mod logins;
mod round_trips;
mod rule;

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
use self::{logins::Logins, round_trips::RoundTrips, rule::Rule};

/// Forwards connections, except where its rule says otherwise. Ends with the process.
#[derive(Clone)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    logins: Logins,
    round_trips: Option<RoundTrips>,
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

    /// Counts round trips. It delays responses, so times cannot be measured through it.
    pub fn counting(server: String) -> Self {
        Self::new("127.0.0.1:0", server, Some(RoundTrips::new()))
    }

    /// Counts the round trips to a database's server. Also returns the URL through the proxy.
    pub fn before(database: &TestDatabase) -> (Self, String) {
        let url = database.url();
        let (_, place) = url.split_once('@').expect("a URL with a password");
        let address = place.split('/').next().unwrap();
        let proxy = Self::counting(address.to_owned());
        let through = url.replace(address, &proxy.address.to_string());
        (proxy, through)
    }

    fn new(address: &str, server: String, round_trips: Option<RoundTrips>) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let shared = Arc::new(Shared {
            logins: Logins::default(),
            round_trips,
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

    /// Refuses the next `count` logins, as poolers do.
    pub fn refuse_logins(&self, count: usize, sqlstate: &'static str) {
        self.shared.logins.refuse(count, sqlstate);
    }

    /// Number of logins that are still to be refused.
    pub fn refusals_left(&self) -> usize {
        self.shared.logins.refusals_left()
    }

    /// Number of logins since [`Self::refuse_logins`].
    pub fn logins(&self) -> usize {
        self.shared.logins.count()
    }

    /// Number of round trips.
    pub fn round_trips(&self) -> usize {
        self.counted().round_trips()
    }

    /// The number of round trips of an operation, and its result.
    pub async fn count_round_trips<T>(&self, operation: impl Future<Output = T>) -> (usize, T) {
        let before = self.round_trips();
        let result = operation.await;
        (self.round_trips() - before, result)
    }

    /// The transactions that clients have committed.
    pub fn commits(&self) -> usize {
        self.counted().commits()
    }

    /// Bytes of all responses.
    pub fn answered(&self) -> usize {
        self.counted().answered()
    }

    fn counted(&self) -> &RoundTrips {
        self.shared.round_trips.as_ref().expect("a proxy that counts")
    }
}
