//! The HTTP servers of the bridge, and clients that misbehave.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::Harness;

/// More than the connections that are served at a time send half a request, and then nothing.
#[tokio::test(flavor = "multi_thread")]
async fn half_requests_do_not_keep_others_out() {
    let harness = Harness::new().await;
    let bridge = harness.ready_bridge(&[]).await;
    let address = bridge.address();
    let mut halves = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: ").await.unwrap();
        halves.push(stream);
    }
    let request = "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let mut stream = TcpStream::connect(&address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // They were ended, not left to their clients.
    let mut rest = Vec::new();
    halves.remove(0).read_to_end(&mut rest).await.unwrap();
}
