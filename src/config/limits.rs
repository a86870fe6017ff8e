//! What the settings may be.

use std::time::Duration;

use super::PostgresStoreConfig;
use crate::{
    Access, OpenStoreError, OwnershipSettings, PoolSettings, Timeouts, config::secret::Secret,
};

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
        if matches!(&self.secret, Some(Secret::Passphrase(passphrase)) if passphrase.0.is_empty()) {
            return Err("the passphrase is empty: give one, or None for no encryption".to_owned());
        }
        self.pool.check()?;
        self.timeouts.check()?;
        match &self.access {
            Access::Exclusive(settings) => settings.check(),
            Access::ReadOnly => Ok(()),
        }
    }
}

impl PoolSettings {
    fn check(&self) -> Result<(), String> {
        if !(1..=MOST_CONNECTIONS).contains(&self.max_size) {
            return Err(format!(
                "pool.max_size is {}: it must be from 1 to {MOST_CONNECTIONS}",
                self.max_size
            ));
        }
        let connect = self.connect_timeout.unwrap_or(LONGEST_TIMEOUT);
        check_duration("pool.wait_timeout", self.wait_timeout, SHORTEST_TIMEOUT, LONGEST_TIMEOUT)?;
        check_duration("pool.connect_timeout", connect, SHORTEST_TIMEOUT, LONGEST_TIMEOUT)?;
        for (name, value) in [
            ("pool.max_connection_age", self.max_connection_age),
            ("pool.max_connection_idle", self.max_connection_idle),
        ] {
            check_duration(name, value.unwrap_or(YEAR), SHORTEST_LIFE, YEAR)?;
        }
        Ok(())
    }
}

impl Timeouts {
    fn check(&self) -> Result<(), String> {
        for (name, value) in [
            ("timeouts.statement", self.statement),
            ("timeouts.atomically", self.atomically),
            ("timeouts.transaction_idle", self.transaction_idle),
            ("timeouts.retry", self.retry),
        ] {
            check_duration(name, value, SHORTEST_TIMEOUT, LONGEST_TIMEOUT)?;
        }
        Ok(())
    }
}

impl OwnershipSettings {
    fn check(&self) -> Result<(), String> {
        check_text("the owner's label", &self.label)?;
        let (name, interval) = ("heartbeat_interval", self.heartbeat_interval);
        check_duration(name, interval, SHORTEST_TIMEOUT, LONGEST_TIMEOUT)
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
