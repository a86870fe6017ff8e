//! What `doctor` cannot read, or finds wrong, is a problem: its exit code is not 0.

use matrix_sdk_crypto::store::CryptoStore;
use test_support::{eventually, number};

use crate::{
    doctor::{COMMAND, durable, status},
    support::Place,
};

/// A role that may do what a bot may, and the connection string with it.
async fn role(place: &Place) -> (String, String) {
    let role = format!("bot_{}", fastrand::u32(..));
    let sql = format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT USAGE ON SCHEMA matrix_sdk TO {role};
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA matrix_sdk TO {role};
         REVOKE INSERT, UPDATE, DELETE ON matrix_sdk.schema_migrations FROM {role}"
    );
    place.client().await.batch_execute(&sql).await.unwrap();
    let url = place.url();
    let host = url.split_once('@').unwrap().1;
    (role.clone(), format!("postgres://{role}:x@{host}"))
}

#[tokio::test]
async fn a_schema_that_the_role_cannot_read_is_a_problem() {
    let (_server, place) = durable();
    place.filled("bot").await.0.close().await.unwrap();
    let (role, url) = role(&place).await;
    let client = place.client().await;
    let doctor = || {
        let mut command = place.command(&COMMAND);
        command.env("DATABASE_URL", &url).env("STORE_PASSPHRASE", crate::support::PASSPHRASE);
        place.run_command(command)
    };
    let in_order = doctor().await.expect(0);
    assert_eq!(status(&in_order, "rights"), "ok");
    // The client's.
    assert!(in_order.out.contains("of other roles the transactions are not seen"), "{in_order:?}");
    for (right, missing, is_readable) in [
        ("USAGE ON SCHEMA matrix_sdk", "schema matrix_sdk", false),
        ("SELECT ON matrix_sdk.schema_migrations", "schema_migrations", false),
        ("UPDATE ON matrix_sdk.devices", "devices", true),
    ] {
        client.batch_execute(&format!("REVOKE {right} FROM {role}")).await.unwrap();
        let ran = doctor().await.expect(3);
        assert_eq!(status(&ran, "rights"), "problem", "{missing}");
        assert!(ran.out.contains(&format!("lacks rights on {missing}")), "{}", ran.out);
        if !is_readable {
            assert_eq!(status(&ran, "schema"), "problem", "{missing}");
            assert_eq!(status(&ran, "account"), "not_checked", "{missing}");
            assert_eq!(status(&ran, "rows decode"), "not_checked", "{missing}");
        }
        client.batch_execute(&format!("GRANT {right} TO {role}")).await.unwrap();
    }
    doctor().await.expect(0);

    // The server ends a session some time after its client has gone.
    let sessions = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{role}'");
    eventually("the sessions have ended", || async { place.number(&sessions).await == 0 }).await;
    // The first connection is let in, and the others are not.
    client.batch_execute(&format!("ALTER ROLE {role} CONNECTION LIMIT 2")).await.unwrap();
    let full = doctor().await.expect(3);
    assert_eq!(status(&full, "connection"), "ok");
    assert_eq!(status(&full, "pooler"), "problem");
}

/// Of an early checkout, whose tables have another form.
#[tokio::test]
async fn an_unreleased_schema_is_a_problem() {
    let (_server, place) = durable();
    drop(place.open("bot").await);
    let sql = "ALTER TABLE matrix_sdk.schema_migrations DROP COLUMN compatible_with";
    place.client().await.batch_execute(sql).await.unwrap();
    let ran = place.run_unlocked(&COMMAND).await.expect(3);
    assert_eq!(status(&ran, "schema"), "problem");
    assert_eq!(status(&ran, "rows decode"), "not_checked");
}

#[tokio::test]
async fn a_missing_index_is_a_problem() {
    let (_server, place) = durable();
    drop(place.filled("bot").await);
    let client = place.client().await;
    for (sql, index) in [
        ("DROP INDEX matrix_sdk.key_requests_by_info", "key_requests_by_info"),
        (
            "ALTER TABLE matrix_sdk.withheld_sessions DROP CONSTRAINT withheld_sessions_pkey",
            "withheld_sessions_pkey",
        ),
    ] {
        assert!(!place.run_unlocked(&COMMAND).await.out.contains(index));
        client.batch_execute(sql).await.unwrap();
        let ran = place.run_unlocked(&COMMAND).await.expect(3);
        assert_eq!(status(&ran, "tables"), "problem");
        assert!(ran.out.contains(&format!("the index {index} is missing")), "{}", ran.out);
    }
}

#[tokio::test]
async fn more_dead_rows_than_live_ones_are_a_warning() {
    let (_server, place) = durable();
    drop(place.filled("bot").await);
    let client = place.client().await;
    let sql = "CREATE TABLE matrix_sdk.filler (id int) WITH (autovacuum_enabled = off);
               INSERT INTO matrix_sdk.filler SELECT generate_series(1, 10100)";
    client.batch_execute(sql).await.unwrap();
    client.batch_execute("DELETE FROM matrix_sdk.filler").await.unwrap();
    let dead = "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'filler'";
    eventually("they are counted", || async { place.number(dead).await > 10_000 }).await;
    let ran = place.run_unlocked(&COMMAND).await.expect(0);
    assert_eq!(status(&ran, "dead rows"), "warning");
    assert!(ran.out.contains("filler (10100 dead"), "{}", ran.out);
}

/// The keys of accounts that are encrypted are sealed in the log, too, whichever account is asked about.
#[tokio::test]
async fn the_log_is_judged_by_all_accounts() {
    let (_server, place) = durable();
    drop(place.open("bot").await);
    let name = place.database.name();
    let sql = format!("ALTER DATABASE {name} SET log_min_duration_statement = 1000");
    place.client().await.batch_execute(&sql).await.unwrap();
    let unnamed = ["doctor", "--json"];
    assert_eq!(status(&place.run(&unnamed).await.expect(0), "server's log"), "warning");
    let plain = place.config("plain");
    drop(matrix_sdk_postgres::PostgresCryptoStore::open_with_config(&plain).await.unwrap());
    assert_eq!(status(&place.run(&unnamed).await.expect(3), "server's log"), "problem");
}

/// One for all that is asked on the tool's own connection, one for the rows, two to find a pooler.
#[tokio::test]
async fn few_logins_are_made() {
    let (_server, place) = durable();
    place.filled("bot").await.0.close().await.unwrap();
    let client = place.client().await;
    let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                  AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
    let logins = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()";
    let alone = || async {
        let ended = || async { number(&client, others).await == 0 };
        eventually("the sessions have ended", ended).await;
        number(&client, logins).await
    };
    let before = alone().await;
    place.run_unlocked(&COMMAND).await.expect(0);
    assert_eq!(alone().await - before, 4);
}
