//! Rule 19: every hot query uses an index at 500 000 rows.

mod fill;

use std::fmt::Write as _;

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{PostgresStores, testing};
use test_support::{Mode, connect};
use tokio_postgres::{Client, types::Type};

use self::fill::{ACCOUNTS, fill};

/// Statements that read a whole account. For an account with most of the rows a sequential scan is right.
const WHOLE_ACCOUNT: [&str; 14] = [
    "devices.few",
    "devices.keys",
    "megolm_inbound_sessions.few",
    "megolm_inbound_sessions.keys",
    "megolm_inbound_sessions.senders",
    "message_hashes.keys",
    "olm_sessions.keys",
    "user_identities.few",
    "user_identities.keys",
    // A page at a time.
    "megolm_inbound_sessions.after",
    "megolm_inbound_sessions.all",
    "megolm_inbound_sessions.counts",
    "pending_key_bundles.all",
    "tracked_users.all",
];

/// This statement reads the statistics, not the rows.
const STATISTICS: &str = "size.estimate";

/// A table of a few rows, one for each migration.
const MIGRATIONS: &str = "Seq Scan on schema_migrations";

/// In the planner's units. Scanning the large account through an index costs 10 000 or more.
const MAX_COST: f64 = 3_000.0;

struct Plan {
    statement: &'static str,
    text: String,
}

impl Plan {
    /// The estimated total cost: `(cost=0.42..8.44 rows=…`.
    fn cost(&self) -> f64 {
        let (_, cost) = self.text.split_once("cost=").unwrap();
        let (_, cost) = cost.split_once("..").unwrap();
        cost.split(' ').next().unwrap().parse().unwrap()
    }
}

/// A parameter of this type. Keys exist in the tables.
fn literal(ty: &Type) -> &'static str {
    match *ty {
        Type::BYTEA => "decode(md5('7'), 'hex')",
        Type::BYTEA_ARRAY => "ARRAY[decode(md5('7'), 'hex'), decode(md5('8'), 'hex'), '\\x01']",
        Type::INT2 => "1::int2",
        Type::INT2_ARRAY => "'{1,2,4}'::int2[]",
        Type::INT4_ARRAY => "'{1,2,4}'::int4[]",
        Type::BOOL_ARRAY => "'{t,f,t}'::bool[]",
        Type::INT8 => "100::int8",
        Type::INT8_ARRAY => "'{1,2,4}'::int8[]",
        Type::FLOAT8 => "500::float8",
        Type::BOOL => "true",
        Type::TEXT => "'name'",
        Type::TEXT_ARRAY => "'{devices,olm_sessions}'::text[]",
        ref other => panic!("no literal for {other}"),
    }
}

/// Explains every statement of a store, as a prepared statement with a plan of this kind.
async fn explain(client: &Client, mode: &str, account: i64) -> Vec<Plan> {
    let mode = format!("DISCARD PLANS; SET plan_cache_mode = {mode}");
    client.batch_execute(&mode).await.unwrap();
    let mut plans = Vec::new();
    for (statement, text, types) in PostgresStores::statement_texts("matrix_sdk").unwrap() {
        let names: Vec<&str> = types.iter().map(Type::name).collect();
        // Heartbeats do not belong to an account.
        let of_account = types[0] == Type::INT8;
        let mut values =
            if of_account { account.to_string() } else { literal(&types[0]).to_owned() };
        for ty in &types[1..] {
            write!(values, ", {}", literal(ty)).unwrap();
        }
        let prepare = format!("PREPARE explained ({}) AS {text}", names.join(", "));
        client.batch_execute(&prepare).await.unwrap();
        let rows =
            client.query(&format!("EXPLAIN EXECUTE explained ({values})"), &[]).await.unwrap();
        let lines: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
        plans.push(Plan { statement, text: lines.join("\n") });
        client.batch_execute("DEALLOCATE explained").await.unwrap();
    }
    plans
}

/// The plans with a sequential scan, or with a high cost, where they should not.
fn faults<'a>(plans: &'a [Plan], may_read_all: &[&str]) -> Vec<&'a Plan> {
    let hot =
        |plan: &&Plan| plan.statement != STATISTICS && !may_read_all.contains(&plan.statement);
    plans
        .iter()
        .filter(hot)
        .filter(|plan| {
            let text = plan.text.replace(MIGRATIONS, "");
            text.contains("Seq Scan on ") || plan.cost() > MAX_COST
        })
        .collect()
}

fn assert_indexed(plans: &[Plan], kind: &str, may_read_all: &[&str]) {
    let faults = faults(plans, may_read_all);
    let texts: Vec<_> =
        faults.iter().map(|plan| format!("{}\n{}\n", plan.statement, plan.text)).collect();
    assert!(texts.is_empty(), "{kind}: these do not use an index:\n{}", texts.join("\n"));
}

/// One test, because filling the tables takes most of the time.
#[tokio::test]
async fn every_hot_query_uses_an_index_at_500_000_rows() {
    let database = testing::database().unwrap();
    let url = database.url();
    // Creates the tables, and the account with id 1.
    let store = Mode::Plain.open(&url, "1").await;
    let client = connect(&url).await;
    fill(&client).await;

    let (large, small) = (1, ACCOUNTS / 2);
    // A prepared statement gets custom plans five times, then perhaps a generic plan.
    let plans = explain(&client, "force_generic_plan", large).await;
    assert_indexed(&plans, "any account", &[]);
    let plans = explain(&client, "force_custom_plan", small).await;
    assert_indexed(&plans, "a small account", &[]);
    let plans = explain(&client, "force_custom_plan", large).await;
    assert_indexed(&plans, "the large account", &WHOLE_ACCOUNT);
    assert!(plans.len() > 50, "only {} statements", plans.len());

    // The store works with these rows.
    let devices = store.get_user_devices(ruma::user_id!("@nobody:example.org")).await.unwrap();
    assert!(devices.is_empty());

    // Tests the check itself: without the indexes it finds these statements.
    let drop = "ALTER TABLE matrix_sdk.devices DROP CONSTRAINT devices_pkey;
                DROP INDEX matrix_sdk.megolm_inbound_sessions_by_sender;
                DROP INDEX matrix_sdk.megolm_inbound_sessions_by_backup;
                DROP INDEX matrix_sdk.key_requests_unsent;
                -- The statements must still be explainable.
                CREATE UNIQUE INDEX ON matrix_sdk.devices (device_id, user_id, account_id)";
    client.batch_execute(drop).await.unwrap();
    let plans = explain(&client, "force_custom_plan", large).await;
    let found: Vec<_> = faults(&plans, &WHOLE_ACCOUNT).iter().map(|plan| plan.statement).collect();
    for statement in [
        "devices.by_user",
        "key_requests.unsent",
        "megolm_inbound_sessions.by_sender",
        "megolm_inbound_sessions.for_backup",
    ] {
        assert!(found.contains(&statement), "{statement} is not among {found:?}");
    }
}
