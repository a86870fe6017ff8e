//! The plans of statements on a large table, most of whose rows are delivered events.

use matrix_sdk_postgres::deadpool_postgres::tokio_postgres::types::Type;

use super::{
    Inbox, Value,
    gaps::FIRST_AFTER,
    queue::*,
    tests::{inbox, record, room, sync},
};

/// Two rooms of delivered events, of which some are old, and in each a few of the other states.
const FILL: &str = "
    INSERT INTO webhook_bridge.events
        (account, event_id, room_id, position, state, session_id, done_at, received_at)
    SELECT '@bot:x', '$' || i, CASE WHEN i % 2 = 0 THEN '!r:x' ELSE '!s:x' END, i,
           CASE WHEN i % 1000 > 5 THEN 'delivered' WHEN i % 1000 > 3 THEN 'failed'
                WHEN i % 1000 > 1 THEN 'waiting' ELSE 'pending' END,
           'S', now() - make_interval(secs => 100 * (30000 - i)),
           now() - make_interval(secs => 100 * (30000 - i))
    FROM generate_series(1, 30000) AS i;
    ANALYZE webhook_bridge.events;";

async fn plan(inbox: &Inbox, sql: &str, values: &[Value<'_>]) -> String {
    let connection = inbox.connection().await.unwrap();
    let rows = connection.query_typed(&format!("EXPLAIN {sql}"), values).await.unwrap();
    rows.iter().map(|row| row.get::<_, String>(0) + "\n").collect()
}

#[tokio::test]
async fn no_statement_reads_all_delivered_events() {
    let (inbox, _database) = inbox().await;
    inbox.connection().await.unwrap().batch_execute(FILL).await.unwrap();
    let (account, room): (Value<'_>, Value<'_>) = ((&"@bot:x", Type::TEXT), (&"!r:x", Type::TEXT));
    let plans = [
        plan(&inbox, COUNTS, std::slice::from_ref(&account)).await,
        plan(&inbox, PRUNE_FAILED, &[account.clone(), (&90i32, Type::INT4)]).await,
        plan(&inbox, PRUNE_DONE, &[account.clone(), (&30i32, Type::INT4), (&199i64, Type::INT8)])
            .await,
        plan(&inbox, FIRST_AFTER, &[account.clone(), room.clone(), (&100i64, Type::INT8)]).await,
        plan(&inbox, DUE, &[account, room, (&5f64, Type::FLOAT8), (&5i64, Type::INT8)]).await,
    ];
    for plan in &plans {
        assert!(!plan.contains("Seq Scan on events"), "{plan}");
        // Of an index on all events only what follows the room.
        assert!(!plan.contains("events_pkey") || plan.contains("event_id = "), "{plan}");
    }
    assert!(plans[3].contains("events_in_room"), "{}", plans[3]);
    assert!(plans[4].contains("events_waiting_by_age"), "{}", plans[4]);
}

#[tokio::test]
async fn the_newest_events_of_each_room_are_kept_and_old_ones_pruned() {
    let (inbox, _database) = inbox().await;
    let count = async |condition: &str| -> i64 {
        let sql = format!("SELECT count(*) FROM webhook_bridge.events WHERE {condition}");
        inbox.connection().await.unwrap().query_typed_one(&sql, &[]).await.unwrap().get(0)
    };
    let ids: Vec<_> = (0..250).map(|number| format!("${number:03}")).collect();
    let ids: Vec<_> = ids.iter().map(String::as_str).collect();
    record(&inbox, &sync("s1", vec![room(&ids)])).await;
    let states = "
        UPDATE webhook_bridge.events SET state = 'delivered', done_at = now() - interval '31 days';
        UPDATE webhook_bridge.events SET done_at = now() - interval '29 days' WHERE event_id = '$000';
        UPDATE webhook_bridge.events SET state = 'redacted' WHERE event_id = '$001';
        UPDATE webhook_bridge.events SET state = 'pending' WHERE event_id = '$002';
        UPDATE webhook_bridge.events SET state = 'failed' WHERE event_id IN ('$003', '$004');
        UPDATE webhook_bridge.events SET done_at = now() - interval '91 days'
        WHERE event_id IN ('$004', '$005', '$249');";
    inbox.connection().await.unwrap().batch_execute(states).await.unwrap();
    // Those from $001 to $049, except a pending one and a dead letter that is not old enough.
    assert_eq!(inbox.prune().await.unwrap(), 47);
    assert_eq!(count("event_id >= '$050'").await, 200);
    assert_eq!(count("event_id IN ('$000', '$002', '$003')").await, 3);
    assert_eq!(inbox.prune().await.unwrap(), 0);
}
