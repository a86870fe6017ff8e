//! A dropped opener takes nothing, and an opener waits long enough for the owner's transaction.

use std::{
    future::{Future, poll_fn},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
    time::Duration,
};

use assert_matches::assert_matches;
use matrix_sdk_crypto::{CryptoStoreError, store::CryptoStore};
use matrix_sdk_postgres::{Error, OwnershipSettings, PostgresCryptoStore, Takeover, Timeouts};
use test_support::{
    Mode, eventually, number,
    proxy::{Action, Proxy},
};
use tokio::sync::oneshot;

use crate::{
    claims::is_claim,
    commit::{ProxiedStore, is_begin, is_commit},
};

/// A second proxy for an opener, and the URL through it.
fn second_proxy(proxied: &ProxiedStore) -> (Proxy, String) {
    let proxy = Proxy::start(format!("127.0.0.1:{}", proxied.server.port()));
    let url = proxy.url(&proxied.database.url(), proxied.server.port());
    (proxy, url)
}

/// The opener's `COMMIT` is lost, the opener is dropped, and then its connection works again.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_not_resolved_for_an_opener_that_was_dropped() {
    let proxied = ProxiedStore::new().await;
    proxied.set("first").await;
    let (proxy, url) = second_proxy(&proxied);
    let (lost, works) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let tries = Arc::new(AtomicUsize::new(0));
    let mut claiming = 0;
    proxy.rule({
        let (lost, works, tries) = (lost.clone(), works.clone(), tries.clone());
        move |message| {
            claiming = if is_claim(message) { message.backend } else { claiming };
            if works.load(SeqCst) {
                tries.fetch_add(usize::from(is_commit(message)), SeqCst);
                return Action::Pass;
            }
            if lost.load(SeqCst) || (claiming == message.backend && is_commit(message)) {
                lost.store(true, SeqCst);
                return Action::CutBefore;
            }
            Action::Pass
        }
    });
    let config = Mode::Plain
        .config(&url, "bot")
        .timeouts(Timeouts { retry: Duration::from_secs(2), ..Default::default() });
    let mut opening = Box::pin(PostgresCryptoStore::open_with_config(&config));
    tokio::select! {
        opened = &mut opening => panic!("{:?}", opened.is_ok()),
        () = eventually("COMMIT is lost", async || lost.load(SeqCst)) => {}
    }
    drop(opening);
    works.store(true, SeqCst);
    // An attempt that began before the drop may still be in progress.
    tokio::time::sleep(Duration::from_secs(3)).await;
    proxied.set("second").await;
    // The release of the handle's row is a transaction, too.
    assert!(tries.load(SeqCst) <= 1, "the claim was retried after its opener was dropped");
}

/// Dropped at each poll: after the drop it sends no `COMMIT`.
#[tokio::test]
async fn an_opener_dropped_before_its_commit_takes_nothing() {
    let proxied = ProxiedStore::new().await;
    let (proxy, url) = second_proxy(&proxied);
    let committing = Arc::new(AtomicBool::new(false));
    let mut claiming = 0;
    proxy.rule({
        let committing = committing.clone();
        move |message| {
            claiming = if is_claim(message) { message.backend } else { claiming };
            if claiming == message.backend && is_commit(message) {
                committing.store(true, SeqCst);
            }
            Action::Pass
        }
    });
    let config = Mode::Plain.config(&url, "bot");
    // The number of polls varies.
    for polls in (1..).flat_map(|polls| [polls; 4]) {
        let (mut opening, mut polled) =
            (Box::pin(PostgresCryptoStore::open_with_config(&config)), 0);
        poll_fn(|context| {
            polled += 1;
            let is_ready = opening.as_mut().poll(context).is_ready();
            if is_ready || polled == polls { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let was_sent = committing.load(SeqCst);
        drop(opening);
        // Waits for statements that were sent before the drop.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let saved = proxied.store.set_custom_value("key", b"still ours".to_vec()).await;
        if let Err(error) = saved {
            assert!(
                was_sent,
                "taken at poll {polls} by a COMMIT that was sent after the drop: {error}"
            );
            return;
        }
    }
}

/// The owner's `atomically` takes longer than the opener's statement timeout.
#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_waits_for_an_owner_within_atomically() {
    let proxied = ProxiedStore::new().await;
    let (begun, is_begun) = oneshot::channel();
    let (go_on, may_go_on) = oneshot::channel::<()>();
    let store = proxied.store.clone();
    let work = tokio::spawn(async move {
        let work = store.atomically(async {
            store.set_custom_value("key", b"value".to_vec()).await?;
            store.transaction().await?.query("SELECT 1", &[]).await?;
            begun.send(()).unwrap();
            may_go_on.await.unwrap();
            Ok::<_, CryptoStoreError>(())
        });
        work.await
    });
    is_begun.await.unwrap();
    let config = Mode::Plain.config(&proxied.database.url(), "bot");
    let config =
        config.timeouts(Timeouts { statement: Duration::from_millis(300), ..Default::default() });
    let opening = tokio::spawn(async move { PostgresCryptoStore::open_with_config(&config).await });
    let watcher = proxied.connect().await;
    let cancelled = || proxied.server.log().matches("due to statement timeout").count();
    eventually("the claim has timed out twice", async || cancelled() >= 2).await;
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    eventually("it waits again", async || number(&watcher, waits).await > 0).await;
    go_on.send(()).unwrap();
    work.await.unwrap().unwrap();
    opening.await.unwrap().unwrap();
}

/// `close()` during a slow reopening: the store is closed afterwards, and the account is free.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_closed_while_it_is_reopened_is_closed() {
    let proxied = ProxiedStore::new().await;
    proxied.set("first").await;
    proxied.store.close().await.unwrap();
    let is_sent = Arc::new(AtomicBool::new(false));
    let flag = is_sent.clone();
    proxied.proxy.rule(move |message| {
        let is_first = is_begin(message) && !flag.swap(true, SeqCst);
        if is_first { Action::Hold } else { Action::Pass }
    });
    let [reopening, closing] = [proxied.store.clone(), proxied.store.clone()];
    let reopening = tokio::spawn(async move { reopening.reopen().await });
    eventually("it is being reopened", async || is_sent.load(SeqCst)).await;
    let closing = tokio::spawn(async move { closing.close().await });
    proxied.proxy.release();
    reopening.await.unwrap().unwrap();
    closing.await.unwrap().unwrap();
    let saved = proxied.store.set_custom_value("key", b"second".to_vec()).await;
    assert_matches!(saved, Err(Error::StoreClosed));
    let config = Mode::Plain
        .config(&proxied.database.url(), "bot")
        .access(OwnershipSettings { takeover: Takeover::RefuseIfAlive, ..Default::default() });
    PostgresCryptoStore::open_with_config(&config).await.unwrap();
}
