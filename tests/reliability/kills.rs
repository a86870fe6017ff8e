//! `kill -9` of the server and of the process, and futures that are dropped, at random moments of a
//! stream of saves.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::testing::{self, PostgresServer};
use test_support::{
    Mode,
    child_process::{self, ChildProcess},
    eventually, figure, milliseconds, rounds, seeded,
    stream::{Ledger, changes, stream},
};
use tokio::task::block_in_place;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_in_a_stream_of_saves_loses_nothing() {
    let mut rng = seeded("server killed");
    // The page cache survives a `kill -9`, so `fsync` would only slow the test down.
    let builder = PostgresServer::builder().setting("synchronous_commit", "on");
    let mut server = builder.start().unwrap();
    let database = server.create_database().unwrap();
    let store = Mode::Plain.open(&database.url(), "bot").await;
    let end = Arc::new(AtomicBool::new(false));
    let (saves, count) = stream(&store, &end);
    let kills = rounds(30, 200);
    for _ in 0..kills {
        let (before, down) = (milliseconds(&mut rng, 150), milliseconds(&mut rng, 100));
        let begin = count.load(SeqCst);
        eventually("saves continue", || async { count.load(SeqCst) > begin }).await;
        block_in_place(|| {
            std::thread::sleep(before);
            server.kill();
            std::thread::sleep(down);
            server.start_again().unwrap();
        });
    }
    end.store(true, SeqCst);
    let ledger = saves.await.unwrap();
    let checked = ledger.check(&Mode::Plain.open_read_only(&database.url(), "bot").await).await;
    assert!(checked > kills, "too few saves: {checked}");
    figure("server killed (kill -9), times", kills);
    figure("acknowledged saves checked after it", checked);
    ledger.assert_no_error();
}

/// Runs in the child process: saves until it is killed, and reports acknowledged saves.
async fn save_until_killed(task: &str) {
    let (begin, url) = task.split_once(' ').unwrap();
    let store = Mode::Plain.open(url, "bot").await;
    let mut ledger = Ledger { begun: begin.parse().unwrap(), ..Default::default() };
    loop {
        ledger.save(&store).await.unwrap();
        child_process::send(ledger.begun - 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_in_a_stream_of_saves_loses_nothing() {
    if let Some(task) = child_process::task() {
        return save_until_killed(&task).await;
    }
    let mut rng = seeded("process killed");
    let database = testing::database().unwrap();
    let url = database.url();
    drop(Mode::Plain.open(&url, "bot").await);
    let (kills, mut ledger) = (rounds(30, 200), Ledger::default());
    for _ in 0..kills {
        let name = "kills::a_process_killed_in_a_stream_of_saves_loses_nothing";
        let pause = milliseconds(&mut rng, 60);
        let task = format!("{} {url}", ledger.begun);
        let lines = block_in_place(|| {
            let mut child = ChildProcess::start(name, &task);
            let first = child.receive().expect("the child ended without a save");
            std::thread::sleep(pause);
            [vec![first], child.kill()].concat()
        });
        ledger.acknowledged.extend(lines.iter().map(|number| number.parse::<u64>().unwrap()));
        // One more save was in flight.
        ledger.begun = ledger.acknowledged.last().unwrap() + 2;
    }
    let checked = ledger.check(&Mode::Plain.open_read_only(&url, "bot").await).await;
    figure("process killed (kill -9), times", kills);
    figure("acknowledged saves checked after it", checked);
}

#[tokio::test(flavor = "multi_thread")]
async fn futures_dropped_in_a_stream_of_saves_leave_whole_saves_in_order() {
    let mut rng = seeded("futures dropped");
    let database = testing::database().unwrap();
    let store = Mode::Plain.open(&database.url(), "bot").await;
    let (drops, mut ledger) = (rounds(30, 200), Ledger::default());
    let mut dropped = 0;
    while dropped < drops {
        let number = ledger.begun;
        ledger.begun += 1;
        let limit = Duration::from_micros(rng.u64(0..3000));
        match tokio::time::timeout(limit, store.save_changes(changes(number))).await {
            Ok(saved) => {
                saved.unwrap();
                ledger.acknowledged.insert(number);
            }
            Err(_) => dropped += 1,
        }
    }
    ledger.save(&store).await.unwrap();
    let checked = ledger.check(&Mode::Plain.open_read_only(&database.url(), "bot").await).await;
    figure("futures dropped, times", drops);
    figure("acknowledged saves checked after it", checked);
}
