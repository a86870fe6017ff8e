//! `migrate`.

use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::PostgresCryptoStore;

use crate::support::{PASSPHRASE, Place};

#[tokio::test]
async fn a_schema_is_looked_at_tried_and_made() {
    let place = Place::new();
    let status = place.run(&["migrate", "status"]).await.expect(3).out;
    assert!(status.contains("does not exist yet") && status.contains("pending: 1 initial"));
    let tried = place.run(&["migrate", "--dry-run"]).await.expect(0).out;
    assert!(tried.contains("taken back") && !tried.contains("must be upgraded"), "{tried}");
    assert_eq!(place.run(&["migrate", "status", "--json"]).await.expect(3).json()["exists"], false);

    let made = place.run(&["migrate"]).await.expect(0).out;
    assert!(made.contains("crypto_store  version 1"), "{made}");
    let status = place.run(&["migrate", "status", "--json"]).await.expect(0).json();
    assert_eq!(status["parts"][0]["pending"].as_array().unwrap().len(), 0);
    assert_eq!(place.run(&["migrate"]).await.expect(0).out, "nothing was pending\n");
    // No account was made.
    assert_eq!(place.number("SELECT count(*) FROM matrix_sdk.accounts").await, 0);
}

/// As a DBA does who applies SQL by hand.
#[tokio::test]
async fn the_sql_makes_the_same_schema_as_the_program() {
    let (by_sql, by_program) = (Place::new(), Place::new());
    for schema in ["matrix_sdk", "it's \"odd\""] {
        let print = ["migrate", "--print-sql", "--schema", schema];
        let sql = by_sql.run(&print).await.expect(0).out;
        let client = by_sql.client().await;
        client.batch_execute(&sql).await.unwrap();
        // It was meant for the version that was there.
        assert!(client.batch_execute(&sql).await.is_err());
        client.batch_execute("ROLLBACK").await.unwrap();
        assert_eq!(by_sql.run(&print).await.expect(0).out, "-- nothing is pending\n");
        by_program.run(&["migrate", "--schema", schema]).await.expect(0);

        let mut definitions = Vec::new();
        for place in [&by_sql, &by_program] {
            let columns = "SELECT string_agg(concat_ws(' ', table_name, column_name, data_type,
                column_default, is_nullable), E'\\n' ORDER BY table_name, ordinal_position)
                FROM information_schema.columns WHERE table_schema = $1";
            let functions =
                "SELECT string_agg(pg_get_functiondef(p.oid), E'\\n' ORDER BY p.proname)
                FROM pg_proc p WHERE p.pronamespace = (
                    SELECT oid FROM pg_namespace WHERE nspname = $1)";
            let indexes = "SELECT string_agg(indexdef, E'\\n' ORDER BY indexname)
                FROM pg_indexes WHERE schemaname = $1";
            let client = place.client().await;
            for sql in [columns, functions, indexes] {
                let row = client.query_one(sql, &[&schema]).await.unwrap();
                definitions.push(row.get::<_, Option<String>>(0).unwrap());
            }
        }
        assert_eq!(definitions[..3], definitions[3..]);

        let config = by_sql.config("bot").schema(schema).run_migrations(false);
        let config = config.passphrase(Some(PASSPHRASE));
        PostgresCryptoStore::open_with_config(&config).await.unwrap().close().await.unwrap();
    }
}

#[tokio::test]
async fn a_newer_schema_and_a_role_that_may_not_are_refused() {
    let place = Place::new();
    place.run(&["migrate"]).await.expect(0);
    let client = place.client().await;
    client
        .batch_execute(
            "INSERT INTO matrix_sdk.schema_migrations (part, version, compatible_with, name)
             VALUES ('account', 99, 99, 'of the future')",
        )
        .await
        .unwrap();
    let refused = place.run(&["migrate"]).await.expect(1);
    assert!(refused.err.contains("version 99") && refused.err.contains("upgrade"), "{refused:?}");
    place.run(&["migrate", "status"]).await.expect(3);

    let role = format!("reader_{}", fastrand::u32(..));
    client.batch_execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'x'")).await.unwrap();
    let (_, host) = place.url().split_once('@').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let mut command = place.command(&["migrate", "--schema", "another"]);
    command.env("DATABASE_URL", format!("postgres://{role}:x@{host}"));
    let refused = place.run_command(command).await.expect(1);
    assert!(refused.err.contains("permission denied"), "{refused:?}");
    client.batch_execute(&format!("DROP ROLE {role}")).await.unwrap();
}
