//! Opening, closing, reopening: secrets, schemas, pools.

use assert_matches::assert_matches;
use futures_util::future::join_all;
use matrix_sdk_crypto::store::CryptoStore;
use matrix_sdk_postgres::{
    Error, OpenStoreError, PoolSettings, PostgresCryptoStore, PostgresStoreConfig, testing,
};
use test_support::{KEY, Mode, PASSPHRASE, connect, number};

async fn open(config: PostgresStoreConfig) -> Result<PostgresCryptoStore, OpenStoreError> {
    PostgresCryptoStore::open_with_config(&config).await
}

/// Rule 8.
#[tokio::test(flavor = "multi_thread")]
async fn sixteen_openings_of_an_empty_database_make_one_schema_one_account_one_cipher() {
    let database = testing::database().unwrap();
    let url = database.url();
    let stores = join_all((0..16).map(|_| Mode::Key.open(&url, "bot"))).await;
    let mut sealed = 0;
    for store in &stores {
        // Only the newest is the owner.
        match store.set_custom_value("greeting", b"hello".to_vec()).await {
            Ok(()) => sealed += 1,
            Err(error) => assert_matches!(error, Error::Superseded { .. }),
        }
    }
    assert_eq!(sealed, 1);
    // One cipher: every opener decrypts the owner's value.
    for store in join_all((0..3).map(|_| Mode::Key.open_read_only(&url, "bot"))).await {
        assert_eq!(store.get_custom_value("greeting").await.unwrap().unwrap(), b"hello");
    }
    let client = connect(&url).await;
    assert_eq!(number(&client, "SELECT count(*) FROM matrix_sdk.accounts").await, 1);
    assert_eq!(number(&client, "SELECT count(*) FROM matrix_sdk.schema_migrations").await, 2);
}

/// A store keeps its opened cipher, not the secret. On reopening, the account's row must still hold that cipher.
#[tokio::test]
async fn a_store_is_reopened_without_its_secret_unless_its_cipher_was_changed() {
    let database = testing::database().unwrap();
    let client = connect(&database.url()).await;
    let change = async |sql: &str| client.batch_execute(sql).await.unwrap();
    for mode in [Mode::Plain, Mode::Passphrase, Mode::Key] {
        let store = mode.open(&database.url(), "bot").await;
        store.set_custom_value("greeting", b"hello".to_vec()).await.unwrap();
        store.close().await.unwrap();
        store.reopen().await.unwrap();
        assert_eq!(
            store.get_custom_value("greeting").await.unwrap().unwrap(),
            b"hello",
            "{mode:?}"
        );
        store.close().await.unwrap();

        let other = if mode == Mode::Key { Mode::Passphrase } else { Mode::Key };
        other.open(&database.url(), "other").await.close().await.unwrap();
        change(
            "CREATE TABLE saved AS SELECT * FROM matrix_sdk.accounts WHERE name = 'bot';
             UPDATE matrix_sdk.accounts a SET secret_kind = o.secret_kind, cipher = o.cipher
                 FROM matrix_sdk.accounts o WHERE a.name = 'bot' AND o.name = 'other'",
        )
        .await;
        assert_matches!(store.reopen().await, Err(Error::Reopen(error)) => {
            assert_matches!(*error, OpenStoreError::CipherChanged { .. }, "{mode:?}");
            assert!(error.is_permanent());
        });
        change("UPDATE matrix_sdk.accounts SET name = 'renamed' WHERE name = 'bot'").await;
        assert_matches!(store.reopen().await, Err(Error::Reopen(error)) => {
            assert_matches!(*error, OpenStoreError::AccountNotFound { .. }, "{mode:?}");
        });
        change(
            "UPDATE matrix_sdk.accounts a SET name = 'bot', secret_kind = s.secret_kind, cipher = s.cipher
                 FROM saved s WHERE a.name = 'renamed';
             DROP TABLE saved",
        )
        .await;
        store.reopen().await.unwrap();
        assert_eq!(
            store.get_custom_value("greeting").await.unwrap().unwrap(),
            b"hello",
            "{mode:?}"
        );
        store.close().await.unwrap();
        change("DROP SCHEMA matrix_sdk CASCADE").await;
    }
}

