//! `COMMIT` waits for a synchronous standby that is down: the caller's wait is bounded, the store does not cancel
//! the server's wait, and a wait that is cancelled by someone else is not an acknowledgement.

use std::time::Duration;

use matrix_sdk_crypto::{CryptoStoreError, store::CryptoStore};
use matrix_sdk_postgres::{PostgresCryptoStore, Timeouts, testing::PostgresServer};
use test_support::{
    Mode, connect, eventually, figure, number,
    standby::{Cancelling, wait_for_standby},
    stream::{Ledger, changes, reopen},
    without_heartbeats,
};
use tokio_postgres::Client;

struct Bot {
    server: PostgresServer,
    url: String,
    admin: Client,
    store: PostgresCryptoStore,
    ledger: Ledger,
}

/// `defaults`: settings of the sessions.
async fn bot(defaults: &str) -> Bot {
    let server = PostgresServer::builder().setting("synchronous_commit", "on").start().unwrap();
    let url = server.url();
    // The test's own transactions do not wait for a standby.
    let admin = connect(&url).await;
    admin.batch_execute("SET synchronous_commit = local").await.unwrap();
    admin.batch_execute(defaults).await.unwrap();
    let second = Duration::from_secs(1);
    let timeouts = Timeouts { statement: second, retry: 4 * second, ..Default::default() };
    let config = Mode::Plain.config(&url, "bot").timeouts(timeouts);
    let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
    let mut ledger = Ledger::default();
    ledger.save(&store).await.unwrap();
    wait_for_standby(&admin, "ghost").await;
    Bot { server, url, admin, store, ledger }
}

impl Bot {
    /// Ends the waiting for a standby; asserts that the store continues.
    async fn assert_continues(mut self) {
        wait_for_standby(&self.admin, "").await;
        reopen(&self.store).await;
        self.ledger.save(&self.store).await.unwrap();
        self.ledger.check(&Mode::Plain.open_read_only(&self.url, "bot").await).await;
    }
}

const CANCELLED: &str = "canceling wait for synchronous replication";

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_waits_for_a_dead_standby_is_bounded_and_not_cancelled() {
    let mut bot = bot("").await;
    let started = std::time::Instant::now();
    let saved = tokio::time::timeout(Duration::from_secs(90), bot.ledger.save(&bot.store)).await;
    saved.expect("the save has no time limit").expect_err("acknowledged without a standby");
    figure("COMMIT without its standby, returned after", format!("{:.1?}", started.elapsed()));
    assert!(!bot.server.log().contains(CANCELLED), "the wait was cancelled");
    bot.assert_continues().await;
}

/// After a cancelled wait the server sends a warning and success, although the commit is on one server only.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_wait_for_the_standby_is_not_an_acknowledgement() {
    no_acknowledgement("").await;
    // With this setting the server does not send the warning.
    no_acknowledgement("ALTER DATABASE postgres SET client_min_messages = error").await;
}

async fn no_acknowledgement(defaults: &str) {
    let mut bot = bot(defaults).await;
    let cancelling = Cancelling::start(&bot.url);
    let saved = tokio::time::timeout(Duration::from_secs(90), bot.ledger.save(&bot.store)).await;
    assert!(cancelling.stop().await > 0, "nothing waited");
    assert!(bot.server.log().contains(CANCELLED));
    saved.expect("the save has no time limit").expect_err("a cancelled wait was acknowledged");
    bot.assert_continues().await;
}

