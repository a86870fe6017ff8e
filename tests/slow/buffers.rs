//! The number of buffers that a point lookup reads does not grow with the database.

use matrix_sdk_postgres::{PostgresStores, testing};
use serde_json::Value;
use test_support::{Mode, connect};
use tokio_postgres::{Client, SimpleQueryMessage, types::Type};

const LOOKUP: &str = "megolm_inbound_sessions.get";
const BY_INFO: &str = "key_requests.by_info";

/// Buffers that may be read of the large database in addition to those of the small one.
const MORE_BUFFERS: i64 = 2;

/// Random keys of 32 bytes, like those of an encrypted account.
async fn fill_sessions(client: &Client, accounts: i64, sessions: i64) {
    let sql = format!(
        "TRUNCATE matrix_sdk.megolm_inbound_sessions;
         INSERT INTO matrix_sdk.megolm_inbound_sessions (account_id, backup_generation,
             sender_data_type, room_id, session_id, sender_key, data)
         SELECT account, 1, 1, sha256((i / 100)::text::bytea), sha256(i::text::bytea),
                sha256((i / 50)::text::bytea), sha512(i::text::bytea)
         FROM generate_series(1, {accounts}) account, generate_series(1, {sessions}) i;
         VACUUM ANALYZE matrix_sdk.megolm_inbound_sessions"
    );
    for statement in sql.split(';') {
        client.batch_execute(statement).await.unwrap();
    }
}

/// Runs one of the store's statements as a prepared one; returns its plan with ANALYZE and BUFFERS.
async fn explain(client: &Client, name: &str, values: &str) -> Value {
    let statements = PostgresStores::statement_texts("matrix_sdk").unwrap();
    let (_, text, types) = statements.iter().find(|(found, ..)| *found == name).unwrap();
    let types: Vec<&str> = types.iter().map(Type::name).collect();
    let prepare = format!("PREPARE explained ({}) AS {text}", types.join(", "));
    client.batch_execute(&prepare).await.unwrap();
    let sql = format!("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE explained ({values})");
    let answer = client.simple_query(&sql).await.unwrap();
    client.batch_execute("DEALLOCATE explained").await.unwrap();
    let plan = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    let plan: Value = serde_json::from_str(plan.unwrap()).unwrap();
    plan[0]["Plan"].clone()
}

/// The maximum number of buffers that a lookup of one of these sessions reads.
async fn buffers(client: &Client, account: i64, sessions: i64) -> i64 {
    let mut most = 0;
    for step in 0..20 {
        let session = 1 + step * (sessions - 1) / 19;
        let values =
            format!("{account}, sha256('{}'::bytea), sha256('{session}'::bytea)", session / 100);
        let plan = explain(client, LOOKUP, &values).await;
        assert_eq!(plan["Actual Rows"].as_f64(), Some(1.0), "{plan:#}");
        let read = |what: &str| plan[what].as_i64().unwrap();
        most = most.max(read("Shared Hit Blocks") + read("Shared Read Blocks"));
    }
    most
}

#[tokio::test]
async fn a_lookup_reads_two_buffers_more_at_most_however_large_the_database() {
    let database = testing::database().unwrap();
    let url = database.url();
    // Creates the tables, and the account with id 1.
    let _store = Mode::Plain.open(&url, "1").await;
    let client = connect(&url).await;

    fill_sessions(&client, 1, 100).await;
    let alone = buffers(&client, 1, 100).await;
    fill_sessions(&client, 10_000, 100).await;
    let among_others = buffers(&client, 5_000, 100).await;
    println!("100 sessions: {alone} buffers, in a database of 10 000 accounts {among_others}");
    assert!(among_others <= alone + MORE_BUFFERS, "{alone}, then {among_others} buffers");

    fill_sessions(&client, 1, 1_000).await;
    let few = buffers(&client, 1, 1_000).await;
    fill_sessions(&client, 1, 1_000_000).await;
    let many = buffers(&client, 1, 1_000_000).await;
    println!("1 000 sessions: {few} buffers, 1 000 000: {many}");
    assert!(many <= few + MORE_BUFFERS, "{few}, then {many} buffers");

    // Tests the measurement itself: without the index it exceeds the limit.
    let drop = "ALTER TABLE matrix_sdk.megolm_inbound_sessions
                    DROP CONSTRAINT megolm_inbound_sessions_pkey";
    client.batch_execute(drop).await.unwrap();
    fill_sessions(&client, 1, 1_000).await;
    assert!(buffers(&client, 1, 1_000).await > few + MORE_BUFFERS);
}

/// The scans at the leaves of the plan.
fn scans(plan: &Value) -> Vec<&Value> {
    match plan["Plans"].as_array() {
        Some(plans) => plans.iter().flat_map(scans).collect(),
        None => vec![plan],
    }
}

#[tokio::test]
async fn a_secret_request_is_found_by_its_info_in_one_row_of_an_index() {
    let database = testing::database().unwrap();
    let url = database.url();
    let _store = Mode::Plain.open(&url, "1").await;
    let client = connect(&url).await;
    let fill = "INSERT INTO matrix_sdk.key_requests
                    (account_id, request_id, info, sent_out, data)
                SELECT 1, sha256(i::text::bytea), sha256(('info ' || i)::bytea), i % 2 = 0, ''
                FROM generate_series(1, 10000) i";
    client.batch_execute(fill).await.unwrap();
    client.batch_execute("ANALYZE matrix_sdk.key_requests").await.unwrap();
    let plan = explain(&client, BY_INFO, "1, sha256('info 77'::bytea)").await;
    for scan in scans(&plan) {
        assert!(scan["Node Type"].as_str().unwrap().contains("Index"), "{plan:#}");
        assert_eq!(scan["Actual Rows"].as_f64(), Some(1.0), "{plan:#}");
        assert_eq!(scan["Rows Removed by Filter"].as_i64().unwrap_or(0), 0, "{plan:#}");
    }
}
