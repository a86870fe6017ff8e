//! The witness: how many commits the store has seen, kept on the homeserver. A database that was set
//! back to an older state is behind it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
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
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    errors::{BridgeError, exit_code},
    homeserver::{Homeserver, HomeserverError},
    keys::Keys,
};

/// Followed by the device's id: each device has its own, so that none overwrites another's.
const TYPE: &str = "org.matrix-sdk-postgres.webhook_bridge.witness";
/// Half of what is promised, so that a failed attempt has time for others.
const WRITE_EVERY: Duration = Duration::from_secs(5 * 60);
/// How often we look at the count, and whether the account is still ours.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// For the last writing, when the bridge is being stopped.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the account data holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Testimony {
    device_id: OwnedDeviceId,
    /// A device of the same name that was made anew has another key.
    ed25519: String,
    commits: u64,
}

/// Keeps the witness of one device.
pub struct Witness {
    homeserver: Arc<Homeserver>,
    keys: Keys,
    user: OwnedUserId,
    device: OwnedDeviceId,
    ed25519: String,
    /// The most commits that the store has been known to have.
    most: AtomicU64,
}

impl Witness {
    /// Refuse a store that is behind its witness; then write the witness anew.
    pub async fn check(
        homeserver: &Arc<Homeserver>,
        keys: &Keys,
        machine: &OlmMachine,
        stop: &CancellationToken,
    ) -> Result<Self, BridgeError> {
        let witness = Self {
            homeserver: homeserver.clone(),
            keys: keys.clone(),
            user: machine.user_id().to_owned(),
            device: machine.device_id().to_owned(),
            ed25519: machine.identity_keys().ed25519.to_base64(),
            most: AtomicU64::new(0),
        };
        let read = get_global_account_data::v3::Request::new(witness.user.clone(), witness.kind());
        match homeserver.send_until(read, stop).await {
            Ok(answer) => witness.hear(answer.account_data.json().get()),
            Err(error) if error.status() == Some(404) => {}
            Err(error) => witness.cannot("read", error)?,
        }
        witness.look().await?;
        match homeserver.send_until(witness.request()?, stop).await {
            Ok(_) => {}
            Err(error) => witness.cannot("written", error)?,
        }
        Ok(witness)
    }

    /// Look at the count often, and write it at least every ten minutes, until stopped.
    pub async fn run(&self, stop: &CancellationToken) -> Result<(), BridgeError> {
        let mut written = Instant::now();
        while stop.run_until_cancelled(sleep(LOOK_EVERY)).await.is_some() {
            self.look().await?;
            if written.elapsed() < WRITE_EVERY {
                continue;
            }
            match stop.run_until_cancelled(self.homeserver.send(self.request()?)).await {
                Some(Ok(_)) => written = Instant::now(),
                Some(Err(error)) if error.is_temporary() => {
                    debug!("the witness cannot be written yet: {error}");
                }
                Some(Err(error)) => {
                    self.cannot("written", error)?;
                    written = Instant::now();
                }
                None => {}
            }
        }
        Ok(())
    }

    /// The run has ended: after a stop, or when the database was found set back, what is known is
    /// written, so that the next start knows it too.
    pub async fn last_words(&self, ended: &Result<(), BridgeError>) {
        let rewound =
            matches!(ended, Err(BridgeError::Final { code, .. }) if *code == exit_code::REWOUND);
        if !rewound && !matches!(ended, Ok(()) | Err(BridgeError::Stopped)) {
            return;
        }
        let write = async {
            if !rewound {
                self.look().await?;
            }
            self.homeserver.send(self.request()?).await.map_err(BridgeError::from)
        };
        match timeout(PATIENCE, write).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => warn!("the witness was not written: {error}"),
            Err(_) => warn!("the witness was not written in time"),
        }
    }

    /// Count the commits: there must be as many as there ever were.
    async fn look(&self) -> Result<(), BridgeError> {
        let commits = self.keys.commit_count().await?;
        let most = self.most.fetch_max(commits, Ordering::Relaxed);
        if commits < most {
            return Err(BridgeError::rewound(format_args!(
                "the database has {commits} commits of device {}, and had {most}",
                self.device
            )));
        }
        Ok(())
    }

    /// Take in what the homeserver holds; what is not about this device and its keys is passed over.
    fn hear(&self, content: &str) {
        match serde_json::from_str::<Testimony>(content) {
            Ok(old) if old.device_id == self.device && old.ed25519 == self.ed25519 => {
                self.most.fetch_max(old.commits, Ordering::Relaxed);
            }
            Ok(old) => debug!(device = %old.device_id, "the witness is about other keys"),
            Err(error) => warn!("the witness on the homeserver cannot be understood: {error}"),
        }
    }

    fn kind(&self) -> GlobalAccountDataEventType {
        format!("{TYPE}.{}", self.device).into()
    }

    fn request(&self) -> Result<set_global_account_data::v3::Request, BridgeError> {
        let testimony = Testimony {
            device_id: self.device.clone(),
            ed25519: self.ed25519.clone(),
            commits: self.most.load(Ordering::Relaxed),
        };
        let content = Raw::new(&testimony)
            .map_err(|error| BridgeError::last(exit_code::UNEXPECTED, error.to_string()))?;
        Ok(set_global_account_data::v3::Request::new_raw(
            self.user.clone(),
            self.kind(),
            content.cast_unchecked(),
        ))
    }

    /// A homeserver that refuses account data for good must not stop the bridge.
    fn cannot(&self, what: &str, error: HomeserverError) -> Result<(), BridgeError> {
        if error.revoked_token().is_some() || matches!(error, HomeserverError::Stopped) {
            return Err(error.into());
        }
        warn!(
            "the witness cannot be {what} ({error}): a database that was set back may go unnoticed"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use matrix_sdk_postgres::testing;

    use super::*;
    use crate::{
        config::{Args, Config},
        http_client,
    };

    #[tokio::test]
    async fn only_a_witness_of_the_same_keys_counts() {
        let database = testing::database().unwrap();
        let words =
            ["b", "--homeserver=http://localhost", "--user=@b:x", "--webhook-url=http://localhost"];
        let config = Config::try_from(Args::try_parse_from(words).unwrap()).unwrap();
        let (keys, _) = Keys::open(&config, &database.url(), |_| ()).await.unwrap();
        keys.set_value("a", "1").await.unwrap();
        let commits = keys.commit_count().await.unwrap();
        let http = http_client::build(&config).unwrap();
        let witness = Witness {
            homeserver: Arc::new(Homeserver::new(http, config.homeserver.clone())),
            keys,
            user: config.user_id.clone(),
            device: "OURS".into(),
            ed25519: "key".to_owned(),
            most: AtomicU64::new(0),
        };
        let hear = |device: &str, ed25519: &str, commits: u64| {
            let testimony =
                Testimony { device_id: device.into(), ed25519: ed25519.to_owned(), commits };
            witness.hear(&serde_json::to_string(&testimony).unwrap());
        };
        hear("OTHER", "key", commits + 1);
        hear("OURS", "another key", commits + 1);
        witness.hear("{}");
        hear("OURS", "key", commits);
        witness.look().await.unwrap();
        hear("OURS", "key", commits + 1);
        let behind = witness.look().await;
        assert!(
            matches!(behind, Err(BridgeError::Final { code: exit_code::REWOUND, .. })),
            "{behind:?}"
        );
        // What is written afterwards does not hide it.
        let written = witness.request().unwrap();
        assert!(written.data.json().get().contains(&format!(":{}", commits + 1)));
    }
}
