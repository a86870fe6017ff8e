//! What the tasks of one run share.

use std::sync::Arc;

use ruma::OwnedUserId;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    config::Config, crypto::Crypto, devices::Devices, errors::BridgeError, homeserver::Homeserver,
    inbox::Inbox, metrics::Metrics, webhook::Webhook,
};

/// One run: from a machine that was just built until it ends or the store fails.
pub struct Run {
    pub config: Arc<Config>,
    pub homeserver: Arc<Homeserver>,
    pub crypto: Crypto,
    pub inbox: Inbox,
    pub webhook: Webhook,
    pub metrics: Arc<Metrics>,
    /// Ends this run, at a point where each task leaves nothing half done.
    pub stop: CancellationToken,
    pub wake: Wake,
    pub devices: Devices,
}

/// Something may be there to do.
#[derive(Default)]
pub struct Wake {
    pub delivery: Notify,
    pub gaps: Notify,
    pub invitations: Notify,
    pub members: Notify,
    pub outgoing: Notify,
}

impl Wake {
    pub fn all(&self) {
        self.outgoing.notify_one();
        self.delivery.notify_one();
        self.gaps.notify_one();
        self.invitations.notify_one();
        self.members.notify_one();
    }
}

impl Run {
    /// Some events of a room have no id or no sender that can be read: all we can do is say so.
    pub fn note_unreadable(&self, room: &str, count: usize) {
        if count > 0 {
            warn!(room, count, "events without a readable id or sender are left out");
            self.metrics.unreadable.inc_by(count as u64);
        }
    }

    /// Follow these users' devices from now on.
    pub async fn follow(&self, users: &[OwnedUserId]) -> Result<(), BridgeError> {
        self.devices.follow(users);
        self.crypto.track(users).await?;
        self.wake.outgoing.notify_one();
        Ok(())
    }
}
