//! The state that the tasks of one run share.

use std::sync::Arc;

use matrix_sdk_postgres::admin::OwnDevice;
use ruma::OwnedUserId;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    config::Config, crypto::Crypto, devices::Devices, errors::BridgeError, homeserver::Homeserver,
    inbox::Inbox, metrics::Metrics, sealing::Sealer, webhook::Webhooks,
};

/// One run: from building the machine until a stop or an error.
pub struct Run {
    pub config: Arc<Config>,
    pub homeserver: Arc<Homeserver>,
    pub crypto: Crypto,
    pub inbox: Inbox,
    pub webhooks: Webhooks,
    /// `None`: the API is off.
    pub sealer: Option<Sealer>,
    pub metrics: Arc<Metrics>,
    /// Stops this run: each task finishes its current step.
    pub stop: CancellationToken,
    pub wake: Wake,
    /// Cancelled when this run's first sync is committed.
    pub synced: CancellationToken,
    pub devices: Devices,
    /// This device, if its keys were published before this run.
    pub published_device: Option<OwnDevice>,
}

/// Wakes the tasks when there may be work.
#[derive(Default)]
pub struct Wake {
    pub delivery: Notify,
    pub gaps: Notify,
    pub invitations: Notify,
    pub members: Notify,
    pub outgoing: Notify,
    /// The devices or the identity of the bot's user have changed.
    pub own_devices: Notify,
    /// The device keys are on the homeserver.
    pub device_published: Notify,
    /// There may be room keys to back up.
    pub room_keys: Notify,
}

impl Wake {
    pub fn all(&self) {
        self.outgoing.notify_one();
        self.delivery.notify_one();
        self.gaps.notify_one();
        self.invitations.notify_one();
        self.members.notify_one();
        self.room_keys.notify_one();
    }
}

impl Run {
    /// Log and count events without a valid id, sender or session id, which cannot be stored.
    pub fn count_malformed(&self, room: &str, count: usize) {
        if count > 0 {
            warn!(room, count, "events without a valid id, sender or session id were skipped");
            self.metrics.malformed.increment(count as u64);
        }
    }

    /// Start tracking the devices of these users.
    pub async fn track(&self, users: &[OwnedUserId]) -> Result<(), BridgeError> {
        self.devices.track(users);
        self.crypto.track(users).await?;
        self.wake.outgoing.notify_one();
        Ok(())
    }
}
