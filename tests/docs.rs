//! The documents say what is there: no table or column is missing, and none is made up.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{collections::BTreeMap, fmt::Write};

use common::Mode;
use matrix_sdk_postgres::testing;
use tokio_postgres::NoTls;

const SCHEMA: &str = include_str!("../docs/schema.md");

/// The columns of each table, with their types, in order.
type Tables = BTreeMap<String, Vec<(String, String)>>;

/// Reads the tables under headings of the form "### `name`".
fn documented() -> Tables {
    let mut tables = Tables::new();
    let mut current = None;
    for line in SCHEMA.lines() {
        if line.starts_with('#') {
            let name = line.strip_prefix("### `").and_then(|rest| rest.strip_suffix('`'));
            current = name.map(|name| tables.entry(name.to_owned()).or_default());
        } else if let (Some(columns), Some(row)) = (&mut current, line.strip_prefix("| `")) {
            let mut cells = row.split('|').map(|cell| cell.trim().trim_end_matches('`'));
            let (name, kind) = (cells.next().unwrap(), cells.next().unwrap());
            columns.push((name.to_owned(), kind.to_owned()));
        }
    }
    tables
}

/// Reads what a database has after the store was opened.
async fn migrated() -> (Tables, String) {
    let database = testing::database().unwrap();
    Mode::Plain.open(&database.url(), "docs").await;
    let (client, connection) = tokio_postgres::connect(&database.url(), NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    let rows = client
        .query(
            "SELECT table_name, column_name, data_type FROM information_schema.columns
             WHERE table_schema = 'matrix_sdk' ORDER BY table_name, ordinal_position",
            &[],
        )
        .await
        .unwrap();
    let mut tables = Tables::new();
    for row in &rows {
        tables.entry(row.get(0)).or_default().push((row.get(1), row.get(2)));
    }
    // The queries of both pages must at least run.
    let mut failures = String::new();
    for sql in code_blocks(SCHEMA, "sql") {
        if let Err(error) = client.batch_execute(&sql).await {
            writeln!(failures, "{error:?}\n{sql}").unwrap();
        }
    }
    drop(client);
    connection.await.unwrap().unwrap();
    (tables, failures)
}

/// The code blocks of one language.
fn code_blocks(page: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    let blocks = page.split(&fence).skip(1);
    blocks.map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn the_schema_page_names_every_table_and_column() {
    let (tables, failures) = migrated().await;
    let documented = documented();
    for (table, columns) in &tables {
        assert_eq!(documented.get(table), Some(columns), "table {table} in docs/schema.md");
    }
    let made_up: Vec<_> = documented.keys().filter(|table| !tables.contains_key(*table)).collect();
    assert!(made_up.is_empty(), "docs/schema.md names tables that do not exist: {made_up:?}");
    assert!(failures.is_empty(), "queries in docs/schema.md fail:\n{failures}");
    assert!(code_blocks(SCHEMA, "sql").len() > 3);
}
