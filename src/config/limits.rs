//! What the settings may be.

use std::time::Duration;

use super::PostgresStoreConfig;
use crate::{OpenStoreError, config::secret::Secret};

const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// The longest timeout. PostgreSQL's own end at 24.8 days, and clocks overflow at some point.
pub(crate) const LONGEST_TIMEOUT: Duration = DAY;
/// The shortest timeout: with less, nothing could ever succeed.
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(10);
const SHORTEST_LIFE: Duration = Duration::from_millis(1);

/// Each connection is a process of the server's.
const MOST_CONNECTIONS: usize = 10_000;
const LONGEST_NAME: usize = 255;

impl PostgresStoreConfig {
    /// Checks what needs no server: called before anything is opened, with an own pool or a
    /// foreign one.
    pub(crate) fn validate(&self) -> Result<(), OpenStoreError> {
        self.check().map_err(OpenStoreError::InvalidConfig)
    }

    fn check(&self) -> Result<(), String> {
        let account = &self.account;
        if account.is_empty() {
            return Err("the account's name is empty".to_owned());
        }
        check_text("the account's name", account)?;
        if account.trim() != account {
            return Err("the account's name begins or ends with a blank".to_owned());
        }
        check_text("owner_label", &self.owner_label)?;
        if matches!(&self.secret, Some(Secret::Passphrase(passphrase)) if passphrase.is_empty()) {
            return Err("the passphrase is empty: give one, or None for no encryption".to_owned());
        }
        if !(1..=MOST_CONNECTIONS).contains(&self.pool_max_size) {
            return Err(format!(
                "pool_max_size is {}: it must be from 1 to {MOST_CONNECTIONS}",
                self.pool_max_size
            ));
        }
        for (name, value) in [
            ("connect_timeout", self.connect_timeout),
            ("pool_timeout", self.pool_timeout),
            ("statement_timeout", self.statement_timeout),
            ("atomically_timeout", self.atomically_timeout),
            ("heartbeat_interval", self.heartbeat_interval),
            ("transaction_idle_timeout", self.transaction_idle_timeout),
            ("retry_timeout", self.retry_timeout),
        ] {
            check_duration(name, value, SHORTEST_TIMEOUT, LONGEST_TIMEOUT)?;
        }
        for (name, value) in [
            ("max_connection_age", self.max_connection_age),
            ("max_connection_idle", self.max_connection_idle),
        ] {
            check_duration(name, value.unwrap_or(YEAR), SHORTEST_LIFE, YEAR)?;
        }
        Ok(())
    }
}

fn check_text(name: &str, text: &str) -> Result<(), String> {
    if text.len() > LONGEST_NAME {
        return Err(format!("{name} has {} bytes: {LONGEST_NAME} are allowed", text.len()));
    }
    if text.contains(char::is_control) {
        return Err(format!("{name} contains a control character"));
    }
    Ok(())
}

fn check_duration(
    name: &str,
    value: Duration,
    shortest: Duration,
    longest: Duration,
) -> Result<(), String> {
    if (shortest..=longest).contains(&value) {
        return Ok(());
    }
    Err(format!("{name} is {value:?}: it must be from {shortest:?} to {longest:?}"))
}
