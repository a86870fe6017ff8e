//! A TCP proxy that delays a server's answers. It uses threads, because tokio's timers have a resolution
//! of one millisecond.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::statistics::median;

/// Listens on a free port and forwards to `server`; a round trip takes `distance` longer. Returns the
/// port. The proxy runs until the process ends.
pub fn start(server: String, distance: Duration) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let pause = (distance / 2).saturating_sub(oversleep(distance / 2));
    thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(&server).unwrap());
            for stream in [&client, &server] {
                stream.set_nodelay(true).unwrap();
            }
            let (back_from, back_to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            forward(client, server, pause);
            forward(back_from, back_to, pause);
        }
    });
    port
}

/// Forwards bytes, each piece `pause` after its arrival, however many are in flight.
fn forward(mut from: TcpStream, mut to: TcpStream, pause: Duration) {
    let (sender, in_flight) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(count) = from.read(&mut buffer) {
            if count == 0 || sender.send((Instant::now(), buffer[..count].to_vec())).is_err() {
                break;
            }
        }
    });
    thread::spawn(move || {
        for (arrived, piece) in in_flight {
            thread::sleep((arrived + pause).saturating_duration_since(Instant::now()));
            if to.write_all(&piece).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}

/// How much longer than requested this machine sleeps.
fn oversleep(pause: Duration) -> Duration {
    let sleeps = (0..51).map(|_| {
        let started = Instant::now();
        thread::sleep(pause);
        started.elapsed().saturating_sub(pause).as_secs_f64()
    });
    Duration::from_secs_f64(median(sleeps.collect()))
}
