//! Rule 20: databases in other encodings and locales.

use assert_matches::assert_matches;
use matrix_sdk_crypto::store::{CryptoStore, types::Changes};
use matrix_sdk_postgres::{PostgresCryptoStore, testing};
use test_support::{Mode, connect};

use super::exercise;

/// Name suffixes, and options of `CREATE DATABASE … TEMPLATE template0`.
const DATABASES: [(&str, &str); 5] = [
    ("ascii", "ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'"),
    ("latin1", "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'"),
    ("utf8", "ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'"),
    ("english", "ENCODING 'UTF8' LC_COLLATE 'en_US.UTF-8' LC_CTYPE 'en_US.UTF-8'"),
    ("unicode", "ENCODING 'UTF8' LC_COLLATE 'C.UTF-8' LC_CTYPE 'C.UTF-8'"),
];

/// Keys that depend on collation or encoding.
const KEYS: [&str; 6] = ["a", "B", "ä", "☃", "a\0b", "_"];

#[tokio::test]
async fn databases_in_other_encodings_and_locales() {
    let database = testing::database().unwrap();
    let client = connect(&database.url()).await;
    for (suffix, form) in DATABASES {
        let name = format!("{}_{suffix}", database.name());
        let create = format!("CREATE DATABASE {name} TEMPLATE template0 {form}");
        if let Err(error) = client.batch_execute(&create).await {
            // The system lacks this locale: only the others are tested.
            let message = error.as_db_error().unwrap().message().to_owned();
            assert!(message.contains("locale"), "{message}");
            assert!(["english", "unicode"].contains(&suffix), "{message}");
            continue;
        }
        let url = database.url().replace(database.name(), &name);
        for mode in [Mode::Plain, Mode::Key] {
            let store = mode.open(&url, &format!("{mode:?}")).await;
            exercise(&store).await;
            for key in KEYS {
                store.set_custom_value(key, key.as_bytes().to_vec()).await.unwrap();
            }
            for key in KEYS {
                let value = store.get_custom_value(key).await.unwrap().unwrap();
                assert_eq!(value, key.as_bytes(), "{suffix} {mode:?}");
            }
            let next_batch_token = Some("токен".to_owned());
            store.save_changes(Changes { next_batch_token, ..Default::default() }).await.unwrap();
            assert_eq!(store.next_batch_token().await.unwrap().unwrap(), "токен");
            store.close().await.unwrap();
        }
        // The account's name is the only text: characters that the encoding lacks are refused.
        let config = Mode::Plain.config(&url, "snow ☃");
        let opened = PostgresCryptoStore::open_with_config(&config).await;
        if suffix == "latin1" {
            assert_matches!(opened, Err(error) => {
                assert!(error.to_string().contains("22P05"), "{error}");
            });
        } else {
            let store = opened.unwrap();
            store.set_custom_value("a", b"b".to_vec()).await.unwrap();
            store.close().await.unwrap();
        }
        client.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await.unwrap();
    }
}
