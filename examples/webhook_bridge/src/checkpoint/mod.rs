//! The checkpoint: how many commits the store has seen, kept on the homeserver. A database that was
//! rolled back is behind it.

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

/// Followed by the device's id: each device has its own, so that none overwrites another's.
const TYPE: &str = "org.matrix-sdk-postgres.webhook_bridge.witness";
/// Half of what is promised, so that a failed attempt has time for others.
const WRITE_EVERY: Duration = Duration::from_secs(5 * 60);
/// How often we look at the count, and whether the account is still ours.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// For a writing, which must not hold up a start.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// For the last writing, when the bridge is being stopped.
const LAST_LIMIT: Duration = Duration::from_secs(2);
/// In the store: one was written, so there has to be one.
const WRITTEN: &str = "checkpoint_written";

/// What the account data holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    device_id: OwnedDeviceId,
    /// A device of the same name that was made again has another key.
    ed25519: String,
    #[serde(deserialize_with = "count")]
    commits: u64,
}

/// Some homeservers write numbers as floats.
fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let number = serde_json::Number::deserialize(deserializer)?;
    let float = number.as_f64().filter(|float| *float >= 0.0 && float.fract() == 0.0);
    let count = number.as_u64().or(float.map(|float| float as u64));
    count.ok_or_else(|| D::Error::custom("it is no count"))
}

/// What came of reading it.
enum Read {
    /// It is there, and taken in.
    Found,
    /// The homeserver says that there is none.
    Missing,
    /// It could not be read, which says nothing about what it holds.
    Failed { reason: String, wish: Option<Duration>, temporary: bool },
}

/// Keeps the checkpoint of one device.
pub struct Checkpoint {
    homeserver: Arc<Homeserver>,
    keys: Keys,
    user: OwnedUserId,
    device: OwnedDeviceId,
    ed25519: String,
    /// The most commits that the store has been known to have.
    most: AtomicU64,
    /// What is on the homeserver is known, so that it may be written over.
    may_write: AtomicBool,
}

