//! Upstream's test suites, on every kind of account, with prepared and with unnamed statements.

use matrix_sdk_postgres::{PoolSettings, PostgresCryptoStore};
use test_support::{Mode, suite};

async fn open(
    mode: Mode,
    prepared: bool,
    name: &str,
    passphrase: Option<&str>,
    clear_data: bool,
) -> PostgresCryptoStore {
    // Upstream's suite uses one name twice, and every mode uses the same names.
    let name = format!("{mode:?} {prepared} {name}");
    let (url, _) = suite::database(name, clear_data).await;
    let config = mode
        .config(&url, "upstream")
        .pool(PoolSettings { prepared_statements: prepared, ..Default::default() });
    // The suite's passphrase replaces the mode's secret.
    let config = if passphrase.is_some() { config.passphrase(passphrase) } else { config };
    PostgresCryptoStore::open_with_config(&config).await.unwrap()
}

macro_rules! suite {
    ($module:ident, $mode:expr, $prepared:expr) => {
        mod $module {
            async fn get_store(
                name: &str,
                passphrase: Option<&str>,
                clear_data: bool,
            ) -> super::PostgresCryptoStore {
                super::open($mode, $prepared, name, passphrase, clear_data).await
            }

            matrix_sdk_crypto::cryptostore_integration_tests!();
            matrix_sdk_crypto::cryptostore_integration_tests_time!();
        }
    };
}

suite!(plain, super::Mode::Plain, true);
suite!(passphrase, super::Mode::Passphrase, true);
suite!(key, super::Mode::Key, true);
suite!(plain_unnamed, super::Mode::Plain, false);
suite!(passphrase_unnamed, super::Mode::Passphrase, false);
suite!(key_unnamed, super::Mode::Key, false);
