//! Messages that the webhook rejects, over restarts.

use crate::support::{Harness, Reply, message, room, sync};

/// A dead letter has one attempt per process, so that it does not delay newer messages of its room.
#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_message_is_tried_once_after_each_start() {
    let harness = Harness::new().await;
    let mut bridge = harness.ready_bridge(&[]).await;
    let webhook = &harness.webhook.requests;
    webhook.rule(|delivery| (delivery.body == "bad").then(|| Reply::text(400, "no")));
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$bad")]))]));
    harness.webhook.until_received(&["bad"]).await;
    assert_eq!(bridge.stop().await, 0);
    let dead_letter = "
        UPDATE webhook_bridge.events SET state = 'failed', rejections = 5, retry_at = NULL,
            failure = 'rejected', done_at = now() - interval '80 days' WHERE event_id = '$bad'";
    harness.connection().await.batch_execute(dead_letter).await.unwrap();
    let attempts = || webhook.count(|delivery| delivery.body == "bad");
    let before = attempts();

    let bridge = harness.bridge(&[]);
    bridge.ready().await;
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$next")]))]));
    harness.webhook.until_received(&["next"]).await;
    assert_eq!(attempts(), before + 1);
    // It is kept as long as before.
    let failed = "SELECT count(*) FROM webhook_bridge.events
        WHERE event_id = '$bad' AND state = 'failed' AND done_at < now() - interval '79 days'";
    assert_eq!(harness.number(failed).await, 1);

    harness.restart_run(&bridge, || ()).await;
    harness.homeserver.push(sync(&[("!p:x", room(&[message("$last")]))]));
    harness.webhook.until_received(&["last"]).await;
    assert_eq!(attempts(), before + 1);
}
