//! Schema names that PostgreSQL accepts, including those that look like SQL or like this crate's templates.

use matrix_sdk_postgres::{PostgresCryptoStore, testing};
use test_support::{Mode, connect};

use super::exercise;

const NAMES: [&str; 16] = [
    "o'brien",
    "a$$b",
    "$$",
    "$body$",
    "a$body$b$_body$",
    "{guarded}",
    "{schema}",
    "{body}",
    r#"say "hello""#,
    r"back\slash",
    "Straße 🗝 ключ",
    " ",
    "Select",
    "a.b;--/*",
    "%s$1?:x",
    // 63 bytes.
    "äääääääääääääääääääääääääääääää!",
];

#[tokio::test]
async fn every_schema_name_works() {
    for name in NAMES {
        let database = testing::database().unwrap();
        let config = Mode::Key.config(&database.url(), "bot").schema(name);
        let store = PostgresCryptoStore::open_with_config(&config).await;
        exercise(&store.unwrap_or_else(|error| panic!("{name:?}: {error}"))).await;
        let client = connect(&database.url()).await;
        let sql = "SELECT count(*) FROM pg_namespace WHERE nspname = $1";
        let found: i64 = client.query_one(sql, &[&name]).await.unwrap().get(0);
        assert_eq!(found, 1, "{name:?}");
    }
    assert_eq!(NAMES[15].len(), 63);
}

/// Stores in different schemas are independent.
#[tokio::test]
async fn many_schemas_in_one_database() {
    let database = testing::database().unwrap();
    for name in NAMES {
        let config = Mode::Plain.config(&database.url(), "bot").schema(name);
        exercise(&PostgresCryptoStore::open_with_config(&config).await.unwrap()).await;
    }
}
