//! What the tasks of one run share.

use std::sync::Arc;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config, crypto::Crypto, homeserver::Homeserver, inbox::Inbox, metrics::Metrics,
    webhook::Webhook,
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
    /// The homeserver has been asked for the devices of all whose messages are stored. Before that
    /// nothing is decrypted: a message under a false name would not show.
    pub devices_asked: watch::Sender<bool>,
}

/// Something may be there to do.
#[derive(Default)]
pub struct Wake {
    pub delivery: Notify,
    pub gaps: Notify,
    pub rooms: Notify,
}

impl Wake {
    pub fn all(&self) {
        self.delivery.notify_one();
        self.gaps.notify_one();
        self.rooms.notify_one();
    }
}
