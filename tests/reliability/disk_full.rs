//! A full disk: by tables, and by the write-ahead log. Needs root, for a small file system.

use std::path::Path;

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{PostgresCryptoStore, testing::PostgresServer};
use test_support::{
    Mode,
    directory::Directory,
    disk::Disk,
    eventually, figure,
    privileges::{has_privileges_for, run},
    stream::{Ledger, reopen, stream},
};
use tokio::task::block_in_place;

/// Moves the write-ahead log into another directory, which must not exist.
fn move_log(server: &mut PostgresServer, to: &Path) {
    let log = server.data_directory().join("pg_wal");
    server.stop();
    run(&format!("mv {} {}", log.display(), to.display()));
    std::os::unix::fs::symlink(to, &log).unwrap();
    server.start_again().unwrap();
}

/// Saves with a large value each time, until an error is returned.
async fn save_until_refused(store: &PostgresCryptoStore, ledger: &mut Ledger) -> String {
    for number in 0..10_000 {
        // Random bytes, which cannot be compressed.
        let value: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(20_000).collect();
        if let Err(error) = store.set_custom_value(&format!("large {number}"), value).await {
            return format!("{error:?}");
        }
        if let Err(error) = ledger.save(store).await {
            return error;
        }
    }
    panic!("the disk was never full");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_full_of_tables_is_reported_and_nothing_is_lost() {
    if !has_privileges_for("a full disk") {
        return;
    }
    let disk = Disk::new("200m");
    let home = disk.path().join("server");
    let mut server = PostgresServer::builder()
        .setting("synchronous_commit", "on")
        .data_directory(&home)
        .start()
        .unwrap();
    // The log is on another disk, so that only tables fill this one.
    let elsewhere = Directory::new();
    move_log(&mut server, &elsewhere.0);

    let store = Mode::Plain.open(&server.url(), "bot").await;
    let mut ledger = Ledger::default();
    ledger.save(&store).await.unwrap();
    block_in_place(|| disk.fill());
    let error = save_until_refused(&store, &mut ledger).await;
    assert!(error.contains("53100"), "{error}");
    block_in_place(|| disk.relieve());
    reopen(&store).await;
    ledger.save(&store).await.unwrap();
    let checked = ledger.check(&Mode::Plain.open_read_only(&server.url(), "bot").await).await;
    figure("disk full of tables: reported (53100); acknowledged saves checked", checked);
    drop(server);
}

/// Without space for its log the server panics and cannot start; the store retries.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_full_of_log_stops_the_server_and_nothing_is_lost() {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    };
    if !has_privileges_for("a full disk") {
        return;
    }
    let disk = Disk::new("100m");
    let mut server = PostgresServer::builder().setting("synchronous_commit", "on").start().unwrap();
    move_log(&mut server, &disk.path().join("pg_wal"));
    let store = Mode::Plain.open(&server.url(), "bot").await;
    let end = Arc::new(AtomicBool::new(false));
    let (saves, count) = stream(&store, &end);
    eventually("the bot saves", || async { count.load(SeqCst) > 20 }).await;
    let other = Mode::Plain.open(&server.url(), "other").await;
    block_in_place(|| disk.fill());
    let large = save_until_refused(&other, &mut Ledger::default()).await;
    println!("the other bot: {large}");
    eventually("the server panics", || async { server.log().contains("PANIC") }).await;
    let before = count.load(SeqCst);
    block_in_place(|| {
        disk.relieve();
        // The server ends by itself after some time.
        let started = std::time::Instant::now();
        while count.load(SeqCst) == before {
            server.start_again().unwrap();
            assert!(started.elapsed().as_secs() < 60, "no save succeeds again");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    });
    end.store(true, SeqCst);
    let ledger = saves.await.unwrap();
    let checked = ledger.check(&Mode::Plain.open_read_only(&server.url(), "bot").await).await;
    figure("disk full of log, server panicked; acknowledged saves checked", checked);
    drop(server);
}
