//! A proxy in front of the server that can hold responses, so that a commit overtakes a read.

use std::{
    io,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    sync::Notify,
};
use tokio_postgres::config::{Config, Host};

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

#[derive(Clone, Default)]
pub struct Proxy(Arc<Shared>);

#[derive(Default)]
struct Shared {
    hold: Mutex<Hold>,
    changed: Notify,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Hold {
    #[default]
    Nothing,
    /// The connection that sends the next request.
    Next,
    /// The responses to this connection. `has_caught`: the first of them has arrived.
    Connection { number: usize, has_caught: bool },
}

impl Proxy {
    /// Forwards to the server at `url`; also returns the connection string of the proxy.
    pub async fn start(url: &str) -> (Self, String) {
        let server: Config = url.parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let word = |name: &str, value: Option<&str>| {
            value.map(|value| format!("{name}='{value}' ")).unwrap_or_default()
        };
        let password = server.get_password().map(|bytes| str::from_utf8(bytes).unwrap());
        let words = [
            word("user", server.get_user()),
            word("password", password),
            word("dbname", server.get_dbname()),
        ];
        let proxied = format!("host=127.0.0.1 port={port} sslmode=disable {}", words.concat());
        let proxy = Self::default();
        tokio::spawn(proxy.clone().listen(listener, server));
        (proxy, proxied)
    }

    async fn listen(self, listener: TcpListener, server: Config) {
        for number in 0.. {
            let (client, _) = listener.accept().await.unwrap();
            let proxy = self.clone();
            let server = server.clone();
            tokio::spawn(async move {
                // While the server cannot be reached, the client's connection is closed.
                if let Ok((from_server, to_server)) = connect(&server).await {
                    client.set_nodelay(true).unwrap();
                    let (from_client, to_client) = client.into_split();
                    let requests = proxy.requests(number, Box::new(from_client), to_server);
                    let answers = proxy.answers(number, from_server, Box::new(to_client));
                    // When one end closes, both are closed.
                    tokio::select! { _ = requests => {}, _ = answers => {} }
                }
            });
        }
    }

    async fn requests(&self, number: usize, mut from: Reader, mut to: Writer) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 14];
        loop {
            let count = from.read(&mut buffer).await?;
            if count == 0 {
                return Ok(());
            }
            self.change(|hold| match hold {
                Hold::Next => Hold::Connection { number, has_caught: false },
                other => other,
            });
            to.write_all(&buffer[..count]).await?;
        }
    }

    async fn answers(&self, number: usize, mut from: Reader, mut to: Writer) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 14];
        loop {
            let count = from.read(&mut buffer).await?;
            if count == 0 {
                return Ok(());
            }
            self.change(|hold| match hold {
                Hold::Connection { number: held, .. } if held == number => {
                    Hold::Connection { number, has_caught: true }
                }
                other => other,
            });
            self.wait_until(
                |hold| !matches!(hold, Hold::Connection { number: held, .. } if held == number),
            )
            .await;
            to.write_all(&buffer[..count]).await?;
        }
    }

    /// Holds the responses to the connection that sends the next request.
    pub fn hold_next(&self) {
        self.change(|_| Hold::Next);
    }

    /// Waits until a response is held.
    pub async fn has_caught(&self) {
        self.wait_until(|hold| matches!(hold, Hold::Connection { has_caught: true, .. })).await;
    }

    pub fn release(&self) {
        self.change(|_| Hold::Nothing);
    }

    fn change(&self, change: impl FnOnce(Hold) -> Hold) {
        let mut hold = self.0.hold.lock().unwrap();
        let changed = change(*hold);
        if changed != *hold {
            *hold = changed;
            self.0.changed.notify_waiters();
        }
    }

    async fn wait_until(&self, reached: impl Fn(Hold) -> bool) {
        loop {
            let changed = self.0.changed.notified();
            if reached(*self.0.hold.lock().unwrap()) {
                return;
            }
            changed.await;
        }
    }
}

async fn connect(server: &Config) -> io::Result<(Reader, Writer)> {
    let port = server.get_ports().first().copied().unwrap_or(5432);
    match &server.get_hosts()[0] {
        Host::Tcp(host) => {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            stream.set_nodelay(true)?;
            let (reader, writer) = stream.into_split();
            Ok((Box::new(reader), Box::new(writer)))
        }
        Host::Unix(directory) => {
            let stream = UnixStream::connect(directory.join(format!(".s.PGSQL.{port}"))).await?;
            let (reader, writer) = stream.into_split();
            Ok((Box::new(reader), Box::new(writer)))
        }
    }
}