impl Checkpoint {
    /// Refuse a store that is behind its checkpoint; then write it. Waits until it can be read, for a
    /// check that cannot be done has not been passed.
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
            most: AtomicU64::new(0),
            may_write: AtomicBool::new(false),
        };
        checkpoint.read_until_known(config, stop).await?;
        checkpoint.look().await?;
        if let Err(error) = checkpoint.write().await {
            checkpoint.not_written(error)?;
        }
        Ok(checkpoint)
    }

    async fn read_until_known(
        &self,
        config: &Config,
        stop: &CancellationToken,
    ) -> Result<(), BridgeError> {
        // Of this device's keys, not of another that had the same store.
        let written = self.keys.value(WRITTEN).await?.as_deref() == Some(&self.ed25519);
        let (began, mut delays) = (Instant::now(), Delays::after_refusals());
        loop {
            let reading = stop.run_until_cancelled(self.read()).await;
            let read = reading.unwrap_or(Err(BridgeError::Stopped))?;
            let (reason, wish) = match read {
                Read::Found => break,
                Read::Missing if !written => break,
                _ if config.skip_checkpoint => {
                    warn!(
                        "the checkpoint is not looked at, because BRIDGE_SKIP_CHECKPOINT says so"
                    );
                    break;
                }
                Read::Missing => ("it is missing, and one was written".to_owned(), None),
                // Who never wrote one may be at a homeserver that keeps none. What may be there all
                // the same is never written over.
                Read::Failed { reason, temporary: false, .. }
                    if !written && began.elapsed() >= config.refusal_wait =>
                {
                    warn!(
                        "the checkpoint cannot be read ({reason}): a database that was rolled back \
                         goes unnoticed"
                    );
                    return Ok(());
                }
                Read::Failed { reason, wish, .. } => (reason, wish),
            };
            let delay = delays.next(wish);
            warn!(
                "waiting to read the checkpoint, which tells whether the database was rolled back \
                 ({reason}); again in {} s. If you are sure that it was not: \
                 BRIDGE_SKIP_CHECKPOINT=true, once",
                delay.as_secs()
            );
            let slept = stop.run_until_cancelled(sleep(delay)).await;
            slept.ok_or(BridgeError::Stopped)?;
        }
        self.may_write.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn read(&self) -> Result<Read, BridgeError> {
        let read = get_global_account_data::v3::Request::new(self.user.clone(), self.kind());
        match self.homeserver.send(read).await {
            Ok(answer) => Ok(match self.hear(&answer.0) {
                Ok(()) => Read::Found,
                Err(reason) => Read::Failed { reason, wish: None, temporary: true },
            }),
            // A homeserver's, and not a proxy's page.
            Err(error) if error.status() == Some(404) && !error.is_temporary() => Ok(Read::Missing),
            Err(error) if error.ends_run() => Err(error.into()),
            Err(error) => Ok(Read::Failed {
                reason: error.to_string(),
                wish: error.wish(),
                // A page of a proxy may be all that a homeserver without account data is asked through.
                temporary: error.status().is_none_or(|status| status >= 500 || status == 429),
            }),
        }
    }

    /// Look at the count often, and write it at least every ten minutes, until stopped.
    pub async fn run(&self, stop: &CancellationToken) -> Result<(), BridgeError> {
        let mut written = Instant::now();
        while stop.run_until_cancelled(sleep(LOOK_EVERY)).await.is_some() {
            self.look().await?;
            if written.elapsed() < WRITE_EVERY {
                continue;
            }
            if !self.may_write.load(Ordering::Relaxed) {
                // Perhaps it can be read by now.
                match stop.run_until_cancelled(self.read()).await {
                    Some(Ok(Read::Found | Read::Missing)) => {
                        self.may_write.store(true, Ordering::Relaxed);
                        self.look().await?;
                    }
                    Some(Err(error)) => return Err(error),
                    _ => {}
                }
            }
            match stop.run_until_cancelled(self.write()).await {
                Some(Ok(())) => written = Instant::now(),
                Some(Err(Failed::Homeserver(error))) if error.is_temporary() => {
                    debug!("the checkpoint cannot be written yet: {error}");
                }
                Some(Err(error)) => {
                    self.not_written(error)?;
                    written = Instant::now();
                }
                None => {}
            }
        }
        Ok(())
    }

    /// The run has ended: after a stop, or when the database was found rolled back, what is known is
    /// written, so that the next start knows it too.
    pub async fn last_words(&self, ended: &Result<(), BridgeError>) {
        let rolled_back = matches!(ended, Err(BridgeError::Final { code, .. }) if *code == exit_code::ROLLED_BACK);
        if !rolled_back && !matches!(ended, Ok(()) | Err(BridgeError::Stopped)) {
            return;
        }
        let write = async {
            if !rolled_back {
                self.look().await?;
                return Ok(self.write().await?);
            }
            // Its store takes no more writes.
            Ok::<_, BridgeError>(self.send().await?)
        };
        match timeout(LAST_LIMIT, write).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!("the checkpoint was not written: {error}"),
            Err(_) => warn!("the checkpoint was not written in time"),
        }
    }

    /// Count the commits: there must be as many as there ever were.
    async fn look(&self) -> Result<(), BridgeError> {
        let commits = self.keys.commit_count().await?;
        let most = self.most.fetch_max(commits, Ordering::Relaxed);
        if commits < most {
            return Err(BridgeError::rolled_back(format_args!(
                "the database has {commits} commits of device {}, and had {most}",
                self.device
            )));
        }
        Ok(())
    }

    /// Take in what the homeserver holds; what is not about this device and its keys is passed over.
    fn hear(&self, content: &str) -> Result<(), String> {
        match serde_json::from_str::<Content>(content) {
            Ok(old) if old.device_id == self.device && old.ed25519 == self.ed25519 => {
                self.most.fetch_max(old.commits, Ordering::Relaxed);
                Ok(())
            }
            Ok(old) => {
                debug!(device = %old.device_id, "the checkpoint is about other keys");
                Ok(())
            }
            Err(_) => Err("what is there cannot be understood".to_owned()),
        }
    }

    fn kind(&self) -> GlobalAccountDataEventType {
        format!("{TYPE}.{}", self.device).into()
    }

    /// Write it, unless more may be there. The store remembers it afterwards: one that it remembers and
    /// that was never written would be waited for.
    async fn write(&self) -> Result<(), Failed> {
        if !self.may_write.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.send().await?;
        if self.keys.value(WRITTEN).await?.as_deref() != Some(&self.ed25519) {
            self.keys.set_value(WRITTEN, &self.ed25519).await?;
            self.look().await?;
        }
        Ok(())
    }

    async fn send(&self) -> Result<(), HomeserverError> {
        if self.may_write.load(Ordering::Relaxed) {
            self.homeserver.send_within(self.request()?, WRITE_LIMIT).await?;
        }
        Ok(())
    }

    fn request(&self) -> Result<set_global_account_data::v3::Request, HomeserverError> {
        let content = Content {
            device_id: self.device.clone(),
            ed25519: self.ed25519.clone(),
            commits: self.most.load(Ordering::Relaxed),
        };
        let content =
            Raw::new(&content).map_err(|error| HomeserverError::Unreadable(error.to_string()))?;
        Ok(set_global_account_data::v3::Request::new_raw(
            self.user.clone(),
            self.kind(),
            content.cast_unchecked(),
        ))
    }

    /// A homeserver that takes no account data must not stop the bridge.
    fn not_written(&self, error: Failed) -> Result<(), BridgeError> {
        match error {
            Failed::Homeserver(error) if !error.ends_run() => {
                warn!(
                    "the checkpoint cannot be written ({error}): a database that was rolled back \
                     may go unnoticed"
                );
                Ok(())
            }
            error => Err(error.into()),
        }
    }
}

/// Why it was not written.
enum Failed {
    Homeserver(HomeserverError),
    Store(BridgeError),
}

impl From<HomeserverError> for Failed {
    fn from(error: HomeserverError) -> Self {
        Self::Homeserver(error)
    }
}

impl From<BridgeError> for Failed {
    fn from(error: BridgeError) -> Self {
        Self::Store(error)
    }
}

impl From<Failed> for BridgeError {
    fn from(error: Failed) -> Self {
        match error {
            Failed::Homeserver(error) => error.into(),
            Failed::Store(error) => error,
        }
    }
}

#[cfg(test)]
mod tests;
