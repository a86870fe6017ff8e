//! It ends when it is told to, whatever hangs.

use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::{Call, Reply, World, message, room, sync};

/// A start that is told to stop while a call of it hangs.
async fn stopped_while_hanging(calls: fn(&Call) -> bool) {
    let world = World::new().await;
    let latch = CancellationToken::new();
    let hang = latch.clone();
    world
        .homeserver
        .calls
        .rule(move |call| calls(call).then(|| Reply::json(200, json!({})).after(&hang)));
    let mut bridge = world.bridge(&[]);
    world.homeserver.calls.until_count("the call that hangs", 1, calls).await;
    // Nothing but this ends it: no call is answered, none is given up by then.
    let before = world.homeserver.calls.count(|_| true);
    assert_eq!(bridge.stop().await, 0, "{}", bridge.log());
    assert_eq!(world.homeserver.calls.count(|_| true), before, "it went on");
    // Closed: the account is free at once.
    latch.cancel();
    world.homeserver.calls.no_rules();
    let bridge = world.bridge(&[("BRIDGE_TAKEOVER", "refuse")]);
    bridge.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_a_start_whichever_call_hangs() {
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
    let world = World::new().await;
    let mut bridge = world.ready_bridge(&[]).await;
    let mut connection = world.connection().await;
    // A run that fails, and then a database that hangs.
    let refuse = "CREATE FUNCTION public.no() RETURNS trigger LANGUAGE plpgsql
                      AS $$ BEGIN RAISE 'no'; END $$;
                  CREATE TRIGGER no BEFORE UPDATE ON webhook_bridge.sync_positions
                      FOR EACH ROW EXECUTE FUNCTION public.no()";
    connection.batch_execute(refuse).await.unwrap();
    world.homeserver.push(sync(&[("!p:x", room(&[message("$1")]))]));
    bridge.says("trying again in").await;
    let transaction = connection.transaction().await.unwrap();
    let lock = "LOCK TABLE matrix_sdk.accounts IN ACCESS EXCLUSIVE MODE";
    transaction.batch_execute(lock).await.unwrap();
    bridge.says("the store is still being reopened").await;
    assert_eq!(bridge.stop().await, 0, "{}", bridge.log());
    transaction.rollback().await.unwrap();
}
