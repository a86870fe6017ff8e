//! Random syncs: several senders, rooms and restarts, with syncs that are interrupted at any statement and
//! replayed.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use matrix_sdk_postgres::testing::PostgresServer;
use ruma::RoomId;
use test_support::{
    Mode, figure,
    machine::{Relay, encrypt, open_machine},
    proxy::{Action, Proxy},
    rounds, seeded,
};
use tokio::sync::Notify;

use crate::one_sync::{Events, bob, can_read, open_sender, sync};

const SENDERS: usize = 3;

/// Processes a sync after a restart, interrupted at its `cut`-th statement. Returns the number of statements if
/// the sync ended before.
async fn restart_and_sync(proxy: &Proxy, url: &str, events: &Events, cut: usize) -> Option<usize> {
    let store = Mode::Plain.open(url, "bob").await;
    let machine = open_machine(bob(), store.clone()).await;
    let now = Arc::new(Notify::new());
    let statements = Arc::new(AtomicUsize::new(0));
    let (signal, seen) = (now.clone(), statements.clone());
    proxy.rule(move |message| {
        if message.runs() && seen.fetch_add(1, SeqCst) + 1 == cut {
            signal.notify_one();
        }
        Action::Pass
    });
    let finished = tokio::select! {
        biased;
        () = now.notified() => None,
        result = sync(&store, &machine, events.clone(), true) => {
            result.unwrap();
            Some(statements.load(SeqCst))
        }
    };
    proxy.rule(|_| Action::Pass);
    finished
}

#[tokio::test(flavor = "multi_thread")]
async fn syncs_cut_at_random_lose_no_room_key() {
    let mut rng = seeded("random syncs");
    let server = PostgresServer::start().unwrap();
    let proxy = Proxy::start(format!("127.0.0.1:{}", server.port()));
    let url = proxy.url(&server.url(), server.port());
    let mut relay = Relay::default();
    {
        let store = Mode::Plain.open(&url, "bob").await;
        relay.serve(&open_machine(bob(), store).await).await;
    }
    let mut senders = Vec::new();
    for number in 0..SENDERS {
        senders.push(open_sender(&mut relay, number).await);
    }
    let (mut messages, mut cuts, mut longest) = (Vec::new(), 0, 10);
    let syncs = rounds(8, 200);
    for number in 0..syncs {
        for sender in &senders {
            for part in 0..rng.usize(0..3) {
                let room = format!("!{number}-{part}-{}:example.org", sender.user_id().localpart());
                let room_id = RoomId::parse(room).unwrap();
                relay.share(sender, &room_id, &[bob()]).await;
                messages.push((room_id.clone(), encrypt(sender, &room_id, "hello").await));
            }
        }
        let events = relay.take(bob());
        loop {
            // About half of the longest syncs are interrupted, and always the first one.
            let cut = if cuts == 0 { 1 } else { rng.usize(1..2 * longest + 1) };
            if let Some(statements) = restart_and_sync(&proxy, &url, &events, cut).await {
                longest = longest.max(statements);
                break;
            }
            cuts += 1;
        }
    }
    let machine = open_machine(bob(), Mode::Plain.open(&url, "bob").await).await;
    for (room_id, event) in &messages {
        assert!(can_read(&machine, room_id, event).await, "{room_id} cannot be read");
    }
    assert!(cuts > 0, "no sync was interrupted");
    figure("random syncs of several senders", syncs);
    figure("of these cut and sent again, times", cuts);
    figure("rooms readable after them", format!("{0} of {0}", messages.len()));
}