/// Rule 16.
#[tokio::test]
async fn each_wrong_secret_has_its_own_error_and_nothing_is_written() {
    let database = testing::database().unwrap();
    let url = database.url();
    for mode in [Mode::Plain, Mode::Passphrase, Mode::Key] {
        mode.open(&url, &format!("{mode:?}")).await.close().await.unwrap();
    }
    let client = connect(&url).await;
    let fingerprint = "SELECT hashtextextended(string_agg(a::text, ',' ORDER BY id), 0) FROM matrix_sdk.accounts a";
    let before = number(&client, fingerprint).await;

    let config = |account: &str| PostgresStoreConfig::new(&url, account);
    let wrong = config("Passphrase").passphrase(Some("wrong"));
    assert_matches!(open(wrong).await, Err(OpenStoreError::WrongPassphrase { account }) => {
        assert_eq!(account, "Passphrase");
    });
    let wrong = config("Key").key(Some(&[1; 32]));
    assert_matches!(open(wrong).await, Err(OpenStoreError::WrongKey { .. }));
    let wrong = config("Passphrase").key(Some(&KEY));
    assert_matches!(open(wrong).await, Err(OpenStoreError::KeyInsteadOfPassphrase { .. }));
    let wrong = config("Key").passphrase(Some(PASSPHRASE));
    assert_matches!(open(wrong).await, Err(OpenStoreError::PassphraseInsteadOfKey { .. }));
    for account in ["Key", "Passphrase"] {
        let missing = open(config(account)).await;
        assert_matches!(missing, Err(OpenStoreError::EncryptedWithoutSecret { .. }));
    }
    let superfluous = config("Plain").passphrase(Some(PASSPHRASE));
    assert_matches!(open(superfluous).await, Err(OpenStoreError::PlainWithSecret { .. }));
    let superfluous = config("Plain").key(Some(&KEY));
    assert_matches!(open(superfluous).await, Err(OpenStoreError::PlainWithSecret { .. }));

    assert_eq!(number(&client, fingerprint).await, before);
}

/// The error for a cipher in a newer minor version's format is specific.
#[tokio::test]
async fn a_cipher_of_a_newer_version_is_reported_as_that() {
    let database = testing::database().unwrap();
    let url = database.url();
    Mode::Key.open(&url, "bot").await;
    let client = connect(&url).await;
    let sql = "UPDATE matrix_sdk.accounts SET cipher = '\\x81', cipher_written_by = 99";
    client.batch_execute(sql).await.unwrap();
    assert_matches!(
        open(Mode::Key.config(&url, "bot")).await,
        Err(OpenStoreError::CipherTooNew { written_by: 99, .. })
    );
    let sql = "UPDATE matrix_sdk.accounts SET cipher_written_by = 0";
    client.batch_execute(sql).await.unwrap();
    let damaged = open(Mode::Key.config(&url, "bot")).await;
    assert_matches!(damaged, Err(OpenStoreError::Cipher { .. }));
}

/// Rule 17.
#[tokio::test]
async fn a_newer_schema_is_refused_unless_it_is_compatible() {
    let database = testing::database().unwrap();
    let url = database.url();
    Mode::Plain.open(&url, "bot").await;
    let client = connect(&url).await;
    let newer = |part: &str, compatible_with: i32| {
        format!(
            "INSERT INTO matrix_sdk.schema_migrations (part, version, compatible_with, name) \
             VALUES ('{part}', 1000, {compatible_with}, 'from the future') \
             ON CONFLICT (part, version) DO UPDATE SET compatible_with = excluded.compatible_with"
        )
    };
    for part in ["account", "crypto_store"] {
        client.batch_execute(&newer(part, 1)).await.unwrap();
        Mode::Plain.open(&url, "bot").await.set_custom_value("a", vec![1]).await.unwrap();
        client.batch_execute(&newer(part, 1000)).await.unwrap();
        assert_matches!(
            open(Mode::Plain.config(&url, "bot")).await,
            Err(OpenStoreError::SchemaTooNew { part: refused, found: 1000, supported: 1 })
                if refused == part
        );
        client.batch_execute(&newer(part, 1)).await.unwrap();
    }
}

/// Such a schema is not migrated; the error says what to do.
#[tokio::test]
async fn a_schema_from_before_the_first_release_is_refused_by_name() {
    let database = testing::database().unwrap();
    let (url, client) = (database.url(), connect(&database.url()).await);
    client
        .batch_execute(
            "CREATE SCHEMA old;
             CREATE TABLE old.schema_migrations (version integer, compatible_with integer);
             INSERT INTO old.schema_migrations VALUES (2, 2);
             CREATE TABLE old.accounts (id bigint, name text)",
        )
        .await
        .unwrap();
    let refused = open(Mode::Plain.config(&url, "bot").schema("old")).await.unwrap_err();
    assert_matches!(&refused, OpenStoreError::UnreleasedSchema { schema } if schema == "old");
    assert!(refused.to_string().contains("DROP SCHEMA"), "{refused}");
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'old'";
    assert_eq!(number(&client, tables).await, 2);
}

#[tokio::test]
async fn without_migrations_a_missing_schema_is_an_error_and_stays_missing() {
    let database = testing::database().unwrap();
    let url = database.url();
    let config = Mode::Plain.config(&url, "bot").run_migrations(false);
    let refused = open(config.clone()).await;
    assert_matches!(
        refused,
        Err(OpenStoreError::MigrationsPending { part: "account", found: 0, required: 1 })
    );
    let client = connect(&url).await;
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'matrix_sdk'";
    assert_eq!(number(&client, schemas).await, 0);

    Mode::Plain.open(&url, "bot").await;
    open(config).await.unwrap();
}

