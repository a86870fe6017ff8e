//! Existing queries of operators, as `docs/operations.md` has them.

use matrix_sdk_postgres::testing::PostgresServer;
use test_support::{Mode, connect, fixture::Fixture, pages};

const OPERATIONS: &str = include_str!("../../../docs/operations.md");

fn queries(heading: &str) -> Vec<&'static str> {
    let blocks = pages::blocks(pages::section(OPERATIONS, heading), "sql");
    blocks.into_iter().map(|sql| sql.trim_end_matches(';')).collect()
}

#[tokio::test]
async fn the_operators_queries_run_word_for_word() {
    // The extension is loaded by the whole server.
    let server = PostgresServer::builder()
        .setting("shared_preload_libraries", "pg_stat_statements")
        .start()
        .unwrap();
    let database = server.create_database().unwrap();
    let store = Mode::Key.open(&database.url(), "my-bot").await;
    let client = connect(&database.url()).await;
    client.batch_execute("CREATE EXTENSION pg_stat_statements").await.unwrap();
    Fixture::new().await.fill(&store).await;

    let [search_path, sessions, days, pools, slow] =
        queries("Existing queries").try_into().unwrap();
    client.batch_execute(search_path).await.unwrap();
    let client = connect(&database.url()).await;
    let word_for_word = "SELECT COUNT(*) AS total_sessions, COUNT(DISTINCT room_id) AS rooms_with_keys \
                         FROM megolm_inbound_sessions";
    assert_eq!(sessions, word_for_word);
    let row = client.query_one(sessions, &[]).await.unwrap();
    let (total, rooms): (i64, i64) = (row.get("total_sessions"), row.get("rooms_with_keys"));
    assert_eq!((total, rooms), (1, 1));
    assert!(days.contains("DATE(created_at)"), "{days}");
    let rows = client.query(days, &[]).await.unwrap();
    assert_eq!(rows[0].get::<_, i64>("new_sessions"), 1);

    let rows = client.query(pools, &[]).await.unwrap();
    let names: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert!(names.contains(&"matrix-sdk-postgres my-bot".to_owned()), "{names:?}");

    let rows = client.query(slow, &[]).await.unwrap();
    let texts: Vec<String> = rows.iter().map(|row| row.get("query")).collect();
    let names = ["ownership.guard", "megolm_inbound_sessions.upsert"];
    for name in names {
        let comment = format!("/* {name} */ ");
        assert!(texts.iter().any(|text| text.starts_with(&comment)), "{name}: {texts:#?}");
    }
    let [reindex] = queries("Indexes").try_into().unwrap();
    client.batch_execute(reindex).await.unwrap();
}
