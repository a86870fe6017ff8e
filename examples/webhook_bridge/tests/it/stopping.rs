//! SIGTERM stops the bridge even while calls hang, and a killed one is not waited for.

use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::{Bridge, Call, Harness, Reply, message, room, sync};

/// Stop the bridge while a call of its startup hangs.
async fn stopped_while_hanging(calls: fn(&Call) -> bool) {
    let harness = Harness::new().await;
    let latch = CancellationToken::new();
    let hang = latch.clone();
    harness
        .homeserver
        .calls
        .rule(move |call| calls(call).then(|| Reply::json(200, json!({})).after(&hang)));
    let mut bridge = harness.bridge(&[]);
    harness.homeserver.calls.until_count("the call that hangs", 1, calls).await;
    // No call gets a response or times out before the stop.
    let before = harness.homeserver.calls.count(|_| true);
    assert_eq!(bridge.stop().await, 0, "{}", bridge.log());
    assert_eq!(harness.homeserver.calls.count(|_| true), before, "further calls were sent");
    // The account was released: `refuse` would fail if the owner were alive.
    latch.cancel();
    harness.homeserver.calls.clear_rules();
    let bridge = harness.bridge(&[("BRIDGE_TAKEOVER", "refuse")]);
    bridge.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_a_start_with_a_hanging_call() {
    let all: [fn(&Call) -> bool; 5] = [
        |call| call.is("GET", "versions"),
        |call| call.is("POST", "login"),
        |call| call.is("POST", "keys/query"),
        |call| call.method == "GET" && call.path.contains("account_data"),
        |call| call.method == "PUT" && call.path.contains("account_data"),
    ];
    futures_util::future::join_all(all.map(stopped_while_hanging)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_a_bridge_whose_store_cannot_be_reopened() {
    let harness = Harness::new().await;
    let mut bridge = harness.ready_bridge(&[]).await;
    let mut connection = harness.connection().await;
    // Make a run fail, then make the database hang.
    let refuse = "CREATE FUNCTION public.no() RETURNS trigger LANGUAGE plpgsql
                      AS $$ BEGIN RAISE 'no'; END $$;
                  CREATE TRIGGER no BEFORE UPDATE ON webhook_bridge.sync_positions
                      FOR EACH ROW EXECUTE FUNCTION public.no()";
    connection.batch_execute(refuse).await.unwrap();
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$1")]))]));
    bridge.until_logged("trying again in").await;
    let transaction = connection.transaction().await.unwrap();
    let lock = "LOCK TABLE matrix_sdk.accounts IN ACCESS EXCLUSIVE MODE";
    transaction.batch_execute(lock).await.unwrap();
    bridge.until_logged("the store is still being reopened").await;
    assert_eq!(bridge.stop().await, 0, "{}", bridge.log());
    transaction.rollback().await.unwrap();
}

/// How the heartbeat of a killed bridge is changed: it does not expire within the test.
const ALIVE: &str = "alive_until = clock_timestamp() + interval '1 hour'";

async fn kill(harness: &Harness, bridge: &mut Bridge, change: &str) {
    bridge.kill().await;
    let sql = format!("UPDATE matrix_sdk.heartbeats SET {change}");
    harness.connection().await.batch_execute(&sql).await.unwrap();
}

/// A standby logs that it waits before it polls for the first time.
async fn ready_without_waiting(bridge: &Bridge) {
    bridge.ready().await;
    assert!(!bridge.log().contains("waiting until it is free"), "{}", bridge.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_does_not_wait_for_one_that_was_killed() {
    let harness = Harness::new().await;
    let mut bridge = harness.bridge(&[]);
    bridge.ready().await;
    kill(&harness, &mut bridge, ALIVE).await;
    let mut bridge = harness.bridge(&[]);
    ready_without_waiting(&bridge).await;

    // As after a restart on another machine: its heartbeat decides.
    let elsewhere = format!("{ALIVE}, host = sha256('another machine')");
    kill(&harness, &mut bridge, &elsewhere).await;
    let standby = harness.bridge(&[]);
    standby.until_logged("waiting until it is free").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_does_not_wait_for_its_own_instance() {
    let harness = Harness::new().await;
    let (first, second) = ([("STORE_INSTANCE", "bot-0")], [("STORE_INSTANCE", "bot-1")]);
    let mut bridge = harness.bridge(&first);
    bridge.ready().await;
    let elsewhere = format!("{ALIVE}, host = sha256('another machine')");
    kill(&harness, &mut bridge, &elsewhere).await;
    let standby = harness.bridge(&second);
    standby.until_logged("waiting until it is free").await;
    drop(standby);
    ready_without_waiting(&harness.bridge(&first)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_that_a_bridge_supersedes_is_counted_and_ends() {
    let harness = Harness::new().await;
    let mut first = harness.ready_bridge(&[]).await;
    let immediate = [("BRIDGE_TAKEOVER", "immediate")];
    let mut second = harness.bridge(&immediate);
    second.ready().await;
    assert_eq!(second.metric("takeovers_total").await, Some(1.0));
    assert!(second.log().contains("taking it over"), "{}", second.log());
    assert_eq!(first.ended().await, 7, "{}", first.log());
    assert_eq!(second.stop().await, 0);
    let third = harness.bridge(&immediate);
    third.ready().await;
    assert_eq!(third.metric("takeovers_total").await, Some(0.0));
}
