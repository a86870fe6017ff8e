//! Rollback detection: a checkpoint of the store's commit count is kept on the homeserver. A database
//! that was rolled back has fewer commits than its checkpoint.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use matrix_sdk_crypto::OlmMachine;
use ruma::{
    OwnedDeviceId, OwnedUserId,
    api::client::config::{get_global_account_data, set_global_account_data},
    events::GlobalAccountDataEventType,
    serde::Raw,
};
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    config::Config,
    errors::{BridgeError, exit_code},
    homeserver::Homeserver,
    keys::Keys,
    refusal::HomeserverError,
    retry::Delays,
};

/// Account data type; the device id is appended, so that devices do not overwrite each other's.
const TYPE: &str = "org.matrix-sdk-postgres.webhook_bridge.checkpoint";
/// Half of the documented ten minutes, which leaves time for retries.
const WRITE_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// How often the commit count and the ownership of the account are checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Short, so that a write does not delay the start.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// For the last write, at shutdown.
const FINAL_WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// Name of the store's custom value that records that a checkpoint was written and must exist.
const WRITTEN: &str = "checkpoint_written";

/// The content of the account data event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    device_id: OwnedDeviceId,
    /// Tells a re-created device with the same id apart.
    ed25519: String,
    #[serde(deserialize_with = "count")]
    commits: u64,
}

/// Some homeservers convert numbers to floats.
fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let number = serde_json::Number::deserialize(deserializer)?;
    let float = number.as_f64().filter(|float| *float >= 0.0 && float.fract() == 0.0);
    let count = number.as_u64().or(float.map(|float| float as u64));
    count.ok_or_else(|| D::Error::custom("commits is not a non-negative integer"))
}

/// The outcome of fetching the checkpoint.
enum Fetched {
    /// It exists, and its commit count is taken into account.
    Found,
    /// The homeserver reports that there is none.
    Missing,
    /// Unknown: the checkpoint may exist.
    Failed { reason: String, retry_after: Option<Duration>, temporary: bool },
}

/// The commit count checkpoint of one device.
pub struct Checkpoint {
    homeserver: Arc<Homeserver>,
    keys: Keys,
    user: OwnedUserId,
    device: OwnedDeviceId,
    ed25519: String,
    /// The highest commit count seen in the store or in the checkpoint.
    highest: AtomicU64,
    /// Set once the homeserver's checkpoint is known, so that overwriting it loses nothing.
    may_write: AtomicBool,
}

impl Checkpoint {
    /// Refuse a store with fewer commits than its checkpoint, then write the checkpoint. Waits until
    /// the checkpoint can be read: an impossible check has not passed.
    pub async fn check(
        config: &Config,
        homeserver: &Arc<Homeserver>,
        keys: &Keys,
        machine: &OlmMachine,
        stop: &CancellationToken,
    ) -> Result<Self, BridgeError> {
        let checkpoint = Self {
            homeserver: homeserver.clone(),
            keys: keys.clone(),
            user: machine.user_id().to_owned(),
            device: machine.device_id().to_owned(),
            ed25519: machine.identity_keys().ed25519.to_base64(),
            highest: AtomicU64::new(0),
            may_write: AtomicBool::new(false),
        };
        checkpoint.fetch_until_known(config, stop).await?;
        checkpoint.check_commit_count().await?;
        if let Err(error) = checkpoint.write().await {
            checkpoint.handle_write_error(error)?;
        }
        Ok(checkpoint)
    }

