//! Checks that settings are in range.

use std::time::Duration;

use super::PostgresStoreConfig;
use crate::{
    Access, OpenStoreError, OwnershipSettings, PoolSettings, Timeouts, config::secret::Secret,
};

const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// PostgreSQL's own timeouts end at 24.8 days, and adding a longer one to a clock can overflow.
pub(crate) const MAX_TIMEOUT: Duration = DAY;
/// With a shorter timeout nothing could ever succeed.
const MIN_TIMEOUT: Duration = Duration::from_millis(10);
const MIN_CONNECTION_LIFETIME: Duration = Duration::from_millis(1);

/// Each connection is a server process.
const MAX_CONNECTIONS: usize = 10_000;
const MAX_NAME_BYTES: usize = 255;

impl PostgresStoreConfig {
    /// Checks the settings that need no server. Called before anything is opened, whether the pool is
    /// the store's or the application's.
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
        if !(1..=MAX_CONNECTIONS).contains(&self.max_size) {
            return Err(format!(
                "pool.max_size is {}: it must be from 1 to {MAX_CONNECTIONS}",
                self.max_size
            ));
        }
        let connect = self.connect_timeout.unwrap_or(MAX_TIMEOUT);
        check_duration("pool.wait_timeout", self.wait_timeout, MIN_TIMEOUT, MAX_TIMEOUT)?;
        check_duration("pool.connect_timeout", connect, MIN_TIMEOUT, MAX_TIMEOUT)?;
        for (name, value) in [
            ("pool.max_connection_age", self.max_connection_age),
            ("pool.max_connection_idle", self.max_connection_idle),
        ] {
            check_duration(name, value.unwrap_or(YEAR), MIN_CONNECTION_LIFETIME, YEAR)?;
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
            check_duration(name, value, MIN_TIMEOUT, MAX_TIMEOUT)?;
        }
        Ok(())
    }
}

impl OwnershipSettings {
    fn check(&self) -> Result<(), String> {
        check_text("the owner's label", &self.label)?;
        if let Some(instance) = &self.instance {
            if instance.is_empty() {
                return Err("the owner's instance is empty: give a name, or None".to_owned());
            }
            check_text("the owner's instance", instance)?;
        }
        let (name, interval) = ("heartbeat_interval", self.heartbeat_interval);
        check_duration(name, interval, MIN_TIMEOUT, MAX_TIMEOUT)
    }
}

fn check_text(name: &str, text: &str) -> Result<(), String> {
    if text.len() > MAX_NAME_BYTES {
        return Err(format!("{name} has {} bytes: {MAX_NAME_BYTES} are allowed", text.len()));
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
