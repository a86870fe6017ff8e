//! The documentation is complete and correct: it names every table, column and error and no others, and its
//! SQL runs.

use std::collections::BTreeMap;

use assert_matches::assert_matches;
use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{
    OpenStoreError, PostgresCryptoStore, PostgresStoreConfig,
    testing::{self, PostgresServer},
};
use ruma::user_id;
use test_support::{
    Mode, connect,
    fixture::Fixture,
    machine::{Relay, open_machine},
    pages,
};
use tokio_postgres::{Client, SimpleQueryMessage};

const SCHEMA: &str = include_str!("../../docs/schema.md");
const ARCHITECTURE: &str = include_str!("../../docs/architecture.md");
const OPERATIONS: &str = include_str!("../../docs/operations.md");
const TROUBLESHOOTING: &str = include_str!("../../docs/troubleshooting.md");
const ERRORS: &str =
    concat!(include_str!("../../src/error/mod.rs"), include_str!("../../src/error/open.rs"));

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

async fn tables_of(client: &Client) -> Tables {
    let sql = "SELECT table_name::text, column_name::text, data_type::text
               FROM information_schema.columns
               WHERE table_schema = 'matrix_sdk' ORDER BY table_name, ordinal_position";
    let mut tables = Tables::new();
    for row in client.query(sql, &[]).await.unwrap() {
        tables.entry(row.get(0)).or_default().push((row.get(1), row.get(2)));
    }
    tables
}

#[tokio::test]
async fn the_schema_page_names_every_table_and_column() {
    let database = testing::database().unwrap();
    Mode::Plain.open(&database.url(), "docs").await;
    let client = connect(&database.url()).await;

    let (tables, documented) = (tables_of(&client).await, documented());
    for (table, columns) in &tables {
        assert_eq!(documented.get(table), Some(columns), "table {table} in docs/schema.md");
    }
    let made_up: Vec<_> = documented.keys().filter(|table| !tables.contains_key(*table)).collect();
    assert!(made_up.is_empty(), "docs/schema.md names tables that do not exist: {made_up:?}");
}

/// Sections of `docs/operations.md` whose SQL other tests run: the one below, `scripts/e2e` (`example_old_backup`),
/// and `admin/queries.rs`.
const RUN_ELSEWHERE: [&str; 4] =
    ["Roles and grants", "Backup and restore", "Existing queries", "Indexes"];

#[tokio::test]
async fn the_pages_sql_runs() {
    let database = testing::database().unwrap();
    for account in ["my-bot", "alerts-bot"] {
        let store = Mode::Key.open(&database.url(), account).await;
        Fixture::new().await.fill(&store).await;
    }
    let client = connect(&database.url()).await;
    let mut count = 0;
    for page in [SCHEMA, OPERATIONS, TROUBLESHOOTING] {
        let sections =
            pages::sections(page).filter(|(heading, _)| !RUN_ELSEWHERE.contains(heading));
        for sql in sections.flat_map(|(_, section)| pages::blocks(section, "sql")) {
            let results = client.simple_query(sql).await.expect(sql);
            if sql.starts_with("UPDATE") || sql.starts_with("DELETE") {
                assert_matches!(results[..], [SimpleQueryMessage::CommandComplete(1)], "{sql}");
            }
            count += 1;
        }
    }
    assert!(count > 14, "{count}");
}

/// What the checks of an operator's `doctor` link to.
#[test]
fn the_pages_that_advice_links_to_have_these_sections() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![root.join("src/admin")];
    let mut links = Vec::new();
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let text = std::fs::read_to_string(path).unwrap();
        let quoted = text.split('"').filter(|part| part.starts_with("docs/"));
        links.extend(quoted.map(ToOwned::to_owned));
    }
    assert!(links.len() > 10, "{links:?}");
    for link in links {
        let (page, section) = link.split_once('#').unwrap_or((&link, ""));
        let page = std::fs::read_to_string(root.join(page)).expect(&link);
        assert!(section.is_empty() || pages::anchors(&page).contains(section), "{link}");
    }
}

#[test]
fn the_operations_page_names_every_error() {
    for name in ["Error", "OpenStoreError"] {
        let body = ERRORS.split(&format!("pub enum {name} {{")).nth(1).unwrap();
        let body = body.split("\n}").next().unwrap();
        let variants: Vec<&str> = body
            .lines()
            .filter_map(|line| line.strip_prefix("    "))
            .filter(|line| line.starts_with(|first: char| first.is_ascii_uppercase()))
            .map(|line| line.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap())
            .collect();
        assert!(variants.len() > 5, "{variants:?}");
        for variant in variants {
            assert!(
                OPERATIONS.contains(&format!("\n| `{variant}` |")),
                "{name}::{variant} is not in docs/operations.md"
            );
        }
    }
}

