//! A link between the stores and their server that can stall, delay, hold and break. Data sent before a
//! stall is delivered after it, even if its sender has gone by then: unlike `test_support::proxy`, it buffers.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
};

/// The direction of a stream.
#[derive(Clone, Copy, Debug)]
pub enum Direction {
    ToServer,
    ToClient,
}

#[derive(Clone)]
pub struct Link {
    pub port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    /// In each direction: connections with a lower number stall.
    stalled: [watch::Sender<u64>; 2],
    connections: AtomicU64,
    delay: AtomicU64,
    /// Chooses the messages that are held; `None` once faults have ended.
    hold_rng: Mutex<Option<fastrand::Rng>>,
    held: AtomicU64,
    /// Changes when all connections are to break.
    cuts: watch::Sender<u64>,
    /// Changes when the clients' ends are to break, unnoticed by the server.
    client_cuts: watch::Sender<u64>,
}

impl Link {
    /// Forwards to a local port. Ends with the runtime.
    pub async fn to(port: u16, rng: fastrand::Rng) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shared = Arc::new(Shared {
            stalled: [watch::Sender::new(0), watch::Sender::new(0)],
            connections: AtomicU64::new(0),
            delay: AtomicU64::new(0),
            hold_rng: Mutex::new(Some(rng)),
            held: AtomicU64::new(0),
            cuts: watch::Sender::new(0),
            client_cuts: watch::Sender::new(0),
        });
        let link = Self { port: listener.local_addr().unwrap().port(), shared: shared.clone() };
        tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { continue };
                tokio::spawn(carry(client, port, shared.clone()));
            }
        });
        link
    }

    /// `new_ones`: whether new connections stall too. If not, a retry overtakes the first attempt.
    pub fn stall(&self, direction: Direction, new_ones: bool) {
        let count = self.shared.connections.load(SeqCst);
        self.shared.stalled[direction as usize].send_replace(if new_ones {
            u64::MAX
        } else {
            count
        });
    }

    pub fn resume(&self, direction: Direction) {
        self.shared.stalled[direction as usize].send_replace(0);
    }

    pub fn delay(&self, delay: Duration) {
        self.shared.delay.store(u64::try_from(delay.as_micros()).unwrap(), SeqCst);
    }

    /// Ends the holding of messages; returns the number of those that were held.
    pub fn release_all(&self) -> u64 {
        *self.shared.hold_rng.lock().unwrap() = None;
        self.shared.held.load(SeqCst)
    }

    pub fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    pub fn cut_clients(&self) {
        self.shared.client_cuts.send_modify(|cuts| *cuts += 1);
    }
}

impl Shared {
    /// How long a claim or `COMMIT` is held, if at all, so that messages of other connections overtake it.
    fn hold(&self, bytes: &[u8]) -> Option<Duration> {
        let has = |text: &[u8]| bytes.windows(text.len()).any(|part| part == text);
        let mut hold_rng = self.hold_rng.lock().unwrap();
        let rng = hold_rng.as_mut()?;
        let one_in = if has(b"claim(") { 5 } else { 200 };
        let held = rng.u32(0..one_in) == 0 && (one_in == 5 || has(b"COMMIT"));
        held.then(|| {
            self.held.fetch_add(1, SeqCst);
            Duration::from_millis(rng.u64(0..5000))
        })
    }
}

async fn carry(client: TcpStream, port: u16, shared: Arc<Shared>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    for stream in [&client, &server] {
        let _ = stream.set_nodelay(true);
    }
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    let number = shared.connections.fetch_add(1, SeqCst);
    let (sent, to_send) = mpsc::unbounded_channel();
    let (answered, to_answer) = mpsc::unbounded_channel();
    tokio::spawn(read_into_queue(from_client, sent, shared.clone(), true));
    tokio::spawn(write_from_queue(
        to_server,
        to_send,
        shared.clone(),
        (Direction::ToServer, number),
    ));
    tokio::spawn(read_into_queue(from_server, answered, shared.clone(), false));
    write_from_queue(to_client, to_answer, shared, (Direction::ToClient, number)).await;
}

/// Reads at once, even during a stall, as a network accepts what was sent.
async fn read_into_queue(
    mut from: OwnedReadHalf,
    queue: mpsc::UnboundedSender<Vec<u8>>,
    shared: Arc<Shared>,
    of_client: bool,
) {
    let (mut cuts, mut client_cuts) = (shared.cuts.subscribe(), shared.client_cuts.subscribe());
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            _ = cuts.changed() => return,
            _ = client_cuts.changed(), if of_client => return,
        };
        match read {
            Ok(0) | Err(_) => return,
            Ok(count) if queue.send(buffer[..count].to_vec()).is_err() => return,
            Ok(_) => {}
        }
    }
}

async fn write_from_queue(
    mut to: OwnedWriteHalf,
    mut queue: mpsc::UnboundedReceiver<Vec<u8>>,
    shared: Arc<Shared>,
    (direction, number): (Direction, u64),
) {
    let (mut cuts, mut client_cuts) = (shared.cuts.subscribe(), shared.client_cuts.subscribe());
    let mut stalled = shared.stalled[direction as usize].subscribe();
    let pass_all = async {
        loop {
            let bytes = queue.recv().await;
            let delay = shared.delay.load(SeqCst);
            let hold = bytes.as_ref().filter(|_| matches!(direction, Direction::ToServer));
            let hold = hold.and_then(|bytes| shared.hold(bytes)).unwrap_or_default();
            let wait = Duration::from_micros(delay) + hold;
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            // The end of the stream is delivered after the stall, too.
            let _ = stalled.wait_for(|before| number >= *before).await;
            match bytes {
                Some(bytes) if to.write_all(&bytes).await.is_ok() => {}
                _ => break,
            }
        }
    };
    tokio::select! {
        () = pass_all => {}
        _ = cuts.changed() => {}
        _ = client_cuts.changed(), if matches!(direction, Direction::ToClient) => {}
    }
}