/// Only the commit's wait is cancelled. The query for the outcome waits too, and finds it committed.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_wait_was_cancelled_is_counted_once_and_not_repeated() {
    let server = PostgresServer::builder().setting("synchronous_commit", "on").start().unwrap();
    let admin = connect(&server.url()).await;
    admin.batch_execute("SET synchronous_commit = local").await.unwrap();
    // Only saves wait, without a time limit.
    let minute = Duration::from_secs(60);
    let config = Mode::Plain.config(&server.url(), "bot").access(without_heartbeats());
    let config =
        config.timeouts(Timeouts { statement: minute, retry: minute, ..Default::default() });
    let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
    let mut ledger = Ledger::default();
    ledger.save(&store).await.unwrap();
    let before = store.commit_count().await.unwrap() - ledger.begun;
    for within in [false, true] {
        wait_for_standby(&admin, "ghost").await;
        let save = ledger.begun;
        ledger.begun += 1;
        let saving = tokio::spawn({
            let store = store.clone();
            async move {
                if !within {
                    return store.save_changes(changes(save)).await.map_err(Into::into);
                }
                let work = store.atomically(async {
                    store.save_changes(changes(save)).await?;
                    // Begins the transaction before its commit, and makes it non-repeatable.
                    store.transaction().await?.query("SELECT 1", &[]).await?;
                    Ok::<_, CryptoStoreError>(())
                });
                work.await
            }
        });
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        eventually("the commit waits", || async { number(&admin, waiting).await == 1 }).await;
        let cancelled = server.log().matches(CANCELLED).count();
        let cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity \
                      WHERE wait_event = 'SyncRep'";
        assert_eq!(number(&admin, cancel).await, 1);
        eventually("the wait is over", async || {
            server.log().matches(CANCELLED).count() > cancelled
        })
        .await;
        eventually("the query for the outcome waits", || async {
            number(&admin, waiting).await == 1
        })
        .await;
        assert!(!saving.is_finished(), "acknowledged before a standby has it");
        wait_for_standby(&admin, "").await;
        let saved: Result<(), CryptoStoreError> = saving.await.unwrap();
        saved.unwrap_or_else(|error| panic!("within a scope: {within}: {error:?}"));
        ledger.acknowledged.insert(save);
        // After another comparison of the count, too.
        ledger.save(&store).await.unwrap();
        let commits = store.commit_count().await.unwrap() - before;
        assert_eq!(commits, u64::try_from(ledger.acknowledged.len()).unwrap(), "within: {within}");
    }
    let checked = ledger.check(&Mode::Plain.open_read_only(&server.url(), "bot").await).await;
    assert_eq!(u64::try_from(checked).unwrap(), ledger.begun);
}

/// The warning about a cancelled wait is attributed to a connection: it does not affect a commit on another server.
#[tokio::test(flavor = "multi_thread")]
async fn a_wait_cancelled_on_another_server_makes_no_outcome_unknown() {
    let Bot { server: other, admin, store: waiting, mut ledger, .. } = bot("").await;
    let server = PostgresServer::builder();
    let server = server.setting("log_min_duration_statement", "0").start().unwrap();
    let config = Mode::Plain.config(&server.url(), "bot").access(without_heartbeats());
    let store = PostgresCryptoStore::open_with_config(&config).await.unwrap();
    store.set_custom_value("key", b"first".to_vec()).await.unwrap();
    let client = connect(&server.url()).await;
    client.batch_execute("BEGIN; LOCK TABLE matrix_sdk.custom_values").await.unwrap();
    let saving =
        tokio::spawn(async move { store.set_custom_value("key", b"second".to_vec()).await });
    let blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    eventually("the transaction is sent", async || number(&client, blocked).await > 0).await;
    let _saving = tokio::spawn(async move { ledger.save(&waiting).await });
    let cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity \
                  WHERE wait_event = 'SyncRep'";
    eventually("a wait is cancelled", async || number(&admin, cancel).await > 0).await;
    eventually("the server has logged it", async || other.log().contains(CANCELLED)).await;
    // The store that gets the warning queries the outcome of its commit.
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    eventually("the query for the outcome waits", async || number(&admin, waiting).await > 0).await;
    client.batch_execute("COMMIT").await.unwrap();
    saving.await.unwrap().unwrap();
    // The outcome of a commit is queried with a fence.
    let executed = |text: &str| {
        let is_executed = |entry: &&str| entry.contains(" ms  execute ") && entry.contains(text);
        server.log().split("LOG: ").filter(is_executed).count()
    };
    assert!(executed("guard(") > 0);
    assert_eq!(executed("fence("), 0);
}