/// A migration waits for a lock with a time limit, and retries.
#[tokio::test]
async fn a_migration_waits_for_a_lock_and_then_succeeds() {
    let database = testing::database().unwrap();
    let url = database.url();
    let mut client = connect(&url).await;
    // Holds the advisory lock, as a concurrent migration would.
    let transaction = client.transaction().await.unwrap();
    let lock = "SELECT pg_advisory_xact_lock(1836610416, hashtext('matrix_sdk'))";
    transaction.batch_execute(lock).await.unwrap();
    let store = tokio::spawn({
        let url = url.clone();
        async move { Mode::Plain.open(&url, "bot").await }
    });
    let watcher = connect(&url).await;
    let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    while number(&watcher, waiting).await == 0 {
        assert!(!store.is_finished(), "the migration did not wait for the lock");
        tokio::task::yield_now().await;
    }
    transaction.commit().await.unwrap();
    store.await.unwrap().set_custom_value("a", vec![1]).await.unwrap();
}

#[tokio::test]
async fn close_waits_for_work_in_flight_and_reopen_works() {
    let database = testing::database().unwrap();
    let store = Mode::Passphrase.open(&database.url(), "bot").await;
    let twin = store.clone();
    // Its future is dropped after the first poll: closing finishes the save.
    let mut begun = Box::pin(twin.set_custom_value("begun", b"before the close".to_vec()));
    assert!(futures_util::poll!(&mut begun).is_pending());
    drop(begun);
    store.close().await.unwrap();
    store.close().await.unwrap();

    assert_matches!(twin.get_custom_value("begun").await, Err(Error::StoreClosed));
    assert_matches!(twin.set_custom_value("a", vec![]).await, Err(Error::StoreClosed));
    assert_matches!(twin.load_account().await, Err(Error::StoreClosed));

    twin.reopen().await.unwrap();
    let value = store.get_custom_value("begun").await.unwrap();
    assert_eq!(value.unwrap(), b"before the close");
    store.reopen().await.unwrap();
}

#[tokio::test]
async fn closing_one_store_does_not_close_a_shared_pool() {
    let database = testing::database().unwrap();
    let config = |account: &str| {
        Mode::Key
            .config(&database.url(), account)
            .pool(PoolSettings { max_size: 2, ..Default::default() })
    };
    let pool = config("any").build_pool().unwrap();
    let mut stores = Vec::new();
    for number in 0..10 {
        let config = config(&format!("bot {number}"));
        stores.push(PostgresCryptoStore::open_with_pool(pool.clone(), &config).await.unwrap());
    }
    let first = stores.remove(0);
    first.close().await.unwrap();
    assert_matches!(first.get_custom_value("a").await, Err(Error::StoreClosed));
    let saves = stores.iter().zip(0u8..).map(|(store, number)| async move {
        store.set_custom_value("number", vec![number]).await.unwrap();
        store.get_custom_value("number").await.unwrap().unwrap()
    });
    let numbers: Vec<Vec<u8>> = join_all(saves).await;
    assert_eq!(numbers, (0..9).map(|number| vec![number]).collect::<Vec<_>>());
    first.reopen().await.unwrap();
    assert_eq!(first.get_custom_value("number").await.unwrap(), None);
    assert!(pool.status().size <= 2);
}

#[tokio::test]
async fn an_estimate_of_the_size_is_per_account() {
    let database = testing::database().unwrap();
    let url = database.url();
    let (large, small) =
        (Mode::Plain.open(&url, "large").await, Mode::Plain.open(&url, "small").await);
    small.set_custom_value("a", vec![7; 10]).await.unwrap();
    for number in 0..100 {
        let value: Vec<u8> =
            (0..10_000u32).map(|i| (i.wrapping_mul(number + 7) >> 3) as u8).collect();
        large.set_custom_value(&format!("{number}"), value).await.unwrap();
    }
    connect(&url).await.batch_execute("ANALYZE").await.unwrap();
    let (large, small) = (large.get_size().await.unwrap(), small.get_size().await.unwrap());
    assert!(large > small, "{large:?} {small:?}");
}

#[tokio::test]
async fn an_unreachable_address_and_an_invalid_configuration_are_different_errors() {
    // Port 1 is reserved and closed.
    let refused = open(PostgresStoreConfig::new("postgres://bot@127.0.0.1:1/db", "bot")).await;
    assert_matches!(refused, Err(OpenStoreError::Connect(_)));
    let malformed = open(PostgresStoreConfig::new("postgres://bot:secret@[::1/db", "bot")).await;
    assert_matches!(malformed, Err(error @ OpenStoreError::InvalidConfig(_)) => {
        assert!(!error.to_string().contains("secret"), "{error}");
    });
    let schema = PostgresStoreConfig::new("postgres://bot@127.0.0.1:1/db", "bot").schema("public");
    assert_matches!(open(schema).await, Err(OpenStoreError::InvalidConfig(_)));
}
