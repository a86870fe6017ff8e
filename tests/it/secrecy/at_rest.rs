//! A dump of an encrypted account reveals no id and no value.

use matrix_sdk_crypto::{store::CryptoStore, vodozemac::base64_encode};
use matrix_sdk_postgres::testing;
use test_support::{
    Mode, connect,
    fixture::Fixture,
    needles, number,
    reads::{assert_complete, tables},
};
use tokio_postgres::Client;

/// Every column of every row: `bytea` as it is, the rest as text.
async fn dump(client: &Client) -> Vec<u8> {
    let mut dump = Vec::new();
    for table in tables(client).await {
        let columns = "SELECT attname::text, atttypid = 'bytea'::regtype FROM pg_attribute
                       WHERE attrelid = format('matrix_sdk.%I', $1::text)::regclass
                         AND attnum > 0 AND NOT attisdropped";
        let columns: Vec<(String, bool)> = client
            .query(columns, &[&table])
            .await
            .unwrap()
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect();
        for (column, is_bytea) in columns {
            let bytes = if is_bytea { "" } else { "::text::bytea" };
            let sql = format!("SELECT \"{column}\"{bytes} FROM matrix_sdk.{table}");
            for row in client.query(&sql, &[]).await.unwrap() {
                dump.extend(row.get::<_, Option<Vec<u8>>>(0).unwrap_or_default());
                dump.push(0);
            }
        }
    }
    dump
}

async fn dump_of_a_full_account(mode: Mode, fixture: &Fixture) -> Vec<u8> {
    let database = testing::database().unwrap();
    let (store, client) = (mode.open(&database.url(), "bot").await, connect(&database.url()).await);
    fixture.fill(&store).await;
    assert_complete(&store, fixture).await;
    // As `matrix-postgres verify --quarantine` sets a row aside.
    let sql = "INSERT INTO matrix_sdk.quarantined_rows (account_id, table_name, reason, contents)
               SELECT account_id, 'devices', 'a test', to_jsonb(d) FROM matrix_sdk.devices d LIMIT 1";
    client.batch_execute(sql).await.unwrap();
    for table in tables(&client).await {
        // A new table must be filled by the fixture, or its contents are not checked.
        let count = number(&client, &format!("SELECT count(*) FROM matrix_sdk.{table}")).await;
        assert!(count > 0, "{table} is empty: add a row for it to the fixture");
    }
    dump(&client).await
}

#[tokio::test]
async fn a_dump_of_an_encrypted_account_shows_nothing() {
    let fixture = Fixture::new().await;
    let needles = needles::of_rows(&fixture).await;
    for mode in [Mode::Passphrase, Mode::Key] {
        let dump = dump_of_a_full_account(mode, &fixture).await;
        for needle in needles.iter().chain(&needles::of_secrets()) {
            assert_eq!(needle.find(&dump), None, "{mode:?}: {} is in the dump", needle.name);
        }
    }
}

/// Tests the search itself: in a plain account it finds every value.
#[tokio::test]
async fn a_dump_of_a_plain_account_shows_everything() {
    let fixture = Fixture::new().await;
    let dump = dump_of_a_full_account(Mode::Plain, &fixture).await;
    for needle in needles::of_rows(&fixture).await {
        assert!(needle.find(&dump).is_some(), "{} is not found in a plain account", needle.name);
    }
}

#[test]
fn the_search_finds_every_form() {
    let secret = b"a secret of 24 bytes ...";
    let needle = needles::Needle { name: "it", bytes: secret.to_vec() };
    assert_eq!(needle.find(b"nothing here"), None);
    for prefix in ["", "1", "12", "123"] {
        let text = [prefix.as_bytes(), secret, b"suffix"].concat();
        let base64 = base64_encode(&text);
        assert_eq!(needle.find(&text), Some("raw"));
        let form = needle.find(base64.as_bytes());
        assert!(form.is_some_and(|form| form.ends_with("base64")), "{prefix:?} {form:?}");
    }
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(needle.find(format!("\\x00{hex}ff").as_bytes()), Some("hex"));
    assert_eq!(needle.find(format!("{secret:?}").as_bytes()), Some("Debug of bytes"));
    let json = serde_json::to_vec(&secret.to_vec()).unwrap();
    assert_eq!(needle.find(&json), Some("JSON numbers"));
    let sequence = rmp_serde::to_vec_named(&(1, vec![1u8, 2], secret.to_vec())).unwrap();
    assert_eq!(needle.find(&sequence), Some("raw"), "numbers below 128 are their own bytes");
}

/// The sealed form of a value differs each time, so that equal values are not recognisable.
#[tokio::test]
async fn equal_values_are_sealed_differently() {
    let database = testing::database().unwrap();
    let (store, client) =
        (Mode::Key.open(&database.url(), "bot").await, connect(&database.url()).await);
    for key in ["a", "b", "c"] {
        store.set_custom_value(key, b"the same".to_vec()).await.unwrap();
    }
    let other = Mode::Key.open(&database.url(), "other bot").await;
    other.set_custom_value("a", b"the same".to_vec()).await.unwrap();
    let distinct =
        |column: &str| format!("SELECT count(DISTINCT {column}) FROM matrix_sdk.custom_values");
    assert_eq!(number(&client, &distinct("data")).await, 4);
    // Two accounts have different hashes of the same id.
    assert_eq!(number(&client, &distinct("key")).await, 4);
}
