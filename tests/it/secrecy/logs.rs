//! Logs at the finest level, errors and `Debug` never hold a password, passphrase, key or pickle.

use std::{
    fmt::Debug,
    io::Write,
    sync::{Arc, Mutex},
};

use assert_matches::assert_matches;
use matrix_sdk_crypto::store::{CryptoStore, CryptoStoreError, types::Changes};
use matrix_sdk_postgres::{
    Error, OpenStoreError, PoolSettings, PostgresCryptoStore, PostgresStoreConfig, testing,
};
use test_support::{
    Mode, child_process, connect,
    fixture::{BACKUP_VERSION, Fixture, LEASE_HOLDER, LEASE_KEY, room},
    needles::{self, Needle},
    reads::read_all,
};
use tracing_subscriber::fmt::format::FmtSpan;

const PASSWORD: &str = "database-password-hunter2";

/// All log output, of `tracing` and of `log`.
#[derive(Clone, Default)]
struct Record(Arc<Mutex<Vec<u8>>>);

impl Record {
    fn add(&self, text: impl Debug) {
        writeln!(self.0.lock().unwrap(), "{text:?}").unwrap();
    }

    /// `Display` and `Debug` of an error and of its sources.
    fn add_error(&self, error: &(dyn std::error::Error + 'static)) {
        self.add(error);
        let causes = std::iter::successors(Some(error), |error| error.source());
        causes.for_each(|error| self.add(error.to_string()));
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Record {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl log::Log for Record {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let mut text = self.0.lock().unwrap();
        writeln!(text, "[log] {} {}: {}", record.level(), record.target(), record.args()).unwrap();
    }

    fn flush(&self) {}
}

/// Records everything from now on, in this process.
fn record() -> Record {
    let record = Record::default();
    let writer = record.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_span_events(FmtSpan::FULL)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    log::set_logger(Box::leak(Box::new(record.clone()))).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    record
}

/// Operations of a store, successful and failed.
async fn run_operations(
    record: &Record,
    config: &PostgresStoreConfig,
    url: &str,
    fixture: &Fixture,
) {
    let client = connect(url).await;
    let store = PostgresCryptoStore::open_with_config(config).await.unwrap();
    record.add(&store);
    fixture.fill(&store).await;
    read_all(&store, fixture).await;
    let _ = store.get_own_device().await;
    store.reset_backup_state().await.unwrap();
    store.inbound_group_session_counts(Some(BACKUP_VERSION)).await.unwrap();
    store.load_account().await.unwrap();
    store.delete_outgoing_secret_requests(&fixture.key_request.request_id).await.unwrap();
    store.try_take_leased_lock(0, LEASE_KEY, LEASE_HOLDER).await.unwrap();
    store.get_size().await.unwrap();

    // A row that cannot be read.
    let damage = "UPDATE matrix_sdk.encrypted_rooms SET data = data || '\\x00'::bytea;
                  UPDATE matrix_sdk.megolm_outbound_sessions SET data = substring(data FROM 3)";
    client.batch_execute(damage).await.unwrap();
    if let Err(error) = store.get_room_settings(room()).await {
        record.add_error(&error);
    }
    let error = store.get_outbound_group_session(room()).await.unwrap_err();
    assert_matches!(error, Error::CorruptRow { .. });
    record.add_error(&error);

    // A statement that fails, where the server's DETAIL quotes the row.
    let refuse = "ALTER TABLE matrix_sdk.devices ADD CONSTRAINT refuse CHECK (false) NOT VALID";
    client.batch_execute(refuse).await.unwrap();
    let error = store.save_changes(fixture.changes()).await.unwrap_err();
    assert_matches!(&error, Error::Database(error) => assert_eq!(error.sqlstate(), Some("23514")));
    record.add_error(&error);
    record.add_error(&CryptoStoreError::from(error));
    let error = store.save_changes(fixture.changes()).await.unwrap_err();
    record.add_error(&error);
    client.batch_execute("ALTER TABLE matrix_sdk.devices DROP CONSTRAINT refuse").await.unwrap();
    store.reopen().await.unwrap();

    // A value that the server refuses when it parses the parameters.
    let narrow = "ALTER TABLE matrix_sdk.custom_values ALTER COLUMN data TYPE smallint USING 1";
    client.batch_execute(narrow).await.unwrap();
    let error = store.set_custom_value("clandestine", b"clandestine".to_vec()).await.unwrap_err();
    record.add_error(&error);
    let widen = "ALTER TABLE matrix_sdk.custom_values ALTER COLUMN data TYPE bytea USING ''";
    client.batch_execute(widen).await.unwrap();
    store.reopen().await.unwrap();
    store.save_changes(Changes::default()).await.unwrap();
    store.close().await.unwrap();
    record.add_error(&store.load_account().await.unwrap_err());
}

/// Failing openings, each with secrets in its configuration.
async fn fail_to_open(record: &Record, url: &str) {
    let with_password = url.replacen("postgres://", &format!("postgres://u:{PASSWORD}@x/"), 1);
    let urls = [
        format!("postgres://bot:{PASSWORD}@127.0.0.1:1/db"),
        format!("host=127.0.0.1 port=1 user=bot password={PASSWORD}"),
        format!("postgres://bot:{PASSWORD}@[::1/db"),
        format!("postgres://bot:{PASSWORD}@127.0.0.1:1/db?sslmode={PASSWORD}"),
        format!("host=127.0.0.1 password='{PASSWORD}"),
        PASSWORD.to_owned(),
        format!("postgres://nobody:{PASSWORD}@{}", url.split_once('@').map_or("", |(_, at)| at)),
        with_password,
    ];
    for url in urls {
        for mode in [Mode::Passphrase, Mode::Key] {
            let config = mode.config(&url, "bot");
            record.add(&config);
            let opened = PostgresCryptoStore::open_with_config(&config).await;
            // A server with `trust` authentication accepts any password, so this one may succeed.
            let Err(error) = opened else { continue };
            record.add_error(&error);
            if let Err(error) = config.build_pool() {
                record.add_error(&error);
            }
        }
    }
    for account in ["Passphrase", "Key"] {
        let config = PostgresStoreConfig::new(url, account);
        let wrong = [
            config.clone(),
            config.clone().passphrase(Some("a-wrong-passphrase")),
            config.clone().key(Some(&[77; 32])),
        ];
        for config in wrong {
            record.add(&config);
            let error = PostgresCryptoStore::open_with_config(&config).await.unwrap_err();
            assert!(!matches!(error, OpenStoreError::Store(_)), "{error:?}");
            record.add_error(&error);
        }
    }
}

#[tokio::test]
async fn logs_errors_and_debug_hold_no_secret() {
    if child_process::run_alone("secrecy::logs::logs_errors_and_debug_hold_no_secret") {
        return;
    }
    let record = record();
    let fixture = Fixture::new().await;
    let database = testing::database().unwrap();
    let url = database.url();
    for prepared in [true, false] {
        for mode in [Mode::Plain, Mode::Passphrase, Mode::Key] {
            let config = mode
                .config(&url, &format!("{mode:?}"))
                .pool(PoolSettings { prepared_statements: prepared, ..Default::default() });
            record.add(&config);
            run_operations(&record, &config, &url, &fixture).await;
        }
    }
    let pool = Mode::Key.config(&url, "pooled").build_pool().unwrap();
    record.add(&pool);
    let config = Mode::Key.config(&url, "pooled");
    let store = PostgresCryptoStore::open_with_pool(pool, &config).await.unwrap();
    fixture.fill(&store).await;
    store.close().await.unwrap();
    fail_to_open(&record, &url).await;

    let text = record.text();
    // The log must contain the crate's own lines and the driver's parameters, or the test proves nothing.
    for line in ["matrix_sdk_postgres", "save_changes", "tokio_postgres", "with parameters: ["] {
        assert!(text.contains(line), "no log line holds {line:?}");
    }
    // The SDK's own lines contain ids of rooms and devices, which this crate cannot prevent.
    let ours: Vec<&str> =
        text.lines().filter(|line| !line.contains(" matrix_sdk_crypto::")).collect();
    let ours = ours.join("\n");
    let mut needles = needles::of_rows(&fixture).await;
    needles.extend(needles::of_secrets());
    let more = [
        ("the database's password", PASSWORD.as_bytes().to_vec()),
        ("a wrong passphrase", b"a-wrong-passphrase".to_vec()),
        ("a wrong key", vec![77; 32]),
        ("any id or value of the fixture", b"clandestine".to_vec()),
        // The ciphers too: they allow guessing the passphrase.
        ("a sealed cipher", connect(&url).await.query_one(CIPHER, &[]).await.unwrap().get(0)),
    ];
    needles.extend(more.map(|(name, bytes)| Needle { name, bytes }));
    for needle in needles {
        if let Some(form) = needle.find(ours.as_bytes()) {
            let raw = String::from_utf8_lossy(&needle.bytes).into_owned();
            let line = ours.lines().find(|line| line.contains(&raw)).unwrap_or("(not as text)");
            panic!("{} appears as {form}: {line}", needle.name);
        }
    }
}

/// The middle of a cipher, without the envelope's header.
const CIPHER: &str = "SELECT substring(cipher FROM 60 FOR 24) FROM matrix_sdk.accounts
                      WHERE name = 'Passphrase'";