    async fn fetch_until_known(
        &self,
        config: &Config,
        stop: &CancellationToken,
    ) -> Result<(), BridgeError> {
        // The key is compared, because another device may have used this store before.
        let written = self.keys.value(WRITTEN).await?.as_deref() == Some(&self.ed25519);
        let (began, mut delays) = (Instant::now(), Delays::after_refusals());
        loop {
            let fetching = stop.run_until_cancelled(self.fetch()).await;
            let fetched = fetching.unwrap_or(Err(BridgeError::Stopped))?;
            let (reason, retry_after) = match fetched {
                Fetched::Found => break,
                Fetched::Missing if !written => break,
                _ if config.skip_checkpoint => {
                    warn!("the checkpoint is not checked, because BRIDGE_SKIP_CHECKPOINT is set");
                    break;
                }
                Fetched::Missing => ("it is missing, though one was written".to_owned(), None),
                // Nothing was written before, so the homeserver may lack account data altogether.
                // `may_write` stays false, so that an existing checkpoint is never overwritten.
                Fetched::Failed { reason, temporary: false, .. }
                    if !written && began.elapsed() >= config.retry_timeout =>
                {
                    warn!(
                        "the checkpoint cannot be read ({reason}): a database that was rolled back \
                         will not be detected"
                    );
                    return Ok(());
                }
                Fetched::Failed { reason, retry_after, .. } => (reason, retry_after),
            };
            let delay = delays.next(retry_after);
            warn!(
                "waiting to read the checkpoint, which shows whether the database was rolled back \
                 ({reason}); trying again in {} s. If you are sure that it was not rolled back, \
                 start once with BRIDGE_SKIP_CHECKPOINT=true",
                delay.as_secs()
            );
            let slept = stop.run_until_cancelled(sleep(delay)).await;
            slept.ok_or(BridgeError::Stopped)?;
        }
        self.may_write.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn fetch(&self) -> Result<Fetched, BridgeError> {
        let request =
            get_global_account_data::v3::Request::new(self.user.clone(), self.event_type());
        match self.homeserver.send(request).await {
            Ok(response) => Ok(match self.read_checkpoint(&response.0) {
                Ok(()) => Fetched::Found,
                Err(reason) => Fetched::Failed { reason, retry_after: None, temporary: true },
            }),
            // Temporary would mean that a proxy sent the 404.
            Err(error) if error.status() == Some(404) && !error.is_temporary() => {
                Ok(Fetched::Missing)
            }
            Err(error) if error.ends_run() => Err(error.into()),
            Err(error) => Ok(Fetched::Failed {
                reason: error.to_string(),
                retry_after: error.retry_after(),
                // A proxy's page counts as permanent: a proxy may block account data altogether.
                temporary: error.status().is_none_or(|status| status >= 500 || status == 429),
            }),
        }
    }

    /// Check the commit count often, and write the checkpoint at least every ten minutes, until
    /// stopped.
    pub async fn run(&self, stop: &CancellationToken) -> Result<(), BridgeError> {
        let mut written = Instant::now();
        while stop.run_until_cancelled(sleep(CHECK_INTERVAL)).await.is_some() {
            self.check_commit_count().await?;
            if written.elapsed() < WRITE_INTERVAL {
                continue;
            }
            if !self.may_write.load(Ordering::Relaxed) {
                match stop.run_until_cancelled(self.fetch()).await {
                    Some(Ok(Fetched::Found | Fetched::Missing)) => {
                        self.may_write.store(true, Ordering::Relaxed);
                        self.check_commit_count().await?;
                    }
                    Some(Err(error)) => return Err(error),
                    _ => {}
                }
            }
            match stop.run_until_cancelled(self.write()).await {
                Some(Ok(())) => written = Instant::now(),
                Some(Err(WriteError::Homeserver(error))) if error.is_temporary() => {
                    debug!("the checkpoint cannot be written yet: {error}");
                }
                Some(Err(error)) => {
                    self.handle_write_error(error)?;
                    written = Instant::now();
                }
                None => {}
            }
        }
        Ok(())
    }

    /// The last write of a run, after a stop or a detected rollback, so that the next start compares
    /// with the newest count.
    pub async fn write_final(&self, ended: &Result<(), BridgeError>) {
        let rolled_back = matches!(ended, Err(BridgeError::Fatal { code, .. }) if *code == exit_code::ROLLED_BACK);
        if !rolled_back && !matches!(ended, Ok(()) | Err(BridgeError::Stopped)) {
            return;
        }
        let write = async {
            if !rolled_back {
                self.check_commit_count().await?;
                return Ok(self.write().await?);
            }
            // The store accepts no more writes, so only the homeserver is written to.
            Ok::<_, BridgeError>(self.send().await?)
        };
        match timeout(FINAL_WRITE_TIMEOUT, write).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!("the checkpoint was not written: {error}"),
            Err(_) => warn!("the checkpoint was not written in time"),
        }
    }