#[tokio::test]
async fn the_documented_grants_are_enough_and_no_more() {
    // Roles are global to the server, so this test starts its own server.
    let server = PostgresServer::start().unwrap();
    let database = server.create_database().unwrap();
    let superuser = connect(&database.url()).await;
    let section = pages::section(OPERATIONS, "Roles and grants");
    let [roles, after_migration] = pages::blocks(section, "sql").try_into().unwrap();
    superuser.batch_execute(roles).await.unwrap();
    let url = database.url();
    let (_, place) = url.split_once('@').unwrap();
    let role = |name: &str, password: &str| format!("postgres://{name}:{password}@{place}");
    let owner = role("matrix_sdk_owner", "change%20me");
    let bot = role("matrix_sdk_bot", "change%20me%20too");
    let config = |url: &str| PostgresStoreConfig::new(url, "bot").key(Some(&test_support::KEY));

    let early = PostgresCryptoStore::open_with_config(&config(&bot).run_migrations(false)).await;
    assert_matches!(early, Err(OpenStoreError::MigrationsPending { found: 0, .. }));
    let early = PostgresCryptoStore::open_with_config(&config(&bot)).await;
    assert_matches!(early, Err(OpenStoreError::PermissionDenied { .. }));

    PostgresCryptoStore::open_with_config(&config(&owner)).await.unwrap().close().await.unwrap();
    superuser.batch_execute(after_migration).await.unwrap();

    let store =
        PostgresCryptoStore::open_with_config(&config(&bot).run_migrations(false)).await.unwrap();
    let machine = open_machine(user_id!("@bot:example.org"), store.clone()).await;
    Relay::default().serve(&machine).await;
    store.set_custom_value("key", b"value".to_vec()).await.unwrap();
    store.remove_custom_value("key").await.unwrap();
    assert!(store.get_size().await.unwrap().is_some());
    // An account that the owner has not created.
    Mode::Key.open(&bot, "another").await;

    let client = connect(&bot).await;
    for forbidden in [
        "CREATE TABLE matrix_sdk.mine ()",
        "DROP TABLE matrix_sdk.devices",
        "TRUNCATE matrix_sdk.devices",
        "DELETE FROM matrix_sdk.schema_migrations",
    ] {
        assert!(client.batch_execute(forbidden).await.is_err(), "{forbidden}");
    }
}

#[test]
fn the_architecture_page_lists_the_invariants_with_their_tests() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let rows = ARCHITECTURE.split("## Invariants").nth(1).unwrap().lines();
    let rows = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
    let mut count = 0;
    for row in rows.filter(|row| row.get(1).is_some_and(|cell| cell.parse::<u32>().is_ok())) {
        count += 1;
        assert_eq!(row[1], count.to_string());
        let tests: Vec<&str> =
            row[3].split('`').filter(|part| part.starts_with("tests/")).collect();
        assert!(!tests.is_empty(), "no test for rule {count}");
        for file in tests {
            let text = std::fs::read_to_string(root.join(file)).expect(file);
            let named = text.split("Rule").skip(1).flat_map(|text| {
                let numbers = text.split([':', '.']).next().unwrap();
                numbers.split(|c: char| !c.is_ascii_digit()).map(ToOwned::to_owned)
            });
            assert!(named.collect::<Vec<_>>().contains(&row[1].to_owned()), "{file}: rule {count}");
        }
    }
    assert!(count > 20, "{count}");
}

/// Each module of the test binaries has its place in the table.
#[test]
fn the_tests_page_names_every_module() {
    let tests = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let page = std::fs::read_to_string(tests.join("README.md")).unwrap();
    let mut count = 0;
    for binary in ["it", "reliability", "histories", "slow"] {
        let main = std::fs::read_to_string(tests.join(binary).join("main.rs")).unwrap();
        for module in main.lines().filter_map(|line| line.strip_prefix("mod ")) {
            let module = module.trim_end_matches(';');
            let names = [format!("`{module}`"), format!("`{module}::")];
            let named = names.iter().any(|name| page.contains(name.as_str()));
            assert!(named, "{binary}::{module} is not in tests/README.md");
            count += 1;
        }
    }
    assert!(count > 50, "{count}");
}