    /// Fail if the store has fewer commits than ever before.
    async fn check_commit_count(&self) -> Result<(), BridgeError> {
        let commits = self.keys.commit_count().await?;
        let highest = self.highest.fetch_max(commits, Ordering::Relaxed);
        if commits < highest {
            return Err(BridgeError::rolled_back(format_args!(
                "the database has {commits} commits of device {}, but had {highest} before",
                self.device
            )));
        }
        Ok(())
    }

    /// Take the commit count of a fetched checkpoint into account, unless it is of other keys.
    fn read_checkpoint(&self, content: &str) -> Result<(), String> {
        match serde_json::from_str::<Content>(content) {
            Ok(old) if old.device_id == self.device && old.ed25519 == self.ed25519 => {
                self.highest.fetch_max(old.commits, Ordering::Relaxed);
                Ok(())
            }
            Ok(old) => {
                debug!(device = %old.device_id, "the checkpoint belongs to other device keys");
                Ok(())
            }
            Err(_) => Err("its content is malformed".to_owned()),
        }
    }

    fn event_type(&self) -> GlobalAccountDataEventType {
        format!("{TYPE}.{}", self.device).into()
    }

    /// Write the checkpoint, unless it might overwrite a higher one. `WRITTEN` is stored afterwards:
    /// the other way round, a crash in between would make every start wait for a missing checkpoint.
    async fn write(&self) -> Result<(), WriteError> {
        if !self.may_write.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.send().await?;
        if self.keys.value(WRITTEN).await?.as_deref() != Some(&self.ed25519) {
            self.keys.set_value(WRITTEN, &self.ed25519).await?;
            self.check_commit_count().await?;
        }
        Ok(())
    }

    async fn send(&self) -> Result<(), HomeserverError> {
        if self.may_write.load(Ordering::Relaxed) {
            self.homeserver.send_within(self.request()?, WRITE_TIMEOUT).await?;
        }
        Ok(())
    }

    fn request(&self) -> Result<set_global_account_data::v3::Request, HomeserverError> {
        let content = Content {
            device_id: self.device.clone(),
            ed25519: self.ed25519.clone(),
            commits: self.highest.load(Ordering::Relaxed),
        };
        let content =
            Raw::new(&content).map_err(|error| HomeserverError::Unreadable(error.to_string()))?;
        Ok(set_global_account_data::v3::Request::new_raw(
            self.user.clone(),
            self.event_type(),
            content.cast_unchecked(),
        ))
    }

    /// A homeserver that refuses account data must not stop the bridge.
    fn handle_write_error(&self, error: WriteError) -> Result<(), BridgeError> {
        match error {
            WriteError::Homeserver(error) if !error.ends_run() => {
                warn!(
                    "the checkpoint cannot be written ({error}): a database that was rolled back \
                     may not be detected"
                );
                Ok(())
            }
            error => Err(error.into()),
        }
    }
}

/// Why the checkpoint was not written.
enum WriteError {
    Homeserver(HomeserverError),
    Store(BridgeError),
}

impl From<HomeserverError> for WriteError {
    fn from(error: HomeserverError) -> Self {
        Self::Homeserver(error)
    }
}

impl From<BridgeError> for WriteError {
    fn from(error: BridgeError) -> Self {
        Self::Store(error)
    }
}

impl From<WriteError> for BridgeError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Homeserver(error) => error.into(),
            WriteError::Store(error) => error,
        }
    }
}

#[cfg(test)]
mod tests;
